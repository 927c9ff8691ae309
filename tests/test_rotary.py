"""Rotary embeddings are the reference's rotations, wherever the numbers lie, and what Hugging Face's models compute."""

import copy
import itertools
import pickle
import threading

import numpy as np
import numpy.testing as npt
import pytest

import reference
from fastattn import SelfAttention, attention, rope, rotary
from fastattn.fpu import swapped_state
from fastattn.machine import TARGET
from fastattn.rotary import frequencies_of
from tests.bounds import u
from tests.problems import DTYPES, F32, F64, L, laid_out, numbers

both = pytest.mark.parametrize("dtype", DTYPES, ids=str)
pairings = pytest.mark.parametrize("interleaved", [False, True])

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.5, 2.0, 4.0], "long_factor": [1.0, 3.0, 9.0, 27.0]}
LONGER = {name: x for name, x in LONG.items() if name != "factor"} | {"max_position_embeddings": 40, "original_max_position_embeddings": 5}
SCALINGS = [
    None,
    {"rope_type": "default", "rope_theta": 500.0},
    {"type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 6},
    {"rope_type": "dynamic", "factor": 3, "max_position_embeddings": 1000},
    LLAMA3,
    YARN,
    YARN | {"factor": 16.0, "original_max_position_embeddings": 64, "beta_fast": 8, "beta_slow": 2, "truncate": False},
    YARN | {"factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.2},
    YARN | {"factor": 40.0, "mscale": 0.7},
    YARN | {"original_max_position_embeddings": 4096, "rope_theta": 10.0, "beta_fast": 1000},     # the ramp ends behind the last pair
    YARN | {"beta_fast": 4, "beta_slow": 4, "truncate": False},                         # it has no length
    YARN | {"beta_fast": 30, "beta_slow": 25, "original_max_position_embeddings": 128},  # it lies before the first pair
    YARN | {"factor": 0.5, "attention_factor": None},
    {"rope_type": "yarn", "max_position_embeddings": 512, "original_max_position_embeddings": 64, "attention_factor": 0.8},
    LONG,
    LONGER,
    LONG | {"factor": 0.5},
    LONG | {"attention_factor": 1.5, "partial_rotary_factor": 0.5},
]


def close(ours, theirs, x, far=0, factor=1.0):
    """cos and sin are rounded, and so are two products and their sum: 4 u of what is added; two roundings of the angle."""
    length = np.sqrt((np.asarray(x, float) ** 2).sum(-1, keepdims=True)) if x.size else np.ones(1)
    assert ours.shape == theirs.shape
    assert (np.abs(ours - theirs) <= factor * 1.5 * (4 * u(x.dtype) + far * u(F64) * 4 + 8 * u(F64)) * length).all()


# ---- the formula -------------------------------------------------------------------------------------------------------------
@both
@pairings
def test_any_number_of_channels_is_turned_as_the_reference_says(dtype, interleaved):
    rng, most = np.random.default_rng(0), 4 * L(dtype) + 6
    for D in range(most):
        for n in {D - D % 2, D // 2 // 2 * 2, 2} - {0}:
            if n > D:
                continue
            x, turn = numbers(rng, (3, 5, D), dtype), {"channels": n, "interleaved": interleaved}
            y = rope(**turn)(x)
            assert y.dtype == dtype
            close(y, reference.rope(**turn)(x), x, 5)
            npt.assert_array_equal(y[..., n:], x[..., n:])


@both
@pairings
@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_scaling_is_the_references(scaling, interleaved, dtype):
    partial = 0.5 if scaling and "partial_rotary_factor" in scaling else 1
    rng = np.random.default_rng(1)
    x = numbers(rng, (2, 3, 50, int(8 / partial)), dtype)
    theirs = None if scaling is None else {name: value for name, value in scaling.items() if value is not None}
    for positions in (None, np.arange(50) + 14, rng.integers(0, 70, 50), rng.integers(0, 500, (2, 50))):       # 63: LONG's last
        turn = rope(scaling=scaling, interleaved=interleaved)
        wanted = reference.rope(scaling=theirs, interleaved=interleaved)(x, positions)
        close(turn(x, positions), wanted, x, 500, factor=2.0)


@both
@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 5, 8), (2, 3, 2, 5, 8), (1, 5, 8), (1, 1, 1, 8), (2, 70, 8), (40, 2, 33, 8)])
def test_any_leading_axes_and_positions_of_all_or_of_each_item(shape, dtype):
    rng = np.random.default_rng(2)
    x = numbers(rng, shape, dtype)
    kinds = [None, rng.integers(-99, 99, shape[-2])] + ([rng.integers(-99, 99, (shape[0], shape[-2]))] if len(shape) > 2 else [])
    for positions in kinds:
        close(rope()(x, positions), reference.rope()(x, positions), x, 99)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (0, 3, 4, 8), (2, 0, 4, 8), (2, 3, 0), (0, 0, 0, 0), (0, 2, 2, 3, 4)])
def test_nothing_gives_nothing(shape):
    x = np.zeros(shape, F32)
    for y in (rope()(x), rope()(x, np.arange(shape[-2])), rope()(x, out=x), reference.rope()(x)):
        assert y.shape == shape


@both
def test_a_position_without_scaling_adds_nothing_at_0_and_keeps_lengths_everywhere(dtype):
    x = numbers(np.random.default_rng(3), (2, 3, 9, 14), dtype)
    npt.assert_array_equal(rope()(x, np.zeros(9, int)), x)
    for turn, interleaved in itertools.product([{}, {"theta": 50.0}, {"scaling": LLAMA3}], [False, True]):
        y = rope(**turn, interleaved=interleaved)(x, np.arange(9) * 1000)
        npt.assert_allclose((y * y).sum(-1), (x * x).sum(-1), rtol=40 * u(dtype))


@pairings
def test_a_score_depends_on_how_far_apart_words_are(interleaved):
    q, k = numbers(np.random.default_rng(4), (2, 1, 64), F64)
    turn = rope(interleaved=interleaved)

    def score(i, j):
        return (turn(q, [i]) * turn(k, [j])).sum()

    for i, j, shift in itertools.product([0, 1, 7], [0, 3], [1, 100, 12345]):
        npt.assert_allclose(score(i + shift, j + shift), score(i, j), rtol=0, atol=64 * 12345 * u(F64) * 4)
    assert abs(score(1, 0) - score(0, 0)) > 0.01
    assert abs(score(0, 1) - score(1, 0)) > 0.01


def test_the_first_pair_turns_by_one_from_word_to_word_and_the_last_hardly():
    # Worked by hand: theta 100 and four channels, so frequencies 1 and 1 / 10.
    x = np.array([[1.0, 0, 0, 2]] * 3)
    angle = np.arange(3)
    wanted = np.stack([np.cos(angle), -2 * np.sin(angle / 10), np.sin(angle), 2 * np.cos(angle / 10)], 1)
    npt.assert_allclose(rope(100.0)(x), wanted, rtol=0, atol=8 * u(F64))
    wanted = np.stack([np.cos(angle), np.sin(angle), -2 * np.sin(angle / 10), 2 * np.cos(angle / 10)], 1)
    npt.assert_allclose(rope(100.0, interleaved=True)(x), wanted, rtol=0, atol=8 * u(F64))


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="long double is float64 here: nothing to compare with")
@both
def test_far_positions_are_as_exact_as_near_ones(dtype):
    p, c = np.array([1, 1000, 2**20 + 1, 2**28]), np.arange(8)
    x = np.repeat(np.r_[np.ones(8), np.zeros(8)].astype(dtype)[None], len(p), 0)            # pairs (1, 0)
    angle = p[:, None] * np.longdouble(10000) ** (-2 * c / np.longdouble(16))
    wanted = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    error = np.abs(rope()(x, p) - wanted) / (u(dtype) + 3 * u(F64) + 3 * p[:, None] * u(F64))
    assert error.max() < 1


def test_a_table_is_remembered_and_two_are_not_mixed_up():
    x = numbers(np.random.default_rng(5), (2, 6, 16), F32)
    rotary._table.cache_clear()
    turns = [rope(), rope(99.0), rope(channels=8), rope(interleaved=True), rope(scaling={"rope_type": "linear", "factor": 2.0})]
    places = [None, np.arange(6), np.arange(6)[::-1], np.arange(12).reshape(2, 6), np.arange(12)[::-1].reshape(2, 6)]
    before = [[turn(part, at) for turn in turns for part in (x, x.astype(F64), x[:, :3])
               for at in places if at is None or at.shape[-1] == part.shape[1]] for _ in range(2)]
    for one, other in zip(*before, strict=True):
        npt.assert_array_equal(one, other)
    assert rotary._table.cache_info().currsize == rotary.TABLES
    again = rotary._table.cache_info().hits
    rope()(x[:, :3].astype(F64))
    rope()(x[:, :3].astype(F64))
    assert rotary._table.cache_info().hits > again


# ---- where numbers lie ---------------------------------------------------------------------------------------------------------
@both
@pairings
@pytest.mark.parametrize("kind", ["plain", "transposed", "gaps", "backwards", "fortran"])
@pytest.mark.parametrize("n", [None, 6])
def test_layouts_do_not_matter_in_place_or_not(kind, n, interleaved, dtype):
    rng = np.random.default_rng(6)
    x = numbers(rng, (2, 3, 35, 2 * L(dtype) + 2), dtype)
    turn = rope(channels=n, interleaved=interleaved)
    wanted, there = turn(x), laid_out(rng, x, kind)
    npt.assert_array_equal(turn(there), wanted)
    for out_kind in ("plain", "transposed", "gaps", "backwards", "fortran"):
        out = laid_out(rng, np.zeros_like(x), out_kind)
        assert turn(there, out=out) is out
        npt.assert_array_equal(out, wanted)
    before = there.copy()
    npt.assert_array_equal(there, before)
    assert turn(there, out=there) is there
    npt.assert_array_equal(there, wanted)


def test_out_that_overlaps_is_as_if_it_did_not():
    memory = np.zeros(2000, F32)
    views = [memory[start:start + 2 * 16 * 12].reshape(2, 16, 12) for start in (0, 1, 12, 12 * 16)]
    views += [memory[:2 * 16 * 24].reshape(2, 16, 24)[..., n:n + 12] for n in (0, 3)] + [memory[:384].reshape(2, 16, 12)[:, ::-1]]
    for x, out in itertools.product(views, views):
        x[...] = numbers(np.random.default_rng(7), x.shape, F32)
        wanted = rope()(x.copy())
        assert rope()(x, out=out) is out
        npt.assert_array_equal(out, wanted)


def test_what_repeats_itself_and_what_is_unaligned_or_swapped():
    x = numbers(np.random.default_rng(8), (1, 9, 12), F32)
    wanted = rope()(x)
    npt.assert_array_equal(rope()(np.broadcast_to(x, (4, 9, 12))), np.repeat(wanted, 4, 0))
    npt.assert_array_equal(rope()(x.astype(">f4")), wanted)
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(F32).reshape(x.shape)
    raw[...] = x
    assert rope()(raw, out=raw) is raw
    npt.assert_array_equal(raw, wanted)
    npt.assert_array_equal(rope()(x.tolist()), rope()(x.astype(F64)))


def test_long_arrays_are_taken_in_slices(monkeypatch):
    x = numbers(np.random.default_rng(9), (5, 2, 100, 8), F32)
    wanted = rope()(x)
    for size in (1, 3 * 32 * 2 * 8 * 4):
        monkeypatch.setattr("fastattn.passes.turn.SLICE_BYTES", size)
        npt.assert_array_equal(rope()(x), wanted)
        y = x.copy()
        npt.assert_array_equal(rope()(y, out=y), wanted)                    # nothing is turned twice


@both
def test_nan_and_inf_stay_in_their_pair(dtype):
    x = numbers(np.random.default_rng(10), (4, 20), dtype)
    for interleaved, pair in ((False, [3, 13]), (True, [2, 3])):
        turn, wrong = rope(interleaved=interleaved), x.copy()
        wrong[:, 3] = np.nan
        found = turn(wrong)
        npt.assert_array_equal(np.flatnonzero(np.isnan(found).any(0)), pair)
        npt.assert_array_equal(np.delete(found, pair, 1), np.delete(turn(x), pair, 1))


# ---- anyone, anytime -------------------------------------------------------------------------------------------------------------
def test_objects_that_are_made_alike_are_equal_and_survive_copying():
    one = rope(500.0, LONG, interleaved=True)
    for other in (rope(500.0, dict(LONG), interleaved=True), pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert other == one
        assert hash(other) == hash(one)
        npt.assert_array_equal(other(np.ones((3, 8))), one(np.ones((3, 8))))
    assert len({one, rope(500.0), rope(500.0, channels=2), rope(), rope(10000.0), rope(scaling={"rope_type": "default"})}) == 4
    assert eval(repr(one)) == one
    with pytest.raises(AttributeError):
        one.theta = 3.0


def test_a_dictionary_that_changes_later_changes_nothing():
    scaling = {"rope_type": "linear", "factor": 2.0}
    turn, x = rope(scaling=scaling), np.ones((3, 8))
    before = turn(x)
    scaling["factor"] = 3.0
    npt.assert_array_equal(turn(x), before)
    assert "type" not in scaling


def test_threads_at_the_same_time_get_the_same_bits():
    x = numbers(np.random.default_rng(11), (4, 3, 64, 32), F32)
    turns = [rope(scaling={"rope_type": "linear", "factor": 1.0 + n}) for n in range(12)]
    wanted, found = [turn(x) for turn in turns], []

    def work():
        found.append([turn(x) for _ in range(5) for turn in turns])

    several = [threading.Thread(target=work) for _ in range(4)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert len(found) == 4
    for results in found:
        for result, right in zip(results, wanted * 5, strict=True):
            npt.assert_array_equal(result, right)


@pytest.mark.skipif(not TARGET.is_x86, reason="the bits of a rounding mode are x86's")
@pytest.mark.parametrize("mode", [0x3F80, 0x5F80, 0x7F80, 0x9FC0])
def test_the_callers_rounding_mode_changes_no_bit(mode):
    x = numbers(np.random.default_rng(12), (3, 40, 16), F32)
    turn, swap = rope(), swapped_state()
    wanted = turn(x)
    rotary._table.cache_clear()
    before = swap(mode)
    try:
        found = turn(x)
    finally:
        swap(before)
    npt.assert_array_equal(found, wanted)


# ---- in a layer ------------------------------------------------------------------------------------------------------------------
@both
@pytest.mark.parametrize("shape", [(9, 24), (2, 9, 24)])
def test_a_layer_turns_q_and_k(shape, dtype):
    x = numbers(np.random.default_rng(13), shape, dtype)
    turn = rope(50.0, channels=4)
    plain, turning = (SelfAttention.random(24, 4, kv_heads=2, dtype=dtype, rope=way) for way in (None, turn))
    theirs = reference.SelfAttention.random(24, 4, kv_heads=2, dtype=dtype, rope=reference.rope(50.0, channels=4))
    for positions in (None, np.arange(9) + 7, np.array([np.arange(9) + 3, np.arange(9)[::-1]])[:len(shape) - 1]):
        if positions is not None and positions.ndim == 2 and len(shape) == 2:
            continue
        q, k, v = plain.project(x)
        q, k = turn(q, positions), turn(k, positions)
        for found, wanted in zip(turning.project(x, positions=positions), (q, k, v), strict=True):
            npt.assert_array_equal(found, wanted)
        npt.assert_allclose(turning(x, positions=positions), theirs(x, positions=positions), rtol=0, atol=100 * u(dtype))
        assert np.abs(turning(x, positions=positions) - plain(x)).max() > 0.01


def test_only_distances_matter_to_a_layer():
    x = numbers(np.random.default_rng(14), (9, 24), F64)
    layer = SelfAttention.random(24, 4, dtype=F64, rope=rope())
    npt.assert_allclose(layer(x, positions=np.arange(9) + 1000), layer(x), rtol=0, atol=1e-11)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------------------
def llama(scaling, D=8):
    """A configuration with that dictionary."""
    transformers = pytest.importorskip("transformers", reason="needs transformers and torch")
    pytest.importorskip("torch", reason="needs transformers and torch")
    scaling = {"rope_theta": 10000.0, "rope_type": "default", **(scaling or {})}
    most = scaling.pop("max_position_embeddings", 128)
    if scaling["rope_type"] == "yarn":
        scaling.setdefault("factor", None)                                  # must be there, though it may be None
    return transformers.LlamaConfig(hidden_size=4 * D, num_attention_heads=4, max_position_embeddings=most,
                                    rope_parameters=scaling)


@pytest.mark.parametrize("length", [4, 50, 64, 65, 2000])         # LONG changes behind 64
@pytest.mark.parametrize("scaling", SCALINGS[2:])
def test_frequencies_are_transformers(scaling, length):
    config = llama(scaling | {"rope_type": scaling.get("rope_type", "linear")}, D=16 if "partial_rotary_factor" in scaling else 8)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if scaling.get("rope_type") == "dynamic":
        config.max_position_embeddings = scaling.get("original_max_position_embeddings", config.max_position_embeddings)
    wanted, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, "cpu", seq_len=length)
    found, ours = frequencies_of(rope(scaling=scaling), 8, length)
    # Theirs is in float32, where theta^(-2c/n) errs by some units.
    npt.assert_allclose(found, wanted.numpy(), rtol=2e-6)
    npt.assert_allclose(ours, factor, rtol=1e-12)


@pytest.mark.parametrize("scaling", [None, LLAMA3, YARN, LONG, LONGER])
def test_q_and_k_are_turned_as_in_llama(scaling):
    config = llama(scaling)
    import torch
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    rng = np.random.default_rng(15)
    q, k = numbers(rng, (2, 4, 50, 8), F32), numbers(rng, (2, 2, 50, 8), F32)
    positions = np.stack([np.arange(50), np.arange(50) + 9])
    cos, sin = LlamaRotaryEmbedding(config)(torch.from_numpy(q), torch.from_numpy(positions))
    wanted = apply_rotary_pos_emb(torch.from_numpy(q), torch.from_numpy(k), cos, sin)
    turn = rope(scaling=scaling)
    for ours, theirs in zip((turn(q, positions), turn(k, positions)), wanted, strict=True):
        # Their angles are in float32: 59 times 2^-24 and the frequency's error.
        npt.assert_allclose(ours, theirs.numpy(), rtol=0, atol=4 * 59 * 4 * 2.0**-24)


def test_interleaved_pairs_are_gpt_js():
    pytest.importorskip("transformers", reason="needs transformers and torch")
    torch = pytest.importorskip("torch", reason="needs transformers and torch")
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb, create_sinusoidal_positions

    x = numbers(np.random.default_rng(16), (2, 9, 4, 12), F32)                              # (B, S, H, D)
    sin, cos = torch.split(create_sinusoidal_positions(9, 8), 4, dim=-1)
    turned = apply_rotary_pos_emb(torch.from_numpy(x[..., :8]), sin[None], cos[None]).numpy()
    ours = rope(channels=8, interleaved=True)(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    npt.assert_allclose(ours, np.concatenate([turned, x[..., 8:]], -1), rtol=0, atol=4 * 9 * 4 * 2.0**-24)


def test_configurations_of_transformers_are_taken_as_they_are():
    config = llama({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 777.0})
    turn = rope(scaling=config.rope_parameters)
    assert turn.theta == 777
    assert turn == rope(777.0, {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32})


def test_attention_over_turned_heads_is_the_references():
    q, k, v = numbers(np.random.default_rng(17), (3, 2, 3, 40, 16), F32)
    turn, theirs = rope(), reference.rope()
    npt.assert_allclose(attention(turn(q), turn(k), v), reference.attention(theirs(q), theirs(k), v), rtol=0, atol=1e-5)
