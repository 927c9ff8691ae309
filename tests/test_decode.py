"""Few queries: their keys are cut into pieces whose states are joined; nothing may depend on where the cuts are."""

import threading

import numpy as np
import numpy.testing as npt
import pytest

from fastattn import attention, causal, lengths, merge_states, window
from fastattn.passes.launch import is_decode
from fastattn.tiles.sizes import BLOCK, SPLIT
from tests.bounds import exact, ratio, sharp, units, usual_units
from tests.problems import DTYPES, F32, L, Problem, few_channels, many_channels, numbers, options_of

both = pytest.mark.parametrize("dtype", DTYPES, ids=str)
CUTS = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT, 2 * SPLIT + BLOCK + 3]


def arrays(seed, B=1, Hq=2, Hkv=2, Sq=1, Sk=SPLIT + 70, D=8, Dv=5, dtype=F32):
    rng = np.random.default_rng(seed)
    return (numbers(rng, (B, Hq, Sq, D), dtype), numbers(rng, (B, Hkv, Sk, D), dtype), numbers(rng, (B, Hkv, Sk, Dv), dtype))


def share(p, **more):
    return ratio(*p.run(**more), exact(p.q, p.k, p.v, **p.formula))


def most_rows(dtype):
    """As many rows of queries as this pass takes."""
    return max(rows for rows in range(1, 65) if is_decode(np.dtype(dtype), rows))


@both
def test_there_are_few_and_many(dtype):
    rows = most_rows(dtype)
    assert 1 <= rows < L(dtype)
    assert [is_decode(dtype, n) for n in (0, 1, rows, rows + 1)] == [False, True, True, False]


@both
@pytest.mark.parametrize("Sk", CUTS)
def test_any_number_of_keys(Sk, dtype):
    if not sharp(dtype):
        pytest.skip("no type is wide enough to be exact beside float64 here")
    rows = most_rows(dtype)
    for group in sorted({1, 2, rows}):
        for options in ({}, {"mask": causal}, {"mask": window(70, 0)}, {"sink": np.arange(2.0 * group)}):
            q, k, v = arrays(Sk, B=2, Hq=2 * group, Sk=Sk, dtype=dtype)
            assert share(Problem(q, k, v, options)) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_random_problems_of_few_queries_are_within_the_bound(seed, record_property):
    rng, worst = np.random.default_rng(seed), 0.0
    for _ in range(150):
        B, Hkv, group = *(int(n) for n in rng.choice([1, 2, 3], 2)), int(rng.integers(1, most_rows(F32) + 1))
        Sq, Sk, D = int(rng.integers(1, most_rows(F32) // group + 1)), int(rng.integers(0, 3 * SPLIT)), int(rng.integers(0, 150))
        Dv = many_channels(F32) if rng.random() < 0.15 else int(rng.choice(few_channels(F32)))
        q, k, v = arrays(int(rng.integers(1 << 30)), B, Hkv * group, Hkv, Sq, Sk, D, Dv)
        found = share(Problem(q, k, v, options_of(rng, B, Hkv * group, Sq, Sk, F32)))
        assert found <= 1
        worst = max(worst, found)
    record_property("worst share of the bound", worst)


def test_long_memories_err_as_plain_numpy_does(record_property):
    q, k, v = arrays(1, Hq=1, Hkv=1, Sk=40_000, D=64, Dv=64)
    wanted = exact(q, k, v)
    s = (q @ k.swapaxes(2, 3)) / np.float32(8)
    p = np.exp(s - s.max())
    ours, plain = attention(q, k, v), p @ v / p.sum()
    record_property("error in u sum p|v|", units(ours, wanted))
    assert usual_units(ours, wanted) <= 2 * usual_units(plain, wanted) + 4


# ---- the same whatever is around -------------------------------------------------------------------------------------------
@both
def test_a_batch_of_any_size_and_any_threads_give_the_same_bits(dtype):
    q, k, v = arrays(2, B=5, Hq=4, Sk=3 * SPLIT + 9, dtype=dtype)
    for options in ({}, {"mask": causal & window(SPLIT)}, {"softcap": 2.0}, {"sink": np.zeros(4)}):
        o, lse = attention(q, k, v, return_lse=True, threads=1, **options)
        for threads in (2, 3, 8):
            for x, y in zip(attention(q, k, v, return_lse=True, threads=threads, **options), (o, lse), strict=True):
                npt.assert_array_equal(x, y)
        for b in range(5):
            npt.assert_array_equal(attention(q[b], k[b], v[b], **options), o[b])


@both
def test_keys_that_come_later_change_nothing_of_what_is_before(dtype):
    # A decoder's step sees the cache's keys up to its own: how long the cache is must not matter.
    q, k, v = arrays(3, B=1, Sk=2 * SPLIT + 5, dtype=dtype)
    for n in (1, BLOCK + 1, SPLIT, SPLIT + 1):
        junk_k, junk_v = k.copy(), v.copy()
        junk_k[:, :, n:], junk_v[:, :, n:] = np.nan, np.inf
        for mask in (lengths([n]), causal & lengths([n]), np.arange(k.shape[2]) < n):
            npt.assert_array_equal(attention(q, junk_k, junk_v, mask=mask), attention(q, k, v, mask=mask))
        whole = attention(q, k[:, :, :n], v[:, :, :n], return_lse=True)
        for x, y in zip(attention(q, k, v, mask=lengths([n]), return_lse=True), whole, strict=True):
            npt.assert_array_equal(x, y)


def test_many_callers_at_once():
    q, k, v = arrays(4, B=3, Hq=4, Sk=2 * SPLIT + 100)
    wanted, right = attention(q, k, v, sink=np.ones(4)), []

    def calls():
        for _ in range(30):
            right.append(np.array_equal(attention(q, k, v, sink=np.ones(4), threads=2), wanted))

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 120


# ---- states ----------------------------------------------------------------------------------------------------------------
@both
def test_pieces_join_as_merge_states_joins_them(dtype):
    q, k, v = arrays(5, Hq=4, Sk=3 * SPLIT + 1, dtype=dtype)
    q *= 3
    parts = [attention(q, k[:, :, j:j + SPLIT], v[:, :, j:j + SPLIT], return_lse=True) for j in range(0, k.shape[2], SPLIT)]
    o, lse = attention(q, k, v, return_lse=True)
    merged, total = merge_states(*zip(*parts, strict=True))
    eps = np.finfo(dtype).eps
    npt.assert_allclose(o, merged, rtol=0, atol=16 * eps)
    npt.assert_allclose(lse, total, rtol=16 * eps)


@both
@pytest.mark.parametrize("where", [0, SPLIT + 1, SPLIT + 2, SPLIT + 3, 2 * SPLIT + 3])         # none sees it, none, one, both, the other
def test_nan_is_in_exactly_the_queries_that_see_it(where, dtype):
    q, k, v = arrays(6, Hq=2, Hkv=1, Sq=2, Sk=2 * SPLIT + 4, dtype=dtype)
    clean = attention(q, k, v, mask=causal & window(SPLIT))
    seen = (causal & window(SPLIT)).materialize(2, k.shape[2])[:, where]
    for x, bad in ((k, np.nan), (v, np.nan), (v, np.inf)):
        was = x[:, :, where].copy()
        x[:, :, where] = bad
        o = attention(q, k, v, mask=causal & window(SPLIT))
        assert not np.isfinite(o[:, :, seen]).any()
        npt.assert_array_equal(o[:, :, ~seen], clean[:, :, ~seen])
        x[:, :, where] = was


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_seen_where_its_weight_is_nothing(bad, dtype):
    # The second piece's scores lie thousands above the first's, so the first's share is 0; and so with a sink.
    q, k, v = (np.ones((1, 1, n, 1), dtype) for n in (1, 2 * SPLIT, 2 * SPLIT))
    v[0, 0, 3] = bad
    assert np.isnan(attention(q, k, v, sink=[3000.0])).all()
    k[:, :, SPLIT:] = 3000
    assert np.isnan(attention(q, k, v)).all()


@both
def test_queries_that_see_nothing_and_sinks(dtype):
    q, k, v = arrays(7, Hq=2, Hkv=1, Sk=SPLIT + 1, dtype=dtype)
    sink = np.array([1.5, -np.inf])
    for Sk in (0, 1, SPLIT + 1):
        none = np.zeros(Sk, bool)
        o, lse = attention(q, k[:, :, :Sk], v[:, :, :Sk], mask=none, sink=sink, return_lse=True)
        npt.assert_array_equal(o, 0)
        npt.assert_allclose(lse[0, :, 0], sink, rtol=1e-6)
        o, lse = attention(q, k[:, :, :Sk], v[:, :, :Sk], mask=none, return_lse=True)
        npt.assert_array_equal(o, 0)
        npt.assert_array_equal(lse, -np.inf)


@both
def test_scores_of_minus_infinity_are_seen(dtype):
    # They are 0 / 0 where there is nothing else, in one piece or in all, and weigh nothing where there is.
    q, k, v = (np.ones((1, 1, n, 3), dtype) for n in (1, SPLIT + 9, SPLIT + 9))
    k[:, :, :SPLIT] = -np.inf
    npt.assert_allclose(attention(q, k, v), 1, rtol=1e-6)
    k[:] = -np.inf
    o, lse = attention(q, k, v, return_lse=True)
    assert np.isnan(o).all()
    npt.assert_array_equal(lse, -np.inf)
    npt.assert_array_equal(attention(q, k, v, sink=[0.0]), 0)


@both
def test_pieces_of_very_different_scores(dtype):
    # The second piece's largest score lies hundreds above the first's, or below: what it weighs beside it is 0 or all.
    if not sharp(dtype):
        pytest.skip("no type is wide enough to be exact beside float64 here")
    q, k, v = arrays(8, Hq=1, Hkv=1, Sk=2 * SPLIT, dtype=dtype)
    for factor in (300, -300):
        k[:] = numbers(np.random.default_rng(0), k.shape, dtype, 0.01)
        k[:, :, SPLIT:] += factor * q / np.square(q).sum()
        assert share(Problem(q, k, v)) <= 1


@both
def test_sums_that_overflow_where_the_result_does_not(dtype):
    q, k, v = arrays(9, Hq=3, Hkv=1, Sk=2 * SPLIT + 30, dtype=dtype)
    big = np.finfo(dtype).max / 4
    v[:] = big
    npt.assert_allclose(attention(q, k, v), big, rtol=1e-5 if dtype == F32 else 1e-12)
