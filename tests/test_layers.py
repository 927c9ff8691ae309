"""Layers are the reference's five steps with weights, wherever the numbers lie."""

import copy
import pickle
import sys
import threading

import numpy as np
import numpy.testing as npt
import pytest

import fastattn
import reference
from fastattn import CrossAttention, SelfAttention, causal, causal_top_left, lengths, packed, prefix, rope, window
from fastattn.layers import _Rows, from_safetensors

EPS = {"f4": 2.0**-24, "f8": 2.0**-53}
# Sums of d_model products of numbers near 1 / sqrt(d_model) four times in a row: each errs by some units of the largest term.
UNITS = 64


def numbers(shape, dtype="f4", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(ours, theirs, dtype="f4"):
    npt.assert_allclose(ours, theirs, rtol=0, atol=UNITS * EPS[dtype] * np.abs(theirs).max(initial=1))


def weights(d_model=24, heads=4, kv_heads=4, D=6, Dv=6, d_out=20, n=None, dtype="f4"):
    """Arguments of a layer, with biases; n: numbers of a word that keys and values come from."""
    n = d_model if n is None else n
    sizes = {"q": (d_model, heads * D), "k": (n, kv_heads * D), "v": (n, kv_heads * Dv), "o": (heads * Dv, d_out)}
    found = {}
    for seed, (x, size) in enumerate(sizes.items()):
        found[f"w_{x}"] = numbers(size, dtype, seed) / np.sqrt(np.array(size[0], dtype))
        found[f"b_{x}"] = numbers(size[1], dtype, seed + 10)
    return found | {"heads": heads, "kv_heads": kv_heads}


SHAPES = [
    {},
    {"kv_heads": 1},
    {"kv_heads": 2, "Dv": 5},
    {"heads": 1, "kv_heads": 1, "D": 1, "Dv": 1},
    {"heads": 2, "kv_heads": 2, "D": 64, "Dv": 64, "d_model": 128, "d_out": 128},
]
both = pytest.mark.parametrize("dtype", ["f4", "f8"])


# ---- the five steps ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("words", [(7, ), (3, 7), (1, 1), (2, 0), (0, 3), (0,)])
@both
def test_self_attention_is_the_references(shape, words, dtype):
    w = weights(**shape, dtype=dtype)
    x = numbers((*words, len(w["w_q"])), dtype, 5)
    ours, theirs = SelfAttention(**w), reference.SelfAttention(**w)
    for mine, wanted in zip(ours.project(x), theirs.project(x), strict=True):
        assert mine.shape == wanted.shape
        close(mine, wanted, dtype)
    y = ours(x)
    assert y.dtype == dtype
    assert y.shape == (*words, w["w_o"].shape[1])
    close(y, theirs(x), dtype)


@pytest.mark.parametrize("shape", [{"n": 10}, {"n": 40, "kv_heads": 2, "Dv": 3}, {"kv_heads": 1}])
@pytest.mark.parametrize(("B", "Sq", "Sk"), [((), 5, 9), ((3,), 5, 9), ((3,), 9, 1), ((2,), 0, 4), ((0,), 3, 4), ((), 4, 0)])
@both
def test_cross_attention_is_the_references(shape, B, Sq, Sk, dtype):
    w = weights(**shape, dtype=dtype)
    x, y = numbers((*B, Sq, len(w["w_q"])), dtype, 5), numbers((*B, Sk, len(w["w_k"])), dtype, 6)
    ours, theirs = CrossAttention(**w), reference.CrossAttention(**w)
    for mine, wanted in zip(ours.project(x, y), theirs.project(x, y), strict=True):
        assert mine.shape == wanted.shape
        close(mine, wanted, dtype)
    found = ours(x, y)
    assert found.dtype == dtype
    close(found, theirs(x, y), dtype)
    close(ours(x, y, window(1)), theirs(x, y, reference.window(1)), dtype)


OPTIONS = {
    "causal": ({"mask": causal}, {"mask": reference.causal}),
    "causal_top_left": ({"mask": causal_top_left}, {"mask": reference.causal_top_left}),
    "lengths": ({"mask": lengths([5, 9])}, {"mask": reference.lengths([5, 9])}),
    "packed": ({"mask": packed([0] * 4 + [1] * 5)}, {"mask": reference.packed([0] * 4 + [1] * 5)}),
    "prefix": ({"mask": prefix(3)}, {"mask": reference.prefix(3)}),
    "joined": ({"mask": causal & window(2) & lengths([5, 9])}, {"mask": reference.causal & reference.window(2) & reference.lengths([5, 9])}),
    "boolean": ({"mask": numbers((2, 4, 9, 9), seed=20) > 0},) * 2,
    "bias": ({"bias": numbers((4, 9, 9), seed=21)},) * 2,
    "alibi": ({"alibi": 2.0 ** -np.arange(1, 5)},) * 2,
    "softcap": ({"softcap": 0.5},) * 2,
    "sink": ({"sink": np.array([-1.0, 0, 1, 2])},) * 2,
    "scale": ({"scale": -0.7},) * 2,
    "all": ({"mask": causal, "bias": numbers((9, 9), seed=22), "alibi": [0.1] * 4, "softcap": 2.0, "sink": [0.5] * 4, "scale": 0.3},
            {"mask": reference.causal, "bias": numbers((9, 9), seed=22), "alibi": [0.1] * 4, "softcap": 2.0, "sink": [0.5] * 4,
             "scale": 0.3}),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_every_option_of_attention_gets_through(name, kind):
    mine, wanted = OPTIONS[name]
    w, x, y = weights(kv_heads=2, Dv=5), numbers((2, 9, 24), seed=5), numbers((2, 9, 24), seed=6)
    texts = (x,) if kind == "self" else (x, y)
    ours, theirs = (getattr(m, "SelfAttention" if kind == "self" else "CrossAttention")(**w) for m in (fastattn, reference))
    close(ours(*texts, **mine), theirs(*texts, **wanted))
    close(ours(*texts, **mine, threads=1), theirs(*texts, **wanted))
    assert np.abs(ours(*texts, **mine) - ours(*texts)).max() > 1e-3         # the option matters to these numbers


def test_each_bias_and_the_last_product_may_be_missing():
    x = numbers((2, 7, 24), seed=5)
    for present in range(16):
        w = weights()
        for n, name in enumerate(("b_q", "b_k", "b_v", "b_o")):
            if not present >> n & 1:
                del w[name]
        close(SelfAttention(**w)(x), reference.SelfAttention(**w)(x))
        if "b_o" not in w:
            del w["w_o"]
            y = SelfAttention(**w)(x, causal)
            assert y.shape == (2, 7, 24)
            close(y, reference.SelfAttention(**w)(x, reference.causal))


def test_a_layer_without_last_product_is_attention_with_heads_side_by_side():
    layer, x = SelfAttention(**{name: w for name, w in weights().items() if name not in ("w_o", "b_o")}), numbers((2, 7, 24), seed=5)
    o = fastattn.attention(*layer.project(x))
    npt.assert_array_equal(layer(x), o.transpose(0, 2, 1, 3).reshape(2, 7, 24))


@both
def test_random_layers_are_the_references(dtype):
    for heads, kv_heads, seed in ((4, None, 0), (4, 2, 7), (1, 1, 3)):
        ours, theirs = (kind.random(24, heads, seed, kv_heads=kv_heads, dtype=dtype) for kind in (SelfAttention, reference.SelfAttention))
        x = numbers((7, 24), dtype)
        assert ours.dtype == dtype
        close(ours(x), theirs(x), dtype)
        cross, wanted = (kind.random(24, heads, seed, kv_heads=kv_heads, dtype=dtype) for kind in (CrossAttention, reference.CrossAttention))
        close(cross(x, x[:3]), wanted(x, x[:3]), dtype)
    npt.assert_array_equal(SelfAttention.random(24, 4, 5)(x.astype("f4")), SelfAttention.random(24, 4, 5)(x.astype("f4")))
    assert np.abs(SelfAttention.random(24, 4, 5)(x.astype("f4")) - SelfAttention.random(24, 4)(x.astype("f4"))).max() > 0.01


def test_a_layer_on_itself_is_self_attention():
    w, x = weights(), numbers((2, 7, 24), seed=5)
    close(CrossAttention(**w)(x, x, causal), SelfAttention(**w)(x, causal))


# ---- where numbers lie -----------------------------------------------------------------------------------------------------------
def test_one_text_and_a_batch_of_it_are_the_same():
    layer, x = SelfAttention(**weights()), numbers((3, 7, 24), seed=5)
    whole = layer(x, causal)
    for n in range(3):
        close(layer(x[n], causal), whole[n])
        close(layer(x[n:n + 1], causal)[0], whole[n])


def test_words_may_lie_anywhere():
    layer, x = SelfAttention(**weights()), numbers((3, 7, 24), seed=5)
    wanted = layer(x)
    wide = numbers((3, 7, 50), seed=8)
    wide[..., 1:49:2] = x
    others = [np.asfortranarray(x), x[::-1].copy()[::-1], wide[..., 1:49:2], x.swapaxes(0, 1).copy().swapaxes(0, 1), x.astype(">f4"),
              x[:, ::-1].copy()[:, ::-1]]
    for other in others:
        npt.assert_array_equal(other, x)
        close(layer(other), wanted)
    npt.assert_array_equal(layer(np.broadcast_to(x[:1], (3, 7, 24))), np.repeat(layer(x[:1]), 3, 0))
    for n, w in weights().items():                          # and so may weights
        if n[0] == "w":
            close(SelfAttention(**weights() | {n: np.asfortranarray(w)})(x), wanted)


def test_out_is_written_wherever_it_lies():
    w = weights(d_out=24)
    layer, cross, x = SelfAttention(**w), CrossAttention(**w), numbers((3, 7, 24), seed=5)
    for call, wanted in ((layer, layer(x)), (lambda x, **o: cross(x, x, **o), cross(x, x))):
        wide = np.full((3, 7, 50), np.nan, "f4")
        outs = [np.empty((3, 7, 24), "f4"), wide[..., 3:27], wide[..., 1:49:2], np.empty((7, 3, 24), "f4").swapaxes(0, 1),
                np.asfortranarray(np.empty((3, 7, 24), "f4")), np.empty((3, 7, 24), "f4")[:, ::-1]]
        for out in outs:
            assert call(x, out=out) is out
            npt.assert_array_equal(out, wanted)
        assert np.isnan(wide).sum() == wide.size - 3 * 7 * (24 + 24 - 12)   # 12 channels are in both views
    y = x.copy()
    wanted = layer(x)
    assert layer(y, out=y) is y
    npt.assert_array_equal(y, wanted)
    longer = np.zeros((3, 8, 24), "f4")
    longer[:, :7] = x
    layer(longer[:, :7], out=longer[:, 1:])                 # overlap, one word apart
    npt.assert_array_equal(longer[:, 1:], wanted)


def test_a_layer_without_last_product_may_overwrite_its_words():
    layer = SelfAttention(**{name: w for name, w in weights().items() if name not in ("w_o", "b_o")})
    x = numbers((3, 7, 24), seed=5)
    wanted = layer(x)
    assert layer(x, out=x) is x
    npt.assert_array_equal(x, wanted)


def test_weights_are_copied():
    w = weights()
    layer, x = SelfAttention(**w), numbers((7, 24), seed=5)
    before = layer(x)
    for array in w.values():
        if isinstance(array, np.ndarray):
            array[...] = 0
    npt.assert_array_equal(layer(x), before)


# ---- memory that is kept -----------------------------------------------------------------------------------------------------------
def test_memory_is_kept_and_grows_with_the_longest_text(monkeypatch):
    made = []
    new = _Rows.new
    monkeypatch.setattr(_Rows, "new", lambda self, count: made.append(count) or new(self, count))
    layer, texts = SelfAttention(**weights()), [numbers((n, 24), seed=n) for n in (50, 7, 50, 30, 80, 80, 1)]
    wanted = [layer(text) for text in texts]
    assert set(made) == {50, 80}
    before = len(made)
    for text, right in zip(texts, wanted, strict=True):
        npt.assert_array_equal(layer(text), right)
    assert len(made) == before


def test_what_earlier_texts_left_behind_changes_no_bit():
    # NaN from a longer text lies behind a shorter one's words.
    layer, x = SelfAttention(**weights()), numbers((2, 7, 24), seed=5)
    wanted = layer(x, causal)
    with np.errstate(invalid="ignore"):
        assert np.isnan(layer(np.full((4, 70, 24), np.nan, "f4"))).all()
    npt.assert_array_equal(layer(x, causal), wanted)


def test_projections_and_results_belong_to_the_caller():
    layer, x, other = SelfAttention(**weights()), numbers((2, 7, 24), seed=5), numbers((2, 7, 24), seed=6)
    kept = [*layer.project(x), layer(x)]
    copies = [part.copy() for part in kept]
    layer(other)
    layer.project(other)
    for part, right in zip(kept, copies, strict=True):
        npt.assert_array_equal(part, right)
    for part in kept:
        part[...] = np.nan
    npt.assert_array_equal(layer(x), copies[-1])


def test_a_call_that_fails_leaves_the_layer_as_it_was():
    layer, x = SelfAttention(**weights(), rope=rope()), numbers((2, 7, 24), seed=5)
    wanted = layer(x)
    for wrong in ({"mask": "causal"}, {"positions": [0.5] * 7}, {"bias": np.ones((3, 3), "f4")}, {"out": np.empty((2, 7, 3), "f4")}):
        with pytest.raises((TypeError, ValueError)):
            layer(x, **wrong)
    npt.assert_array_equal(layer(x), wanted)


def test_threads_at_the_same_time_get_the_bits_that_one_gets():
    layer = SelfAttention(**weights(heads=4, kv_heads=2), rope=rope())
    texts = [numbers((2, n, 24), seed=n) for n in (5, 60, 33, 128)]
    wanted, found, errors = [layer(text, causal) for text in texts], [], []

    def work(start):
        try:
            for n in range(40):
                at = (start + n) % len(texts)
                found.append((at, layer(texts[at], causal)))
        except Exception as error:
            errors.append(error)

    several = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert not errors
    assert len(found) == 160
    for at, y in found:
        npt.assert_array_equal(y, wanted[at])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
def test_copies_compute_the_same_and_take_no_scratch_along(kind, copied):
    layer, x = kind(**weights(), rope=rope(99.0)), numbers((2, 7, 24), seed=5)
    texts = (x,) if kind is SelfAttention else (x, x[:, :3])
    before, size = layer(*texts), len(pickle.dumps(layer))
    layer(*[np.repeat(text, 50, axis=0) for text in texts])
    assert len(pickle.dumps(layer)) == size
    other = copied(layer)
    npt.assert_array_equal(other(*texts), before)
    assert other.rope == layer.rope


# ---- torch -------------------------------------------------------------------------------------------------------------------------
def multihead(torch, **more):
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(24, 4, batch_first=True, **more).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():               # torch begins with biases of 0
            parameter.copy_(torch.randn_like(parameter) / 24**0.5)
    return theirs


@pytest.mark.parametrize("bias", [True, False])
def test_self_attention_is_torchs(bias):
    torch = pytest.importorskip("torch", reason="needs torch")
    theirs = multihead(torch, bias=bias)
    w_q, w_k, w_v = (w.numpy().T for w in theirs.in_proj_weight.detach().chunk(3))
    biases = {}
    if bias:
        biases = dict(zip(("b_q", "b_k", "b_v"), (b.numpy() for b in theirs.in_proj_bias.detach().chunk(3)), strict=True))
        biases["b_o"] = theirs.out_proj.bias.detach().numpy()
    ours = SelfAttention(w_q, w_k, w_v, theirs.out_proj.weight.detach().numpy().T, heads=4, **biases)
    x, real = numbers((3, 9, 24), seed=5), np.arange(9) < np.array([9, 4, 1])[:, None]
    words = torch.from_numpy(x)
    with torch.inference_mode():
        plain = theirs(words, words, words, need_weights=False)[0].numpy()
        padded = theirs(words, words, words, need_weights=False, key_padding_mask=torch.from_numpy(~real))[0].numpy()
        hidden = torch.triu(torch.ones(9, 9, dtype=torch.bool), 1)
        masked = theirs(words, words, words, need_weights=False, attn_mask=hidden)[0].numpy()
    close(ours(x), plain)
    close(ours(x, lengths([9, 4, 1]))[real], padded[real])
    close(ours(x, causal), masked)


def test_cross_attention_with_other_widths_is_torchs():
    torch = pytest.importorskip("torch", reason="needs torch")
    theirs = multihead(torch, kdim=10, vdim=10)
    w_q, w_k, w_v = (getattr(theirs, f"{x}_proj_weight").detach().numpy().T for x in "qkv")
    b_q, b_k, b_v = (b.numpy() for b in theirs.in_proj_bias.detach().chunk(3))
    ours = CrossAttention(w_q, w_k, w_v, theirs.out_proj.weight.detach().numpy().T, heads=4, b_q=b_q, b_k=b_k, b_v=b_v,
                          b_o=theirs.out_proj.bias.detach().numpy())
    x, y = numbers((3, 9, 24), seed=5), numbers((3, 5, 10), seed=6)
    with torch.inference_mode():
        wanted = theirs(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(y), need_weights=False)[0].numpy()
    close(ours(x, y), wanted)


# ---- files -------------------------------------------------------------------------------------------------------------------------
def saved(path, tensors):
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra `weights`")
    pytest.importorskip("ml_dtypes", reason="needs the extra `weights`")
    safetensors.save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
    return path


SEPARATE = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "whisper": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "bert": ("self.query", "self.key", "self.value", "output.dense"),
    "vit": ("attention.query", "attention.key", "attention.value", "output.dense"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
}


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "bfloat16"])
@pytest.mark.parametrize("family", SEPARATE)
@pytest.mark.parametrize("prefix_", ["model.layers.3.attn", "model.layers.3.attn.", ""])
def test_weights_are_found_by_the_names_of_many_models(tmp_path, family, dtype, prefix_):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes", reason="needs the extra `weights`").bfloat16
    w, start = weights(kv_heads=2, Dv=5), prefix_ and "model.layers.3.attn."
    names = dict(zip("qkvo", SEPARATE[family], strict=True))
    tensors = {f"{start}{name}.weight": w[f"w_{x}"].T.astype(dtype) for x, name in names.items()}
    # A bias or two may be missing, as in Whisper and Qwen.
    tensors |= {f"{start}{name}.bias": w[f"b_{x}"].astype(dtype) for x, name in names.items() if x in "qo"}
    tensors |= {f"{start}rotary_emb.inv_freq": np.ones(3), "model.layers.31.attn.q_proj.weight": np.ones((3, 3))}
    layer = from_safetensors(saved(tmp_path / "w.safetensors", tensors), prefix_, heads=4, kv_heads=2, rope=rope(7.0))
    rounded = {name: x.astype(dtype).astype("f4") for name, x in w.items() if name[:2] == "w_" or name in ("b_q", "b_o")}
    wanted = SelfAttention(**rounded, heads=4, kv_heads=2, rope=rope(7.0))
    x = numbers((7, 24), seed=5)
    assert layer.dtype == np.float32
    npt.assert_array_equal(layer(x), wanted(x))


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("family", ["torch", "gpt2"])
def test_q_k_and_v_in_one_are_taken_apart(tmp_path, family, biases):
    w = weights()
    together, bias = np.concatenate([w["w_q"], w["w_k"], w["w_v"]], 1), np.concatenate([w["b_q"], w["b_k"], w["b_v"]])
    if family == "torch":
        tensors = {"a.in_proj_weight": together.T, "a.out_proj.weight": w["w_o"].T, "a.in_proj_bias": bias, "a.out_proj.bias": w["b_o"]}
    else:
        tensors = {"a.c_attn.weight": together, "a.c_proj.weight": w["w_o"], "a.c_attn.bias": bias, "a.c_proj.bias": w["b_o"],
                   "a.bias": np.ones((1, 1, 9, 9))}
    if not biases:
        tensors = {name: x for name, x in tensors.items() if name[2:] == "bias" or "bias" not in name}
    layer = from_safetensors(saved(tmp_path / "w.safetensors", tensors), "a", heads=4)
    x = numbers((7, 24), seed=5)
    wanted = SelfAttention(**w) if biases else SelfAttention(w["w_q"], w["w_k"], w["w_v"], w["w_o"], heads=4)
    npt.assert_array_equal(layer(x), wanted(x))


def test_torchs_own_file_is_read(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    theirs = multihead(torch)
    path = saved(tmp_path / "w.safetensors", {name: x.detach().numpy() for name, x in theirs.state_dict().items()})
    x = numbers((3, 9, 24), seed=5)
    with torch.inference_mode():
        words = torch.from_numpy(x)
        close(from_safetensors(path, "", heads=4)(x), theirs(words, words, words, need_weights=False)[0].numpy())


def test_what_is_not_in_a_file_is_said_with_what_is(tmp_path):
    some = {f"a.{n}.q_proj.weight": np.ones((3, 3), "f4") for n in range(30)} | {"b.x": np.ones(3, "i1")}
    path = saved(tmp_path / "w.safetensors", some)
    with pytest.raises(ValueError, match=r"prefix must lead to weights named as one of these: q_proj.weight, .*; under 'a.3.' are q_proj.weight$"):
        from_safetensors(path, "a.3", heads=1)
    with pytest.raises(ValueError, match=r"nothing is under 'c.'; the file has a.0.q_proj.weight, .* and 11 more"):
        from_safetensors(path, "c", heads=1)
    with pytest.raises(ValueError, match=r"nothing is under 'a.'; the file has nothing"):
        from_safetensors(saved(tmp_path / "none.safetensors", {}), "a", heads=1)
    whole = {f"{name}.weight": np.ones((3, 3), "f4") for name in SEPARATE["llama"]}
    quantized = saved(tmp_path / "q.safetensors", whole | {"k_proj.weight": np.ones((3, 3), "i1")})
    with pytest.raises(TypeError, match=r"k_proj.weight must be float64, float32, float16 or bfloat16; got I8"):
        from_safetensors(quantized, "", heads=1)
    normed = saved(tmp_path / "n.safetensors", whole | {"q_norm.weight": np.ones(3, "f4")})
    with pytest.raises(ValueError, match=r"without norms of q and k, which are not computed; got '' with q_norm.weight"):
        from_safetensors(normed, "", heads=1)
    with pytest.raises(ValueError, match="the columns of w_q must be shared by its 2 heads"):
        from_safetensors(saved(tmp_path / "h.safetensors", whole), "", heads=2)
    uneven = saved(tmp_path / "u.safetensors", {"in_proj_weight": np.ones((10, 4), "f4"), "out_proj.weight": np.ones((4, 4), "f4")})
    with pytest.raises(ValueError, match="a head must have as many columns in w_q as in w_k"):
        from_safetensors(uneven, "", heads=1)


@pytest.mark.parametrize("module", ["safetensors", "ml_dtypes"])
def test_without_the_extra_it_says_what_to_install(monkeypatch, module):
    pytest.importorskip("ml_dtypes", reason="needs the extra `weights`, to be without a part of it")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"safetensors files need {module}: pip install 'fastattn\[weights\]'"):
        from_safetensors("x.safetensors", "", heads=1)
