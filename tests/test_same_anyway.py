"""What must not matter, does not: the same bits whatever is hidden, however many threads, in whichever batch and layout.

And its mirror: what is seen does matter. NaN is in exactly the rows that see it.
"""

import itertools
import threading

import numpy as np
import numpy.testing as npt
import pytest

from fastattn import attention, causal, lengths, packed, window
from fastattn.passes import launch
from tests.bounds import naive
from tests.problems import DTYPES, F32, L, W, edges, few_channels, laid_out, many_channels, numbers, problem

both = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def bits(x):
    """The bits of floats, every NaN as one: which NaN it is depends on the order of operands, and says nothing."""
    x = np.where(np.isnan(x), np.array(np.nan, x.dtype), x)
    return np.ascontiguousarray(x).view(f"u{x.itemsize}")


def assert_same_bits(found, wanted, where=slice(None)):
    for x, y in zip(found, wanted, strict=True):
        npt.assert_array_equal(bits(x[where]), bits(y[where]))


# ---- hidden is unseen ----------------------------------------------------------------------------------------------------
POISON = (0.0, np.nan, np.inf, -np.inf, 1e38, -1e38)


def poisoned(rng, x, places):
    """A copy of x with something bad, or something else, in the places."""
    x = x.copy()
    x[places] = rng.choice(POISON, int(places.sum()))[(...,) + (None,) * (x.ndim - places.ndim)]
    return x


def unseen(rng, p):
    """Other k and v at some keys, and the rows that see none of them."""
    bad = rng.random(p.k.shape[:3]) < rng.choice([0.05, 0.5])
    clean = ~(p.sees & np.repeat(bad, p.q.shape[1] // p.k.shape[1], axis=1)[:, :, None]).any(3)
    which = rng.integers(0, 3)
    return poisoned(rng, p.k, bad) if which else p.k, poisoned(rng, p.v, bad) if which < 2 else p.v, clean


def masked_problem(rng):
    while True:
        p = problem(rng, plain=rng.random() < 0.5)
        if p.q.size and p.k.size and not p.sees.all():
            return p


@pytest.mark.parametrize("seed", range(2))
def test_rows_that_do_not_see_a_key_do_not_depend_on_it(seed):
    rng = np.random.default_rng(seed)
    for _ in range(1000):
        p = masked_problem(rng)
        wanted = p.run()
        p.k, p.v, clean = unseen(rng, p)
        assert_same_bits(p.run(), wanted, clean)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10, 20))
def test_rows_that_do_not_see_a_key_do_not_depend_on_it_at_length(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20_000):
        p = masked_problem(rng)
        wanted = p.run()
        p.k, p.v, clean = unseen(rng, p)
        assert_same_bits(p.run(), wanted, clean)


def test_plain_numpy_sees_what_is_hidden():
    rng, leaks = np.random.default_rng(0), 0
    for _ in range(100):
        p = masked_problem(rng)
        wanted = naive(p.q, p.k, p.v, **p.formula)
        p.k, p.v, clean = unseen(rng, p)
        leaks += not np.array_equal(bits(naive(p.q, p.k, p.v, **p.formula)[clean]), bits(wanted[clean]))
    assert leaks > 10                                   # 0 NaN is NaN; in many problems no row is left clean


def test_a_bias_is_not_seen_where_a_mask_hides():
    rng = np.random.default_rng(3)
    for _ in range(500):
        p = masked_problem(rng)
        if p.seen is None:
            continue
        shape = (*p.q.shape[:2], *p.sizes)
        p.options["bias"] = numbers(rng, shape, p.q.dtype)
        wanted = p.run()
        p.options["bias"] = poisoned(rng, p.options["bias"], ~np.broadcast_to(p.seen, shape))
        assert_same_bits(p.run(), wanted)


@both
def test_nothing_behind_a_length_is_seen(dtype):
    rng = np.random.default_rng(4)
    for S in edges(dtype)[1:]:
        q, k, v = (numbers(rng, (2, 2, S, 8), dtype) for _ in range(3))
        n = rng.integers(0, S + 1, 2)
        behind = np.broadcast_to(np.arange(S) >= n[:, None, None], (2, 2, S))
        for mask in (lengths(n), causal & lengths(n, n)):
            wanted = attention(q, k, v, mask=mask, return_lse=True)
            dirty = (poisoned(rng, x, behind) for x in (k, v))
            assert_same_bits(attention(q, *dirty, mask=mask, return_lse=True), wanted)


@both
def test_a_row_without_keys_is_0_whatever_it_is_made_of(dtype):
    bad = np.full((1, 2, 40, 5), np.nan, dtype)
    for mask in (np.zeros((1, 1), bool), lengths([0]), lengths([40], [0]), window(0, 0) & np.eye(40, k=1, dtype=bool)):
        o, lse = attention(bad, bad, bad, mask=mask, return_lse=True)
        npt.assert_array_equal(o, 0)
        npt.assert_array_equal(lse, -np.inf)
        o, lse = attention(bad, bad, bad, mask=mask, sink=[2.0, -1.0], return_lse=True)
        npt.assert_array_equal(o, 0)
        npt.assert_allclose(lse[0, :, 0], [2, -1], rtol=1e-6)
    hidden = np.full((40, 40), -np.inf, dtype)
    npt.assert_array_equal(attention(bad, bad, bad, bias=hidden), 0)


# ---- NaN never vanishes ----------------------------------------------------------------------------------------------------
def nans(rng, n, dtype):
    """NaN of either sign and any payload: what a computation makes of uninitialised memory."""
    width = 8 * dtype.itemsize
    fraction = np.finfo(dtype).nmant
    payload = rng.integers(0, 1 << (fraction - 1), n) * rng.integers(0, 2, n) | rng.integers(0, 1024, n)
    quiet = (1 << (width - 1)) - (1 << (fraction - 1))
    sign = rng.integers(0, 2, n).astype(f"u{width // 8}") << np.array(width - 1, f"u{width // 8}")
    return (payload.astype(sign.dtype) | np.array(quiet, sign.dtype) | sign).view(dtype)


NAN_MASKS = {
    "none": lambda Sq, Sk: None,
    "causal": lambda Sq, Sk: causal,
    "sliding": lambda Sq, Sk: causal & window(2),
    "bool": lambda Sq, Sk: np.random.default_rng(Sk).random((2, Sq, Sk)) < 0.5,
}


def assert_nan_exactly(found, clean, rows):
    """NaN where `rows` are, and the bits of `clean` elsewhere."""
    npt.assert_array_equal(np.isnan(found), np.broadcast_to(rows, found.shape))
    keep = ~np.isnan(found)
    npt.assert_array_equal(bits(found[keep]), bits(clean[keep]))


@both
@pytest.mark.parametrize("mask", NAN_MASKS)
@pytest.mark.parametrize("Sq", [1, 3, 70])
def test_nan_is_in_exactly_the_rows_that_see_it(Sq, mask, dtype):
    # Item b of the batch has its NaN at key b: every key of every Sk from 1 to 64.
    rng = np.random.default_rng(0)
    for Sk in range(1, 65) if Sq < 70 else (1, 15, 16, 17, 64):
        q, k, v = (numbers(rng, (Sk, 2, n, 3), dtype) for n in (Sq, Sk, Sk))
        at, seen = np.arange(Sk), NAN_MASKS[mask](Sq, Sk)
        sees = np.broadcast_to(True if seen is None else seen if isinstance(seen, np.ndarray) else
                               seen.materialize(Sq, Sk), (2, Sq, Sk))
        rows = sees.transpose(2, 0, 1)                  # (item = key, head, query)
        o, lse = attention(q, k, v, mask=seen, return_lse=True)

        bad = k.copy()
        bad[at, :, at, 1] = nans(rng, (Sk, 2), dtype)
        found, found_lse = attention(q, bad, v, mask=seen, return_lse=True)
        assert_nan_exactly(found, o, rows[..., None])
        assert_nan_exactly(found_lse, lse, rows)

        bad = v.copy()
        bad[at, :, at, 1] = nans(rng, (Sk, 2), dtype)   # channel 1 alone
        found, found_lse = attention(q, k, bad, mask=seen, return_lse=True)
        assert_nan_exactly(found, o, rows[..., None] & (np.arange(3) == 1))
        npt.assert_array_equal(bits(found_lse), bits(lse))

        bias = np.zeros((Sk, 2, Sq, Sk), dtype)
        wanted = attention(q, k, v, mask=seen, bias=bias, return_lse=True)
        i = at % Sq
        bias[at, :, i, at] = nans(rng, (Sk, 2), dtype)
        hit = rows & (np.arange(Sq) == i[:, None])[:, None]
        for x, y, where in zip(attention(q, k, v, mask=seen, bias=bias, return_lse=True), wanted, (hit[..., None], hit),
                               strict=True):
            assert_nan_exactly(x, y, where)

        bad = q.copy()
        bad[at, :, i, 2] = nans(rng, (Sk, 2), dtype)
        hit = sees.any(2) & (np.arange(Sq) == i[:, None])[:, None]
        for x, y, where in zip(attention(bad, k, v, mask=seen, return_lse=True), (o, lse), (hit[..., None], hit),
                               strict=True):
            assert_nan_exactly(x, y, where)


@both
@pytest.mark.parametrize("name", ["sink", "alibi"])
def test_nan_of_a_head_is_in_exactly_its_rows(name, dtype):
    # Two of the four heads share a tile, in either order.
    rng = np.random.default_rng(1)
    q, k, v = (numbers(rng, (2, H, 20, 3), dtype) for H in (4, 2, 2))
    heads = np.array([0.5, 1, 2, 0.25])
    wanted = attention(q, k, v, mask=causal, return_lse=True, **{name: heads})
    for h in range(4):
        bad = np.where(np.arange(4) == h, np.nan, heads)
        for x, y in zip(attention(q, k, v, mask=causal, return_lse=True, **{name: bad}), wanted, strict=True):
            assert_nan_exactly(x, y, (np.arange(4) == h).reshape(4, *[1] * (x.ndim - 2)))


def test_a_nan_that_became_a_number_is_found():
    o = np.array([[np.nan], [1.0]])
    assert_nan_exactly(o, o, np.array([[True], [False]]))
    with pytest.raises(AssertionError):
        assert_nan_exactly(np.nan_to_num(o), o, np.array([[True], [False]]))


@both
@pytest.mark.parametrize("mask", [None, causal, window(2, 1)], ids=str)
def test_a_query_whose_keys_all_score_minus_infinity_has_seen_them(mask, dtype):
    # 0 / 0: NaN, and not the zeros of a query that sees no key.
    q, v = np.ones((20, 1), dtype), np.ones((20, 3), dtype)
    o, lse = attention(q, np.full((20, 1), -np.inf, dtype), v, mask=mask, return_lse=True)
    assert np.isnan(o).all()
    npt.assert_array_equal(lse, -np.inf)


@both
@pytest.mark.parametrize("x", [np.inf, -np.inf])
def test_infinities_are_arithmetic(x, dtype):
    rng = np.random.default_rng(0)
    q, k, v = (numbers(rng, (70, 4), dtype) for _ in range(3))
    v[3, 1] = x
    o = attention(q, k, v, mask=causal)
    npt.assert_array_equal(o[3:, 1], x)
    assert np.isfinite(o[:3]).all()
    assert np.isfinite(np.delete(o, 1, axis=1)).all()
    v[5, 1] = -x                                        # inf - inf
    o = attention(q, k, v, mask=causal)
    npt.assert_array_equal(o[3:5, 1], x)
    assert np.isnan(o[5:, 1]).all()
    # A score of +inf makes its row NaN; of -inf, weighs nothing.
    v[[3, 5], 1] = 0
    bias = np.zeros((70, 70), dtype)
    bias[20, 7] = x
    o = attention(q, k, v, bias=bias)
    assert np.isnan(o[20]).all() == (x > 0)
    assert np.isfinite(np.delete(o, 20, axis=0)).all()
    q = np.abs(q) + 1
    k[9] = x
    o = attention(q, k, v)
    assert np.isnan(o).all() == (x > 0)
    if x < 0:
        npt.assert_allclose(o, attention(q, np.delete(k, 9, 0), np.delete(v, 9, 0)), rtol=1e-5, atol=1e-6)


# ---- the same bits, always -----------------------------------------------------------------------------------------------
def of_item(mask, b):
    """What a mask says to the items b of the batch."""
    if isinstance(mask, np.ndarray):
        return mask[b] if mask.ndim == 4 and len(mask) > 1 else mask
    if isinstance(mask, lengths):
        return lengths(mask.k_lengths[b], None if mask.q_lengths is None else mask.q_lengths[b])
    if hasattr(mask, "masks"):
        parts = [of_item(part, b) for part in mask.masks]
        joined = parts[0]
        for part in parts[1:]:
            joined = joined & part
        return joined
    return type(mask)(of_item(mask.seen, b)) if hasattr(mask, "seen") else mask


def of_items(p, b):
    """The options for the items b."""
    return {name: of_item(x, b) if name in ("mask", "bias") else x for name, x in p.options.items()}


def in_turn(step, stop, threads):
    """As pool.run, but every thread is made to do its share: one step each, round and round."""
    turn, more = [0], [True] * threads
    condition = threading.Condition()

    def work(n):
        while True:
            with condition:
                condition.wait_for(lambda: turn[0] % threads == n)
                more[n] = more[n] and step()
                turn[0] += 1
                condition.notify_all()
                if not any(more):
                    return

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


@pytest.fixture
def always_threads(monkeypatch):
    """Even the smallest call is shared among threads, one tile at a time."""
    monkeypatch.setattr(launch, "SERIAL_FLOPS", 0)
    monkeypatch.setattr(launch, "SLICE_FLOPS", 0)


@pytest.mark.usefixtures("always_threads")
@both
@pytest.mark.parametrize("run", [None, in_turn], ids=["pool", "in turn"])
def test_any_number_of_threads(run, dtype, monkeypatch):
    if run is not None:
        monkeypatch.setattr(launch.pool, "run", run)
    rng = np.random.default_rng(7)
    for mask, options in itertools.product((None, causal, lengths([50, 200])), ({}, {"sink": [1.0, 2, 3, 4]})):
        q = numbers(rng, (2, 4, 3 * W(dtype) + 5, 16), dtype)
        k, v = (numbers(rng, (2, 2, 200, n), dtype) for n in (16, many_channels(dtype)))
        wanted = attention(q, k, v, mask=mask, return_lse=True, threads=1, **options)
        for threads in (2, 3, 4):
            assert_same_bits(attention(q, k, v, mask=mask, return_lse=True, threads=threads, **options), wanted)


@pytest.mark.usefixtures("always_threads")
def test_a_hundred_times_the_same_on_threads():
    rng = np.random.default_rng(8)
    q, k, v = (numbers(rng, (2, 2, 150, 8), F32) for _ in range(3))
    wanted = attention(q, k, v, mask=causal, return_lse=True, threads=1)
    for i in range(100):
        assert_same_bits(attention(q, k, v, mask=causal, return_lse=True, threads=1 + i % 4), wanted)


@pytest.mark.usefixtures("always_threads")
@pytest.mark.parametrize("seed", range(2))
def test_batch_order_layout_and_threads_change_no_bit(seed):
    rng = np.random.default_rng(seed)
    for _ in range(300):
        p = problem(rng)
        B, wanted = len(p.q), p.run()
        order = rng.permutation(B)
        shuffled = attention(p.q[order], p.k[order], p.v[order], return_lse=True, **of_items(p, order))
        assert_same_bits(shuffled, [x[order] for x in wanted])
        b = int(rng.integers(0, B))
        one = slice(b, b + 1)
        alone = attention(p.q[one], p.k[one], p.v[one], return_lse=True, **of_items(p, one))
        assert_same_bits(alone, [x[one] for x in wanted])
        kinds = rng.choice(["plain", "transposed", "gaps", "backwards", "fortran"], 4)
        q, k, v = (laid_out(rng, np.ascontiguousarray(x), kind) for x, kind in zip((p.q, p.k, p.v), kinds, strict=False))
        out = laid_out(rng, np.empty_like(wanted[0]), kinds[3])
        assert_same_bits(attention(q, k, v, out=out, return_lse=True, threads=3, **p.options), wanted)


def test_a_head_does_not_know_its_place():
    rng = np.random.default_rng(9)
    for _ in range(100):
        Hkv, group, Sq, Sk = int(rng.integers(1, 4)), int(rng.integers(1, 4)), *(int(n) for n in rng.integers(1, 90, 2))
        dtype = DTYPES[rng.integers(0, 2)]
        q = numbers(rng, (1, Hkv, group, Sq, 5), dtype)
        k, v = (numbers(rng, (1, Hkv, Sk, n), dtype) for n in (5, int(rng.choice(few_channels(dtype)))))

        def heads(kv, of, q=q, k=k, v=v):
            o, lse = attention(q[:, kv][:, :, of].reshape(1, -1, *q.shape[3:]), k[:, kv], v[:, kv], mask=causal,
                               return_lse=True)
            return [x.reshape(1, len(kv), len(of), *x.shape[2:]) for x in (o, lse)]

        wanted = heads(np.arange(Hkv), np.arange(group))
        kv, of = rng.permutation(Hkv), rng.permutation(group)
        assert_same_bits(heads(kv, of), [x[:, kv][:, :, of] for x in wanted])


@both
def test_a_query_does_not_know_its_neighbours(dtype):
    # Rows that share a tile share nothing else: each row by itself, with the same keys; as often as makes it a tile's and not
    # the other pass's.
    rng = np.random.default_rng(10)
    q, k, v = (numbers(rng, (n, 6), dtype, size) for n, size in ((W(dtype) + 9, 8), (150, 8), (150, 1)))
    wanted = attention(q, k, v, return_lse=True)
    for i in range(0, len(q), 5):
        alone = attention(np.repeat(q[i:i + 1], L(dtype), axis=0), k, v, return_lse=True)
        assert_same_bits([x[:1] for x in alone], [x[i:i + 1] for x in wanted])


@both
def test_keys_that_nobody_sees_may_as_well_not_be_there(dtype):
    # Blocks are counted from key 0: padding, and what lies in a causal future, changes no bit.
    rng = np.random.default_rng(11)
    for n, S in itertools.product((L(dtype), 16, 50, 64, 100), (128, 200)):
        q, k, v = (numbers(rng, (1, 2, S, 7), dtype) for _ in range(3))
        padded = attention(q, k, v, mask=lengths([n]), return_lse=True)
        assert_same_bits(attention(q, k[:, :, :n], v[:, :, :n], return_lse=True), padded)
        full = attention(q, k, v, mask=causal, return_lse=True)
        first = attention(*(x[:, :, :n] for x in (q, k, v)), mask=causal, return_lse=True)
        assert_same_bits(first, [x[:, :, :n] for x in full])


def test_a_mask_and_its_boolean_array_give_the_same_bits():
    rng = np.random.default_rng(12)
    for _ in range(300):
        p = masked_problem(rng)
        if p.seen is None or isinstance(p.options["mask"], np.ndarray):
            continue
        assert_same_bits(p.run(mask=p.seen), p.run())


def test_packed_sequences_are_the_sequences():
    rng = np.random.default_rng(13)
    for _ in range(50):
        sizes = rng.integers(1, 64, 3)
        q, k, v = (numbers(rng, (2, int(sizes.sum()), 7), F32) for _ in range(3))
        whole = attention(q, k, v, mask=causal & packed(np.repeat(np.arange(3), sizes)))
        ends = np.cumsum(sizes)
        for lo, hi in zip(ends - sizes, ends, strict=True):
            part = attention(*(x[:, lo:hi] for x in (q, k, v)), mask=causal)
            # Not bit by bit: blocks are counted from the first key of all.
            npt.assert_allclose(whole[:, lo:hi], part, rtol=1e-5, atol=1e-6)


def test_another_order_of_sums_is_other_bits():
    # So that equal bits say something: the same keys backwards are the same sums in another order.
    rng = np.random.default_rng(14)
    q, k, v = (numbers(rng, (100, 8), F32) for _ in range(3))
    with pytest.raises(AssertionError):
        assert_same_bits([attention(q, k[::-1], v[::-1])], [attention(q, k, v)])


def test_a_sink_of_another_head_changes_no_bit():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((1, 2, 4, 64), "f4") * 3, rng.standard_normal((1, 1, 300, 64), "f4")
    (a, la), (b, lb) = (attention(q, k, k, sink=[25.0, x], return_lse=True) for x in (0.0, 60.0))      # 36 and 87 in log2
    npt.assert_array_equal(a[:, 0], b[:, 0])
    npt.assert_array_equal(la[:, 0], lb[:, 0])


def test_a_sink_of_nan_reaches_queries_without_keys():
    q = np.ones((1, 3, 2), F32)                         # causal, one key: the first two see none
    o, lse = attention(q, q[:, :1], q[:, :1], mask=causal, sink=[np.nan], return_lse=True)
    assert np.isnan(o).all()
    assert np.isnan(lse).all()


@both
@pytest.mark.parametrize("Sk", [16, 64])                # no key outside of a whole grain
def test_whole_grains_of_minus_infinity_have_been_seen(Sk, dtype):
    o = attention(np.ones((20, 1), dtype), np.full((Sk, 1), -np.inf, dtype), np.ones((Sk, 3), dtype))
    assert np.isnan(o).all()
