"""Every rule of checks.py says the argument, the rule and what was given."""

import numpy as np
import pytest

from fastattn import (
    CrossAttention,
    SelfAttention,
    attention,
    attention_varlen,
    causal,
    compile,
    merge_states,
    rope,
    threads,
    window,
)

x = np.ones((2, 4, 5, 8), "f4")
y = x[0].transpose(1, 0, 2).copy()                  # (T, H, D)


def varlen(cu_q=(0, 5), cu_k=(0, 5), q=y, k=y, v=y, **options):
    return attention_varlen(q, k, v, cu_q, cu_k, **options)


w = np.ones((6, 4), "f4")
layer = SelfAttention(w, w, w, np.ones((4, 5), "f4"), heads=2)
words = np.ones((3, 6), "f4")


def layered(**changes):
    return SelfAttention(**{"w_q": w, "w_k": w, "w_v": w, "w_o": w[:4], "heads": 2} | changes)


def scaled(kind, **entries):
    return rope(scaling={"rope_type": kind, **entries})


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"factor": 8.0, "short_factor": [1.0], "long_factor": [1.0, 2.0], "original_max_position_embeddings": 4}


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


WRONG = [
    (lambda: attention(np.ma.masked_array(x), x, x), TypeError, "q: masked arrays are not supported"),
    (lambda: attention(x[0, 0].view(np.matrix), x[0, 0], x[0, 0]), TypeError, "q must be an array; got a np.matrix"),
    (lambda: attention(x, x.astype(int), x), TypeError, "k must be float32 or float64; got int64"),
    (lambda: attention(x, x, x.astype(object)), TypeError, "v must be float32 or float64; got object"),
    (lambda: attention(x, x, x.astype(complex)), TypeError, "v must be float32 or float64; got complex128"),
    (lambda: attention(x.astype("f2"), x, x), TypeError, r"q must be float32 or float64; got float16; convert it, as in x.astype\(np.float32\)"),
    (lambda: attention([[1.0], [2.0, 3.0]], x, x), ValueError, "q must be an array; its lists differ in length"),
    (lambda: attention("abc", x, x), TypeError, "q must be float32 or float64"),
    (lambda: attention(None, x, x), TypeError, "q must be float32 or float64; got object"),
    (lambda: attention(x, x.astype("f8"), x), TypeError, "one dtype; got float32, float64, float32"),
    (lambda: attention(x, x[0], x), ValueError, r"must all be \(B, H, S, D\), all"),
    (lambda: attention(x[0, 0, 0], x[0, 0, 0], x[0, 0, 0]), ValueError, r"must all be \(B, H, S, D\), all"),
    (lambda: attention(x, x[:1], x[:1]), ValueError, r"one batch size; got q \(2, 4, 5, 8\), k \(1, 4, 5, 8\)"),
    (lambda: attention(x, x, x[:, :2]), ValueError, "same heads and the same keys"),
    (lambda: attention(x, x, x[:, :, :3]), ValueError, "same heads and the same keys"),
    (lambda: attention(x, x[..., :3], x), ValueError, "same channels"),
    (lambda: attention(x, x[:, :3], x[:, :3]), ValueError, "heads of q must be a multiple"),
    (lambda: attention(x, x, x, scale="1"), TypeError, "scale must be a finite number, for float32 at most 1.7e.38; got '1'"),
    (lambda: attention(x, x, x, scale=np.nan), ValueError, "scale must be a finite number, .* got nan"),
    (lambda: attention(x, x, x, scale=10**400), ValueError, "scale must be a finite number"),
    (lambda: attention(x, x, x, scale=True), TypeError, "scale must be a finite number, .* got True"),
    (lambda: attention(x, x, x, scale=3e38), ValueError, "at most 1.7e.38; got 3e.38"),
    (lambda: attention(x, x, x, softcap=0), ValueError, "softcap must be a positive finite number, .* got 0"),
    (lambda: attention(x, x, x, softcap=1e-40), ValueError, "for float32 from 1.2e-38 to 1.7e.38; got 1e-40"),
    (lambda: attention(x, x, x, softcap=[1, 2]), TypeError, "softcap must be a positive finite number, .* got list"),
    (lambda: attention(x, x, x, alibi=[1.0]), ValueError, r"alibi must be \(Hq,\)"),
    (lambda: attention(x, x, x, sink=["a"] * 4), TypeError, "sink must be numbers"),
    (lambda: attention(x, x, x, sink=np.ma.masked_array(np.ones(4))), TypeError, "sink: masked arrays"),
    (lambda: attention(x, x, x, sink=[0, 0, -1e300, 0]), ValueError, "sink must be within the range of float32; got -1e.300"),
    (lambda: attention(x, x, x, bias=np.ones((5, 5))), TypeError, "bias must have q's dtype; got float64"),
    (lambda: attention(x, x, x, bias=np.ones((3, 5), "f4")), ValueError, "bias must broadcast"),
    (lambda: attention(x, x, x, bias=np.ones((1, 2, 4, 5, 5), "f4")), ValueError, "bias must broadcast"),
    (lambda: attention(x, x, x, mask=np.ones((3, 5), bool)), ValueError, "mask must broadcast"),
    (lambda: attention(x, x, x, mask=np.ones((3, 1, 1, 5), bool)), ValueError, "mask must broadcast"),
    (lambda: attention(x, x, x, mask=np.ones((1, 3, 5, 5), bool)), ValueError, "mask must broadcast"),
    (lambda: attention(x, x, x, mask=np.ones((2, 5), bool)), ValueError, r"keys of each sequence are mask\[:, None, None\], padding"),
    (lambda: attention(x, x, x, mask="causal"), TypeError, "not its name, but the mask itself: mask=fastattn.causal"),
    (lambda: attention(x, x, x, mask=window), TypeError, "call it with its arguments: mask=window"),
    (lambda: attention(x, x, x, mask=[causal, window(1)]), TypeError, "several are joined with &"),
    (lambda: ~causal, TypeError, "a mask has no ~; .* invert a boolean array"),
    (lambda: causal | window(3), TypeError, "masks are joined with &"),
    (lambda: np.ones((5, 5), bool) | causal, TypeError, "masks are joined with &"),
    (lambda: compile(channels=-1), ValueError, "channels must be at least 0; got -1"),
    (lambda: compile(dtypes="int32"), TypeError, "dtypes must be float32 or float64; got int32"),
    (lambda: compile(channels=[2.5]), TypeError, "channels must be an integer; got float"),
    (lambda: compile(channels=["a"]), TypeError, "channels must be an integer; got str"),
    (lambda: attention(x, x, x, out=[1]), TypeError, "out must be a plain NumPy array; got list"),
    (lambda: attention(x, x, x, out=np.ma.masked_array(x)), TypeError, "out must be a plain NumPy array; got MaskedArray"),
    (lambda: attention(x, x, x, out=x.astype(">f4")), TypeError, "out must have the dtype of the result, float32, in native byte order; got >f4"),
    (lambda: attention(x, x, x, out=np.zeros(x.shape)), TypeError, "out must have the dtype of the result, float32, .*; got float64"),
    (lambda: attention(x, x, x, out=np.zeros((2, 4, 5, 7), "f4")), ValueError, "out must have the shape of the result"),
    (lambda: attention(x, x, x, out=frozen(x)), ValueError, "out must be writeable"),
    (lambda: attention(x, x, x, out=np.lib.stride_tricks.as_strided(x.copy(), x.shape, (0, 160, 32, 4))), ValueError,
     "out must not overlap itself"),
    # Rows of 8 numbers, 4 apart.
    (lambda: attention(x, x, x, out=np.lib.stride_tricks.as_strided(x.copy(), x.shape, (640, 160, 16, 4))), ValueError,
     "out must not overlap itself"),
    (lambda: attention(x, x, x, threads=0), ValueError, "threads must be at least 1"),
    (lambda: threads("2"), TypeError, "threads must be an int"),
    (lambda: varlen(q=x), ValueError, r"must be packed, \(T, H, D\)"),
    (lambda: varlen(v=y[:3]), ValueError, "same heads and the same keys"),
    (lambda: varlen(q=y.astype("f8")), TypeError, "one dtype"),
    (lambda: varlen(cu_q=[0.0, 5.0]), TypeError, "cu_seqlens_q must be integers; got float64"),
    (lambda: varlen(cu_k=[False, True]), TypeError, "cu_seqlens_k must be integers; got bool"),
    (lambda: varlen(cu_q=5), ValueError, r"cu_seqlens_q must be \(B \+ 1,\)"),
    (lambda: varlen(cu_q=[]), ValueError, r"cu_seqlens_q must be \(B \+ 1,\) with B >= 0; got \(0,\)"),
    (lambda: varlen(cu_q=[1, 5]), ValueError, "cu_seqlens_q must begin with 0; got 1"),
    (lambda: varlen(cu_q=[0, 4, 3], cu_k=[0, 4, 5]), ValueError, "must not decrease; sequence 1 goes from 4 to 3"),
    (lambda: varlen(cu_q=[0, 6]), ValueError, "cu_seqlens_q must end within the 5 rows of q; got 6"),
    (lambda: varlen(cu_k=np.array([0, 2**63 + 1], "u8")), ValueError, "cu_seqlens_k must be below 2.63"),
    (lambda: varlen(cu_q=[0, 2**62]), ValueError, "must end within"),
    (lambda: varlen(cu_q=[0, 2, 5]), ValueError, "must be equally long; got"),
    (lambda: merge_states([], []), ValueError, "as many, and at least one; got 0 and 0"),
    (lambda: merge_states([x], [x]), ValueError, r"outs must have one shape \(..., Dv\)"),
    (lambda: merge_states([x[0, 0, 0, 0]], [x[0, 0, 0, 0]]), ValueError, r"outs must have one shape \(..., Dv\)"),
    (lambda: merge_states([x, x], [x[..., 0], x[..., 0].astype("f8")]), TypeError, "outs and lses must have one dtype"),
    (lambda: compile(dtypes=["int32"]), TypeError, "dtypes must be float32 or float64; got int32"),
    (lambda: layered(heads=0), ValueError, "heads must be at least 1; got 0"),
    (lambda: layered(heads=2.0), TypeError, "heads must be an integer; got float"),
    (lambda: layered(kv_heads=0), ValueError, "kv_heads must be at least 1; got 0"),
    (lambda: layered(heads=3, kv_heads=2), ValueError, "heads must be a multiple of kv_heads; got 3 and 2"),
    (lambda: SelfAttention.random(10, 4), ValueError, "d_model must be a multiple of heads; got 10 and 4"),
    (lambda: SelfAttention.random(0, 4), ValueError, "d_model must be at least 1; got 0"),
    (lambda: SelfAttention.random(8, 4, kv_heads=3), ValueError, "heads must be a multiple of kv_heads; got 4 and 3"),
    (lambda: SelfAttention.random(8, 4, dtype="f2"), TypeError, "dtype must be float32 or float64; got float16"),
    (lambda: layered(w_q=None), TypeError, "w_q must be float32 or float64; got object"),
    (lambda: layered(w_v=w.astype(int)), TypeError, "w_v must be float32 or float64; got int64"),
    (lambda: layered(w_o=w[0]), ValueError, r"weights must be \(numbers of a word, columns\); got w_q \(6, 4\), .* w_o \(4,\)"),
    (lambda: layered(w_q=w[:0], w_k=w[:0], w_v=w[:0]), ValueError, r"weights must be \(numbers of a word, columns\); got w_q \(0, 4\)"),
    (lambda: layered(w_k=w.astype("f8")), TypeError, "weights must have one dtype; got w_q float32, w_k float64, w_v float32"),
    (lambda: layered(w_v=w[:5]), ValueError, r"w_q and w_k and w_v must have as many rows; got .* w_v \(5, 4\)"),
    (lambda: CrossAttention(w, w, w[:5], heads=2), ValueError, r"w_k and w_v must have as many rows; got .* w_v \(5, 4\)"),
    (lambda: layered(heads=4, w_v=w[:, :2]), ValueError, r"the columns of w_v must be shared by its 4 heads; got .* w_v \(6, 2\)"),
    (lambda: layered(w_k=w[:, :0]), ValueError, r"the columns of w_k must be shared by its 2 heads; got .* w_k \(6, 0\)"),
    (lambda: layered(w_k=w[:, :2]), ValueError, r"a head must have as many columns in w_q as in w_k; got 2 and 1, w_q \(6, 4\)"),
    (lambda: layered(w_o=w), ValueError, r"w_o must have a row for each channel of each head, 2 times 2; got .* w_o \(6, 4\)"),
    (lambda: layered(w_o=None, b_o=w[0]), ValueError, "b_o is added to a product with w_o; w_o is None"),
    (lambda: layered(b_k=w[:, 0]), ValueError, r"b_k must be \(4,\), a number for each column of w_k; got \(6,\)"),
    (lambda: layered(b_q=w[0].astype("f8")), TypeError, "b_q must have the weights' dtype; got float64, w_q has float32"),
    (lambda: layer(words[:, :5]), ValueError, r"x must be \(S, 6\) or \(B, S, 6\), as the layer's weights are; got x \(3, 5\)"),
    (lambda: layer(words[0]), ValueError, r"x must be \(S, 6\) or \(B, S, 6\), as the layer's weights are; got x \(6,\)"),
    (lambda: layer(words[None, None]), ValueError, r"x must be .* got x \(1, 1, 3, 6\)"),
    (lambda: layer(words.astype("f8")), TypeError, "x must have the weights' dtype; got float64, the weights have float32"),
    (lambda: layer.project(words[:, :5]), ValueError, r"x must be \(S, 6\) or \(B, S, 6\)"),
    (lambda: layer(words, out=np.empty((3, 6), "f4")), ValueError, r"out must have the shape of the result, \(3, 5\); got \(3, 6\)"),
    (lambda: layer(words, out=np.empty((3, 5))), TypeError, "out must have the dtype of the result, float32, .*; got float64"),
    (lambda: CrossAttention(w, w, w, heads=2)(words, words[None]), ValueError, r"x and y must have one batch size; got x \(3, 6\), y \(1, 3, 6\)"),
    (lambda: CrossAttention(w, w, w, heads=2)(words, words[:, :4]), ValueError, r"y must be \(S, 6\) or \(B, S, 6\), .*; got x \(3, 6\), y \(3, 4\)"),
    (lambda: rope(1), ValueError, "theta must be a finite number above 1; got 1"),
    (lambda: rope("10"), TypeError, "theta must be a finite number above 1; got '10'"),
    (lambda: rope(5.0, {"rope_theta": 6.0}), ValueError, "theta must not be another than the scaling's rope_theta; got 5.0 and 6.0"),
    (lambda: rope(channels=3), ValueError, "channels must be even, as they are turned in pairs; got 3"),
    (lambda: rope(channels=0), ValueError, "channels must be at least 2; got 0"),
    (lambda: rope(channels=2, scaling={"partial_rotary_factor": 0.5}), ValueError, "channels must not be given where the scaling has a partial_rotary_factor; got 2"),
    (lambda: rope(scaling="linear"), TypeError, "scaling must be a dictionary, as config.json has it; got str"),
    (lambda: rope(scaling=4.0), TypeError, "scaling must be a dictionary, as config.json has it; got float"),
    (lambda: scaled("su"), ValueError, "scaling's rope_type must be one of default, linear, dynamic, llama3, yarn, longrope; got 'su'"),
    (lambda: rope(scaling={"type": ["yarn"]}), ValueError, r"scaling's rope_type must be one of .*; got \['yarn'\]"),
    (lambda: scaled("linear"), ValueError, "scaling of rope_type 'linear' must have factor; got nothing"),
    (lambda: scaled("yarn", factor=2.0), ValueError, "scaling of rope_type 'yarn' must have original_max_position_embeddings; got factor"),
    (lambda: scaled("yarn", original_max_position_embeddings=64), ValueError, "scaling of rope_type 'yarn' must have factor; got original_max"),
    (lambda: scaled("linear", factor=2.0, mrope_section=[1]), ValueError, "scaling of rope_type 'linear' may have rope_theta, partial_rotary_factor, factor; got mrope_section"),
    (lambda: scaled("linear", factor=0), ValueError, "scaling's factor must be a positive finite number; got 0"),
    (lambda: scaled("linear", factor=[2.0]), TypeError, "scaling's factor must be a positive finite number; got list"),
    (lambda: scaled("dynamic", factor=2.0, max_position_embeddings=-1), ValueError, "scaling's max_position_embeddings must be a positive finite number; got -1"),
    (lambda: scaled("dynamic", factor=2.0, original_max_position_embeddings=1), ValueError, "scaling's original_max_position_embeddings must be a finite number above 1; got 1"),
    (lambda: scaled("yarn", max_position_embeddings=9, original_max_position_embeddings=0.0), ValueError, "scaling of rope_type 'yarn' must have factor"),
    (lambda: scaled("yarn", max_position_embeddings=9, original_max_position_embeddings="x"), TypeError, "scaling's original_max_position_embeddings must be"),
    (lambda: scaled("yarn", factor=2.0, original_max_position_embeddings=64, mscale=-1), ValueError, "scaling's mscale must be a finite number, not negative; got -1"),
    (lambda: scaled("llama3", **LLAMA3 | {"low_freq_factor": 4}), ValueError, "scaling's low_freq_factor must be below its high_freq_factor; got 4.0 and 4.0"),
    (lambda: scaled("longrope", **LONG | {"long_factor": 3.0}), TypeError, "scaling's long_factor must be a list, a number for each pair of channels; got float"),
    (lambda: scaled("longrope", **LONG | {"long_factor": [0.0]}), ValueError, "each of scaling's long_factor must be a positive finite number; got 0"),
    (lambda: scaled("longrope", **LONG)(words), ValueError, "scaling's short_factor must have a number for each pair of the 6 channels that are turned; got 1"),
    (lambda: scaled("longrope", **LONG)(words, [7, 8, 9]), ValueError, "scaling's long_factor must have a number for each pair of the 6 channels that are turned; got 2"),
    (lambda: rope(scaling={"partial_rotary_factor": 1.5}), ValueError, "scaling's partial_rotary_factor must be above 0 and at most 1; got 1.5"),
    (lambda: rope()(words[0]), ValueError, r"x must be \(..., S, D\); got \(6,\)"),
    (lambda: rope()(words.astype(int)), TypeError, "x must be float32 or float64; got int64"),
    (lambda: rope()(words[:, :5]), ValueError, r"D must be even, or `channels` say how many are turned, in pairs; got 5 for x \(3, 5\)"),
    (lambda: rope(channels=8)(words), ValueError, r"channels must be at most D; got 8 for x \(3, 6\)"),
    (lambda: rope()(words, [0, 1]), ValueError, r"positions must be \(S,\) or \(B, S\) for x \(B, ..., S, D\); got \(2,\) for x \(3, 6\)"),
    (lambda: rope()(words, [[0, 1, 2]]), ValueError, r"positions must be \(S,\) or \(B, S\) .*; got \(1, 3\) for x \(3, 6\)"),
    (lambda: rope()(words, [[0, 1, 2]] * 3), ValueError, r"positions must be .*; got \(3, 3\) for x \(3, 6\)"),
    (lambda: rope()(words[None], [[0, 1, 2]] * 2), ValueError, r"positions must be .*; got \(2, 3\) for x \(1, 3, 6\)"),
    (lambda: rope()(words, [0.0, 1.0, 2.0]), TypeError, "positions must be integers; got float64"),
    (lambda: rope()(words, [0, 1, 2**28 + 1]), ValueError, r"positions must be from -2\^28 to 2\^28; got 268435457"),
    (lambda: rope()(words, [0, -(2**62), 1]), ValueError, r"positions must be from -2\^28 to 2\^28; got -4611686018427387904"),
    (lambda: rope()(words, out=words[:2]), ValueError, r"out must have the shape of the result, \(3, 6\); got \(2, 6\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_what_does_not_fit_says_why(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_hostile_cu_seqlens_are_refused():
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(5000):
        starts = np.sort(rng.integers(0, 6, rng.integers(1, 5)))
        starts[0] = 0
        bad = starts.copy()
        how = rng.integers(4)
        if how == 0:
            bad[0] = rng.choice([-1, 1, 2**40])
        elif how == 1:
            bad[-1] = rng.choice([6, 2**31, 2**62, -(2**62)])
        elif how == 2:
            bad = np.append(bad, -1)
        else:
            bad = np.append(bad, [5, 4])
        with pytest.raises(ValueError, match="cu_seqlens_"):
            varlen(*((bad, starts) if rng.integers(2) else (starts, bad)))
        refused += 1
    assert refused == 5000
