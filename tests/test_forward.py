"""`attention` against the formula: within the bound of tests/bounds.py whatever the problem, and as good as plain NumPy."""

import itertools
import math

import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastattn
import reference
from fastattn import attention, causal, window
from fastattn.passes import launch
from fastattn.passes.launch import is_decode
from tests.bounds import exact, naive, ratio, sharp, units, usual_units
from tests.problems import (
    DTYPES,
    F32,
    F64,
    L,
    Problem,
    W,
    edges,
    few_channels,
    laid_out,
    many_channels,
    numbers,
    problem,
    underflowing,
)

both = pytest.mark.parametrize("dtype", DTYPES, ids=str)
exact_types = [d for d in DTYPES if sharp(d)]           # without a type wider than float64, float64 has no exact result


def share(p, **more):
    """The largest error of a problem's result as a share of the bound."""
    return ratio(*p.run(**more), exact(p.q, p.k, p.v, **p.formula))


def arrays(seed, B=1, Hq=1, Hkv=1, Sq=5, Sk=7, D=8, Dv=3, dtype=F32, size=1.0):
    rng = np.random.default_rng(seed)
    return (numbers(rng, (B, Hq, Sq, D), dtype, size), numbers(rng, (B, Hkv, Sk, D), dtype),
            numbers(rng, (B, Hkv, Sk, Dv), dtype))


# ---- right within the bound ----------------------------------------------------------------------------------------------
def fuzz(seed, count, make):
    rng, worst = np.random.default_rng(seed), 0.0
    for _ in range(count):
        p = make(rng)
        if p.q.dtype in exact_types:
            found = share(p)
            assert found <= 1, f"{found:.3g} times the bound: q {p.q.shape}, k {p.k.shape}, v {p.v.shape}, {p.options}"
            worst = max(worst, found)
    return worst


@pytest.mark.parametrize("seed", range(4))
def test_random_problems_are_within_the_bound(seed, record_property):
    record_property("worst share of the bound", fuzz(seed, 5000, problem))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(100, 200))
def test_a_million_random_problems_are_within_the_bound(seed, record_property):
    record_property("worst share of the bound", fuzz(seed, 10_000, problem))


def test_random_problems_of_many_keys_are_within_the_bound(record_property):
    # Past 2048 and 4096 keys, where sums go to the third level, with whatever mask and options.
    record_property("worst share of the bound", fuzz(6, 200, lambda rng: problem(rng, dtype=F32, keys=5000)))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20, 30))
def test_random_problems_of_many_keys_are_within_the_bound_at_length(seed, record_property):
    record_property("worst share of the bound", fuzz(seed, 1000, lambda rng: problem(rng, dtype=F32, keys=5000)))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_larger_random_problems_are_within_the_bound(seed):
    fuzz(seed, 500, lambda rng: problem(rng, most=600))


def test_tiny_v_and_tiny_weights_are_within_the_bound():
    rng = np.random.default_rng(5)
    for _ in range(1000):
        p = underflowing(rng, exact_types[rng.integers(0, len(exact_types))])
        assert share(p) <= 1


@given(st.data())
def test_any_shape_is_within_the_bound(data):
    dtype = data.draw(st.sampled_from(exact_types))
    size = st.one_of(st.sampled_from(edges(dtype)), st.integers(0, 200))
    Sq, Sk, D = (data.draw(size, label=name) for name in ("Sq", "Sk", "D"))
    B, Hkv, group = (data.draw(st.integers(0, 3), label=name) for name in ("B", "Hkv", "group"))
    Dv = data.draw(st.sampled_from([*few_channels(dtype), many_channels(dtype), 0]), label="Dv")
    mask = data.draw(st.sampled_from([None, causal, window(3, 3), causal & window(70)]), label="mask")
    q, k, v = arrays(data.draw(st.integers(0, 9)), B, Hkv * group, Hkv, Sq, Sk, D, Dv, dtype)
    assert share(Problem(q, k, v, {"mask": mask})) <= 1


def online(q, k, v, lost_keys=0, lost_rescale=False):
    """Attention block by block in NumPy, as the kernels do it, with their possible mistakes."""
    scale, N = q.dtype.type(1 / math.sqrt(q.shape[3])), k.shape[2]
    m, l, o = np.full((*q.shape[:3], 1), -np.inf, q.dtype), 0, 0
    for j in range(0, N, 64):
        keys = slice(j, min(j + 64, N - lost_keys if j + 64 >= N else N))
        s = q @ k[:, :, keys].swapaxes(2, 3) * scale
        new = np.maximum(m, s.max(3, keepdims=True, initial=-np.inf))
        p, factor = np.exp(s - new), np.exp(m - new)
        l = l * factor + p.sum(3, keepdims=True)
        o = (o if lost_rescale else o * factor) + p @ v[:, :, keys]
        m = new
    return o / l


def test_wrong_code_is_outside_the_bound():
    rng, outside = np.random.default_rng(1), {"right": 0, "last key": 0, "rescale": 0}
    for _ in range(100):
        q, k, v = arrays(int(rng.integers(1 << 30)), Sq=2, Sk=int(rng.integers(70, 400)), D=16)
        wanted = exact(q, k, v)
        outside["right"] += ratio(online(q, k, v), None, wanted) > 1
        outside["last key"] += ratio(online(q, k, v, lost_keys=1), None, wanted) > 1
        outside["rescale"] += ratio(online(q, k, v, lost_rescale=True), None, wanted) > 1
    assert outside["right"] == 0
    assert outside["last key"] > 90
    assert outside["rescale"] > 80


# ---- as good as plain NumPy ----------------------------------------------------------------------------------------------
# The largest of 4,096 or more errors, as the largest of a few is luck: NumPy's may be 0.
GOOD = [(1, 4, 2, 64, 64, 32), (1, 1, 1, 300, 1000, 64), (2, 2, 2, 64, 500, 128), (1, 2, 1, 65, 129, 7), (1, 1, 1, 128, 3000, 80)]


@pytest.mark.parametrize("dtype", exact_types, ids=str)
@pytest.mark.parametrize("size", [0.05, 1, 4], ids=["flat", "normal", "peaky"])
@pytest.mark.parametrize("shape", GOOD, ids=str)
def test_at_most_twice_the_error_of_plain_numpy(shape, size, dtype):
    B, Hq, Hkv, Sq, Sk, D = shape
    if dtype != F32 and Sk > 1000:
        Sk = 600                                        # long double has no BLAS
    Dv = many_channels(dtype)
    q, k, v = arrays(3, B, Hq, Hkv, Sq, Sk, D, Dv, dtype, size)
    v = np.abs(v) if size < 1 else v
    for options in ({}, {"mask": causal}, {"softcap": 2.0, "bias": numbers(np.random.default_rng(0), (Sq, Sk), dtype)}):
        p = Problem(q, k, v, options)
        wanted = exact(q, k, v, **p.formula)
        assert units(attention(q, k, v, **options), wanted) <= 2 * units(naive(q, k, v, **p.formula), wanted) + 4


def against_numpy(seed, count):
    """The largest of the usual errors of random problems as a share of twice NumPy's and 2 u."""
    rng, worst = np.random.default_rng(seed), 0.0
    while count:
        p = problem(rng, dtype=F32, most=150, plain=True)
        if p.q[..., :1].size < 500 or not p.k.size:
            continue
        # What is added to scores, and a sink that outweighs all keys, make errors of any size; the bound is for those.
        p.options = {name: x for name, x in p.options.items() if name in ("mask", "softcap", "scale")}
        p.q *= rng.choice(np.array([0.05, 1, 4], F32))
        wanted = exact(p.q, p.k, p.v, **p.formula)
        ours, numpys = (usual_units(o, wanted) for o in (p.run()[0], naive(p.q, p.k, p.v, **p.formula)))
        found = ours / (2 * numpys + 2)
        assert found <= 1, f"{ours:.3g} u, NumPy {numpys:.3g} u: q {p.q.shape}, k {p.k.shape}, v {p.v.shape}, {p.options}"
        worst, count = max(worst, found), count - 1
    return worst


def test_random_problems_err_as_plain_numpy_does(record_property):
    record_property("worst share of twice NumPy's error and 2 u", against_numpy(0, 200))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10, 20))
def test_random_problems_err_as_plain_numpy_does_at_length(seed, record_property):
    record_property("worst share of twice NumPy's error and 2 u", against_numpy(seed, 2000))


def long(size):
    q, k, v = arrays(11, Sq=32, Sk=65_536, D=64, Dv=4 * L(F32), size=size)
    return q, k, np.abs(v) if size < 1 else v


@pytest.mark.parametrize(("size", "most"), [(4, 64), (0.05, 32), (1, 8)], ids=["peaky", "flat", "normal"])
def test_65536_keys(size, most, record_property):
    q, k, v = long(size)
    found = units(attention(q, k, v), exact(q, k, v))
    record_property("error in u sum p|v|", found)
    assert found <= most


def test_one_chain_of_65536_sums_errs_more():
    q, k, v = long(0.05)
    q, v = q[:, :, :2], v[..., :4]
    p = np.exp(q @ k.swapaxes(2, 3) * F32.type(0.125))
    chain = np.add.accumulate(p[..., None] * v[:, :, None], axis=3)[:, :, :, -1]
    l = np.add.accumulate(p, axis=3)[..., -1:]
    assert units(chain / l, exact(q, k, v)) > 32


# ---- every option, every shape, against the reference -------------------------------------------------------------------
rng = np.random.default_rng(0)
MASKS = {
    "none": lambda m, Sq, Sk: None,
    "causal": lambda m, Sq, Sk: m.causal,
    "top left": lambda m, Sq, Sk: m.causal_top_left,
    "window": lambda m, Sq, Sk: m.window(2, 1),
    "sliding": lambda m, Sq, Sk: m.causal & m.window(17),
    "lengths": lambda m, Sq, Sk: m.lengths([Sk // 2, Sk]),
    "ragged causal": lambda m, Sq, Sk: m.causal & m.lengths([Sk // 2, Sk - Sk // 3], [Sq, Sq // 2]),
    "prefix": lambda m, Sq, Sk: m.prefix(Sk // 3),
    "packed": lambda m, Sq, Sk: m.packed(np.arange(Sk) // 5) if Sq == Sk else m.causal,
    "bool": lambda m, Sq, Sk: np.random.default_rng(1).random((2, 1, Sq, Sk)) < 0.5,
    "bool of heads": lambda m, Sq, Sk: m.causal & (np.random.default_rng(1).random((4, 1, Sk)) < 0.5),
    "nothing": lambda m, Sq, Sk: np.zeros((1, 1), bool),
}
PIECES = {
    "plain": {},
    "alibi": {"alibi": [0.5, 0.25, 0.125, 0.0625]},
    "softcap": {"softcap": 1.5},
    "sink": {"sink": [0.5, -1.0, 2.0, 0.0]},
    "bias": {"bias": (1, 4, -1, -1)},
    "bias of keys": {"bias": (-1,)},
    "bias of queries": {"bias": (2, 1, -1, 1)},
    "scale": {"scale": -0.7},
    "all": {"alibi": [0.5, 0.25, 0.125, 0.0625], "softcap": 3.0, "sink": [0.5, -1.0, 2.0, 0.0], "bias": (4, -1, -1), "scale": 0.9},
}


def with_bias(pieces, Sq, Sk, dtype):
    """The options, a bias of the shape that stands there, -1 being Sq and Sk; with a few -inf."""
    if "bias" not in pieces:
        return pieces
    shape = list(pieces["bias"])
    shape = [Sk if i == len(shape) - 1 and n == -1 else Sq if n == -1 else n for i, n in enumerate(shape)]
    bias = numbers(np.random.default_rng(2), shape, dtype, 2)
    bias[np.random.default_rng(3).random(shape) < 0.2] = -np.inf
    return {**pieces, "bias": bias}


def assert_as_reference(q, k, v, mask, pieces):
    """Equal to the reference within the bound, whose exact result is the reference's but for float64's rounding."""
    Sq, Sk = q.shape[2], k.shape[2]
    ours, theirs = ({**pieces, "mask": mask(m, Sq, Sk)} for m in (fastattn, reference))
    p = Problem(q, k, v, ours)
    wanted, (o, lse) = exact(q, k, v, **p.formula), reference.attention(q, k, v, return_lse=True, **theirs)
    npt.assert_allclose(wanted.o.astype(float), o, rtol=1e-10, atol=1e-12)
    npt.assert_allclose(wanted.lse.astype(float), lse, rtol=1e-10, atol=1e-12)
    if q.dtype in exact_types:
        assert ratio(*p.run(), wanted) <= 1
    else:
        npt.assert_allclose(p.run()[0], o, rtol=1e-12, atol=1e-13)


@both
@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("mask", MASKS)
def test_every_option_and_mask_is_the_reference(mask, pieces, dtype):
    for (Sq, Sk), Dv in [((1, 1), 2), ((5, 9), 3), ((21, 21), 5), ((W(dtype) // 2 + 1, 70), many_channels(dtype)), ((18, 3), 1)]:
        q, k, v = arrays(4, 2, 4, 2, Sq, Sk, 6, Dv, dtype)
        assert_as_reference(q, k, v, MASKS[mask], with_bias(PIECES[pieces], Sq, Sk, dtype))


@both
@pytest.mark.parametrize("mask", ["none", "causal", "ragged causal", "sliding", "packed"])
def test_every_edge_of_a_tile_is_the_reference(mask, dtype):
    for Sq, Sk in itertools.product([1, W(dtype) - 1, W(dtype), W(dtype) + 1], [15, 16, 17, 63, 64, 65, 129]):
        q, k, v = arrays(5, 2, 2, 1, Sq, Sk, 3, 2, dtype)
        assert_as_reference(q, k, v, MASKS[mask], {})


@both
def test_every_small_size_is_the_reference(dtype):
    for Sq, Sk, mask in itertools.product(range(7), range(7), ("none", "causal", "top left", "window")):
        q, k, v = arrays(6, 2, 2, 1, Sq, Sk, 3, 2, dtype)
        assert_as_reference(q, k, v, MASKS[mask], {"sink": [0.5, -0.5]} if Sq % 2 else {})


@both
def test_any_number_of_channels(dtype):
    # Patterns of registers of v: part of one, one, four less one number, four, five, seventeen and a number.
    for Dv in (0, 1, L(dtype) - 1, L(dtype), 4 * L(dtype) - 1, 4 * L(dtype), 5 * L(dtype), 257):
        for D in (0, 1, 2, 17, 257):
            q, k, v = arrays(7, 1, 2, 1, 5, 70, D, Dv, dtype)
            assert_as_reference(q, k, v, MASKS["causal"], {})


@pytest.mark.nightly
@both
@pytest.mark.parametrize("pieces", ["plain", "softcap", "bias", "all"])
def test_every_number_of_channels(dtype, pieces):
    for Dv in range(9 * L(dtype) + 2):
        q, k, v = arrays(7, 1, 4, 1, 5, 70, 3, Dv, dtype)
        assert_as_reference(q, k, v, MASKS["causal"], with_bias(PIECES[pieces], 5, 70, dtype))


@both
@pytest.mark.parametrize("Sk", [32 * 64 - 1, 32 * 64, 32 * 64 + 1, 2 * 32 * 64 + 65])
def test_groups_of_blocks(Sk, dtype):
    # Every 32 blocks the sums go to a third level; a window begins in the middle of a group.
    for mask in ("none", "causal", "sliding"):
        q, k, v = arrays(8, 2, 2, 1, 3, Sk, 4, 3, dtype, 2)
        assert_as_reference(q, k, v, MASKS[mask], {})


@both
@pytest.mark.parametrize(("Hq", "Hkv"), [(4, 1), (6, 2), (3, 3), (70, 1), (5, 5)])
def test_heads_share_a_key_head(Hq, Hkv, dtype):
    for Sq in (1, 3, W(dtype)):                         # several heads share a tile, or none
        q, k, v = arrays(9, 2, Hq, Hkv, Sq, 20, 4, 3, dtype)
        repeated = attention(q, *(np.repeat(x, Hq // Hkv, axis=1) for x in (k, v)), mask=causal)
        o = attention(q, k, v, mask=causal)
        if is_decode(np.dtype(dtype), Hq // Hkv * Sq) == is_decode(np.dtype(dtype), Sq):
            npt.assert_array_equal(o, repeated)         # the same arithmetic, whichever tile a row lies in
        else:
            npt.assert_allclose(o, repeated, rtol=0, atol=16 * np.finfo(dtype).eps * np.abs(v).max())


# ---- what has no rows, keys or channels -----------------------------------------------------------------------------------
@both
def test_no_keys(dtype):
    q, k, v = arrays(0, 2, 4, 2, 3, 0, 5, 3, dtype)
    o, lse = attention(q, k, v, return_lse=True)
    npt.assert_array_equal(o, np.zeros((2, 4, 3, 3)))
    npt.assert_array_equal(lse, np.full((2, 4, 3), -np.inf))
    o, lse = attention(q, k, v, sink=[1, 2, 3, 4], return_lse=True)
    npt.assert_array_equal(o, np.zeros((2, 4, 3, 3)))
    npt.assert_allclose(lse[1, :, 2], [1, 2, 3, 4], rtol=1e-6)                 # through log2 units and back


@both
@pytest.mark.parametrize("shape", [(0, 2, 1, 3, 4), (2, 0, 0, 3, 4), (2, 0, 1, 3, 4), (2, 2, 1, 0, 4)], ids=str)
def test_nothing_to_do(shape, dtype):
    B, Hq, Hkv, Sq, Sk = shape
    q, k, v = arrays(0, B, Hq, Hkv, Sq, Sk, dtype=dtype)
    o, lse = attention(q, k, v, return_lse=True, mask=causal)
    assert o.shape == (B, Hq, Sq, 3)
    assert lse.shape == (B, Hq, Sq)


@both
def test_without_channels_every_score_is_0_and_o_is_the_mean(dtype):
    q, k, v = arrays(0, D=0, Sk=100, dtype=dtype)
    npt.assert_allclose(attention(q, k, v)[0, 0], np.tile(v.mean(2)[0], (5, 1)), rtol=1e-5, atol=1e-6)
    assert attention(*arrays(0, Dv=0, dtype=dtype)).shape == (1, 1, 5, 0)


@both
def test_leading_axes_may_be_missing(dtype):
    q, k, v = arrays(0, 1, 2, 1, Sq=L(dtype), dtype=dtype)
    o, lse = attention(q, k, v, mask=causal, return_lse=True)
    o3, lse3 = attention(q[0], k[0], v[0], mask=causal, return_lse=True)
    npt.assert_array_equal(o3, o[0])
    npt.assert_array_equal(lse3, lse[0])
    o2, lse2 = attention(q[0, 0], k[0, 0], v[0, 0], mask=causal, return_lse=True)
    npt.assert_array_equal(o2, o[0, 0])
    npt.assert_array_equal(lse2, lse[0, 0])


# ---- layouts -------------------------------------------------------------------------------------------------------------
@both
@pytest.mark.parametrize("kind", ["transposed", "gaps", "backwards", "fortran"])
def test_out_of_any_layout_is_written_and_returned(kind, dtype):
    q, k, v = arrays(1, 2, 2, 1, 20, 30, Dv=many_channels(dtype), dtype=dtype)
    wanted = attention(q, k, v, mask=causal)
    out = laid_out(None, np.full_like(wanted, np.nan), kind)
    assert attention(q, k, v, mask=causal, out=out) is out
    npt.assert_array_equal(out, wanted)
    if kind == "gaps":
        assert np.isnan(out.base).any()                                         # the gaps are left as they are
        assert np.isnan(out.base).sum() == out.base.size - out.size


def test_out_may_be_part_of_something_larger():
    q, k, v = arrays(1, 2, 2, 1, 20, 30)
    whole = np.full((2, 20, 4, 3), np.nan, np.float32)                          # (B, S, H, D), heads 1 and 3 are ours
    attention(q, k, v, out=whole[:, :, 1::2].swapaxes(1, 2))
    npt.assert_array_equal(whole[:, :, 1::2].swapaxes(1, 2), attention(q, k, v))
    assert np.isnan(whole[:, :, ::2]).all()


def test_out_may_have_an_axis_of_one_whose_stride_means_nothing():
    q, k, v = arrays(1, Sq=20, Sk=30)
    out = np.empty((20, 3), np.float32)
    view = np.lib.stride_tricks.as_strided(out, (1, 1, 20, 3), (0, 4, 12, 4))
    assert attention(q, k, v, out=view) is view
    npt.assert_array_equal(out, attention(q, k, v)[0, 0])


def test_one_key_head_for_all_without_a_copy():
    # Strides of 0: every item and head is the same memory.
    q, k, v = arrays(1, 3, 4, 1, 5, 30)
    wide = [np.broadcast_to(x[:1], (3, 4, *x.shape[2:])) for x in (k, v)]
    same = [np.repeat(np.repeat(x[:1], 3, 0), 4, 1) for x in (k, v)]
    npt.assert_array_equal(attention(q, *wide), attention(q, *same))


@both
@pytest.mark.parametrize("Dv", [1, 2, 3])
def test_the_last_axis_may_have_gaps(Dv, dtype):
    q, k, v = arrays(1, Sq=20, Sk=30, D=Dv, Dv=Dv, dtype=dtype)
    bias = numbers(np.random.default_rng(0), (20, 60), dtype)[:, ::2]
    wide = [np.repeat(x, 2, axis=3)[..., ::2] for x in (q, k, v)]
    npt.assert_array_equal(attention(*wide, bias=bias), attention(q, k, v, bias=bias.copy()))
    turned = [x[..., ::-1].copy()[..., ::-1] for x in (q, k, v)]
    npt.assert_array_equal(attention(*turned), attention(q, k, v))
    out = np.empty((1, 1, 20, 2 * Dv), dtype)[..., ::2]
    assert attention(q, k, v, out=out) is out
    npt.assert_array_equal(out, attention(q, k, v))


def test_unaligned_and_foreign_bytes_are_copied():
    q, k, v = arrays(1)
    raw = np.frombuffer(b"x" + q.tobytes(), np.uint8)[1:]
    unaligned = np.ndarray(q.shape, q.dtype, raw)
    assert not unaligned.flags.aligned
    npt.assert_array_equal(attention(unaligned, k, v), attention(q, k, v))
    out = np.ndarray((1, 1, 5, 3), q.dtype, bytearray(64), 1)
    assert attention(q, k, v, out=out) is out
    npt.assert_array_equal(out, attention(q, k, v))
    npt.assert_array_equal(attention(q.astype(">f4"), k.astype(">f4"), v), attention(q, k, v))
    bias = numbers(np.random.default_rng(0), (5, 7), F32)
    npt.assert_array_equal(attention(q, k, v, bias=bias.astype(">f4")), attention(q, k, v, bias=bias))


# ---- large, small and shifted numbers --------------------------------------------------------------------------------------
@both
@pytest.mark.parametrize("level", [-1e30, -1e6, -1000, -128, -100, -89, -1, 0, 1, 30, 89, 100, 1000, 1e6, 1e30])
@pytest.mark.parametrize("Sk", [1, 17, 70, 64 * 33])
def test_the_first_guess_of_the_largest_score_never_matters(level, Sk, dtype):
    # All scores are one number, so o is the mean of v, whatever the number.
    q, k = np.ones((1, 1, 3, 1), dtype), np.full((1, 1, Sk, 1), level, dtype)
    v = numbers(np.random.default_rng(Sk), (1, 1, Sk, 3), dtype)
    o, lse = attention(q, k, v, return_lse=True)
    # Sums of Sk numbers of size 1, of which 64 + 32 + 2 in a row: their roundings, and p is one number for all.
    tolerance = 200 * np.finfo(dtype).eps
    npt.assert_allclose(o[0, 0], np.tile(v.astype(float).mean(2)[0], (3, 1)), rtol=0, atol=tolerance)
    npt.assert_allclose(lse, level + math.log(Sk), rtol=tolerance)


@pytest.mark.parametrize("dtype", exact_types, ids=str)
@pytest.mark.parametrize("step", [-1e4, -300, -100, -50, -20, -3, -0.4, 0.4, 3, 20, 50, 100, 300, 1e4])
def test_scores_that_rise_or_fall_from_block_to_block(step, dtype):
    for start, mask in itertools.product((0, -50, 200), (None, causal, window(40))):
        q, k, v = arrays(2, Sq=70, Sk=300, D=2, dtype=dtype)
        q[..., 0], k[0, 0, :, 0] = 1, start + step * (np.arange(300) // 64)
        assert share(Problem(q, k, v, {"scale": 1.0, "mask": mask})) <= 1


@both
def test_each_query_has_its_own_largest_score(dtype):
    # In one tile: queries whose scores rise, fall, stay; what is kept moves for some of them only.
    q, k, v = arrays(2, Sq=W(dtype), Sk=400, D=1, dtype=dtype)
    q[0, 0, :, 0], k[0, 0, :, 0] = np.linspace(-40, 40, W(dtype)), np.arange(400) // 50
    if dtype in exact_types:
        assert share(Problem(q, k, v, {"scale": 1.0})) <= 1
    together = attention(q, k, v, scale=1.0)
    for i in range(W(dtype)):
        alone = attention(np.repeat(q[:, :, i:i + 1], L(dtype), axis=2), k, v, scale=1.0)       # a few are another pass's
        npt.assert_array_equal(together[:, :, i:i + 1], alone[:, :, :1])


@both
def test_a_query_whose_weights_are_lost_leaves_its_neighbour_alone(dtype):
    # The first query's scores rise by 50 and its weights are scaled; the second's by 100 and its block is weighed again.
    # Weighed again with it, the first's would be rounded in another place: 2^(0.3 + 50) 2^-50 is not 2^0.3.
    rng = np.random.default_rng(0)
    k = np.repeat(np.array([[-35, 0], [0, 70]], dtype), 64, axis=0) + rng.random((128, 2)).astype(dtype)
    q, v = np.eye(2, dtype=dtype), numbers(rng, (128, 3), dtype)
    together, alone = attention(q, k, v, scale=1.0), attention(q[:1], k, v, scale=1.0)
    npt.assert_array_equal(together[:1], alone)


@both
def test_scores_of_1e30_choose_one_key(dtype):
    q, k, v = arrays(3, Sq=70, Sk=200, D=4, dtype=dtype)
    huge = dtype.type(1e15)
    s = (q.astype(float) @ k.astype(float).swapaxes(2, 3))[0, 0]
    npt.assert_array_equal(attention(q * huge, k * huge, v)[0, 0], v[0, 0][s.argmax(1)])


@both
def test_a_score_that_overflows_is_nan_or_weighs_nothing(dtype):
    # +inf and -inf in place of numbers that do not fit: NaN in the row, and never a number that looks right.
    q, k, v = (abs(x) + 1 for x in arrays(3, Sq=70, Sk=200, D=4, dtype=dtype))
    k[:, :, 90] = np.finfo(dtype).max / 256
    assert np.isfinite(attention(q, k, v)).all()
    q[:, :, ::2] *= 1024
    o, lse = attention(q, k, v, return_lse=True)
    assert np.isnan(o[:, :, ::2]).all()
    assert np.isnan(lse[:, :, ::2]).all()
    assert np.isfinite(o[:, :, 1::2]).all()
    k[:, :, 90] *= -1
    npt.assert_array_equal(attention(q, k, v), attention(q, k, v, mask=np.arange(200) != 90))


@both
@pytest.mark.parametrize("Sk", [200, 64 * 33])          # written from registers, and from three levels of sums
def test_values_near_the_largest_number(Sk, dtype):
    largest = np.finfo(dtype).max
    q, k, v = arrays(3, Sq=70, Sk=Sk, D=4, dtype=dtype)
    v = np.sign(v) * largest
    for level in (0, 25, -25, 500):                     # a weight may be 2^30 before it is divided by their sum
        k[..., 0], q[..., 0] = level, 1
        o = attention(q, k, v, scale=1.0)
        wanted = reference.attention(q, k, v / largest, scale=1.0)
        npt.assert_allclose(o / largest, wanted, rtol=0, atol=2e3 * np.finfo(dtype).eps)   # scores of 500 are off by 500 eps
    npt.assert_array_equal(attention(q, k, np.full_like(v, largest / 2)) > largest / 4, True)


@both
def test_a_channel_that_overflows_leaves_the_others_as_they_are(dtype):
    # The second turn, with v 2^80 times smaller, would round 2^-149 2^80 off a tiny one.
    q = k = np.zeros((64, 4), dtype)
    v = np.tile(np.array([np.finfo(dtype).max * 0.9, np.finfo(dtype).tiny * 2**60 / 3], dtype), (64, 1))
    npt.assert_allclose(attention(q, k, v), v, rtol=10 * np.finfo(dtype).eps)


@pytest.mark.parametrize("Sk", [200, 64 * 33])          # from registers, from three levels
def test_an_overflow_in_the_first_channels_alone_is_mended(Sk):
    q, k = np.ones((W(F32), 1), F32), np.full((Sk, 1), 20, F32)
    v = np.ones((Sk, many_channels(F32)), F32)
    v[:, 0] = np.finfo(F32).max / 2
    npt.assert_allclose(attention(q, k, v, scale=1.0), v[:W(F32)], rtol=1e-5)


@pytest.mark.parametrize("Sk", [200, 64 * 33])
@pytest.mark.parametrize("row", [0, 20, -1])
def test_an_overflow_in_one_row_alone_is_mended(Sk, row):
    q, k = np.zeros((W(F32), 1), F32), np.full((Sk, 1), 20, F32)           # 2^29: kept stays, the sum overflows
    q[row] = 1
    v = np.full((Sk, 3), np.finfo(F32).max / 2**12, F32)
    npt.assert_allclose(attention(q, k, v, scale=1.0), v[:W(F32)], rtol=1e-5)


def test_weights_that_are_left_in_scratch_stay_finite():
    # A tile with fewer rows looks at what lies beside them: inf there would not be wrong, but have everything done twice.
    rng = np.random.default_rng(0)
    q, k, v = (numbers(rng, (n, 8), F32) for n in (W(F32), 64, 64))

    def left():
        work = launch._scratch.pieces[F32, 8, 8]
        start = work.s - work.keeps.ctypes.data
        return work.keeps[start:start + 64 * W(F32) * 4].view(F32)

    attention(q, k, v)
    for _ in range(6):                                  # kept falls by 58
        attention(q, 0 * k[:1], v[:1], bias=np.full((1, 1), -40, F32))
    assert np.isfinite(left()).all()
    q[9] = np.nan
    attention(q, k, v)
    assert np.isfinite(left()).all()


@both
def test_subnormal_values_are_kept(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    q, k, v = arrays(3, Sq=70, Sk=200, D=4, dtype=dtype)
    npt.assert_array_equal(attention(q * 0, k, np.full_like(v, 1000 * tiny)), np.full((1, 1, 70, 3), 1000 * tiny))
    # One key each: w v / w, whose first product is rounded to a multiple of the smallest number.
    one_key = attention(q, k, v * tiny, mask=window(0, 0))
    npt.assert_allclose(one_key[0, 0], (v * tiny)[0, 0, 130:], rtol=0, atol=tiny)


@both
def test_a_slope_that_overflows_counts_as_the_largest_number(dtype):
    # Times log2 e it is no number any more, and infinity times the distance 0 of a query's own key would be NaN.
    q, v = np.zeros((4, 8), dtype), np.arange(4, dtype=dtype)[:, None]
    npt.assert_array_equal(attention(q, q, v, alibi=[0.9 * float(np.finfo(dtype).max)]), v)
    # The other way round all keys but its own weigh alike.
    most = attention(q, q, v, alibi=[-0.9 * float(np.finfo(dtype).max)])
    npt.assert_allclose(most[:, 0], (6 - np.arange(4)) / 3, rtol=4 * np.finfo(dtype).eps)


@both
def test_a_finite_bias_is_arithmetic(dtype):
    # A row full of the lowest float sees every key alike: the mean of v, not zeros.
    q, k, v = arrays(3, Sk=70, dtype=dtype)
    for share in (0.5, 1, -0.5, -1):
        extreme = np.full((5, 70), np.finfo(dtype).min * dtype.type(share), dtype)
        npt.assert_allclose(attention(q, k, v, bias=extreme)[0, 0, 0], v[0, 0].mean(0), rtol=1e-4, atol=1e-6)
    # Beyond the range of log2 units the order stays, or the keys are alike; never does the lower one win.
    pair = np.finfo(dtype).max * np.array([[-0.73, -0.68]], dtype)
    npt.assert_array_equal(attention(0 * q[:, :, :1], k[:, :, :2], v[:, :, :2], bias=pair)[0, 0, 0], v[0, 0, 1])
    # The same of ALiBi, which hides nothing.
    steep = attention(q, k, v, alibi=[np.finfo(dtype).max / 2], mask=np.arange(70)[None] < 50)
    assert np.isfinite(steep).all()
    assert np.abs(steep).min() > 0
    o, lse = attention(q, k, v, bias=np.full((5, 70), -np.inf, dtype), return_lse=True)
    npt.assert_array_equal(o, 0 * o)
    npt.assert_array_equal(lse, -np.inf)


@both
def test_a_sink_without_weight_is_no_sink(dtype):
    q, k, v = arrays(3, dtype=dtype)
    npt.assert_array_equal(attention(q, k, v, sink=[-np.inf]), attention(q, k, v))
    # A sink of score s takes exp(s) of the weight: with lse the logarithm of the keys' own, o shrinks to this share.
    o, lse = attention(q, k, v, return_lse=True)
    npt.assert_allclose(attention(q, k, v, sink=[0.7]), o / (1 + np.exp(0.7 - lse))[..., None], rtol=1e-5, atol=1e-7)


def test_the_first_call_may_come_from_numpy_lists():
    npt.assert_allclose(attention([[1.0]], [[1.0], [1.0]], [[1.0], [3.0]]), [[2.0]])


def test_float64_is_not_float32():
    # Weights that differ by 1e-9 of themselves.
    q, k, v = np.ones((1, 1)), np.array([[0.0], [1e-9]]), np.array([[0.0], [1.0]])
    npt.assert_allclose(attention(q, k, v) - 0.5, [[0.25e-9]], rtol=1e-6)
    assert attention(q, k, v).dtype == F64
