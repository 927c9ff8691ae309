"""merge_states: attention over disjoint sets of keys, joined, is attention over all of them."""

import itertools

import numpy as np
import numpy.testing as npt
import pytest

import reference
from fastattn import attention, merge_states
from tests.bounds import exact, sharp
from tests.problems import DTYPES, F32, numbers

both = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def arrays(dtype, Sk=40, size=1.0):
    rng = np.random.default_rng(0)
    return (numbers(rng, (2, 3, 5, 8), dtype, size), numbers(rng, (2, 3, Sk, 8), dtype), numbers(rng, (2, 3, Sk, 4), dtype))


def parts(q, k, v, cuts, **options):
    """The states of the keys between the cuts; a sink belongs to the first."""
    ends = [0, *cuts, k.shape[2]]
    states = []
    for lo, hi in itertools.pairwise(ends):
        states.append(attention(q, k[:, :, lo:hi], v[:, :, lo:hi], return_lse=True, **options))
        options.pop("sink", None)
    return zip(*states, strict=True)


def assert_whole(found, q, k, v, dtype, **options):
    """Each part is within its bound, the joined one within theirs: of its o's, and twice of its lse's, which are weights."""
    wanted = exact(q, k, v, **options)
    times = 4 if sharp(dtype) else 1e3
    for x, want, bound in zip(found, wanted[:2], (wanted.o_bound, wanted.lse_bound), strict=True):
        assert x.dtype == dtype
        assert (np.abs(x - want) <= times * bound + 4 * np.finfo(dtype).eps * np.abs(want)).all()


@both
def test_any_split_gives_the_whole(dtype):
    q, k, v = arrays(dtype)
    for cut in range(41):
        assert_whole(merge_states(*parts(q, k, v, [cut])), q, k, v, dtype)


@both
@pytest.mark.parametrize("size", [1, 30])
def test_many_parts_some_of_them_empty(size, dtype):
    q, k, v = arrays(dtype, size=size)
    rng = np.random.default_rng(1)
    for count in range(1, 12):
        cuts = np.sort(rng.integers(0, 41, count))
        assert_whole(merge_states(*parts(q, k, v, cuts)), q, k, v, dtype)
        assert_whole(merge_states(*parts(q, k, v, cuts, sink=[3.0, 1.0, -2.0])), q, k, v, dtype, sink=[3.0, 1.0, -2.0])


@both
def test_merging_is_associative_and_commutes(dtype):
    q, k, v = arrays(dtype)
    a, b, c = zip(*parts(q, k, v, [7, 30]), strict=True)

    def join(*states):
        return merge_states(*zip(*states, strict=True))

    at_once = join(a, b, c)
    for other in (join(join(a, b), c), join(a, join(b, c)), join(c, a, b), join(b, c, a)):
        for x, y in zip(other, at_once, strict=True):
            npt.assert_allclose(x, y, rtol=20 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)


@both
def test_one_state_is_itself(dtype):
    o, lse = attention(*arrays(dtype), return_lse=True)
    for x, y in zip(merge_states([o], [lse]), (o, lse), strict=True):
        npt.assert_array_equal(x, y)


@both
@pytest.mark.parametrize("x", [np.nan, np.inf, 1e30])
def test_a_state_that_saw_nothing_weighs_nothing_whatever_its_o(x, dtype):
    o, lse = attention(*arrays(dtype), return_lse=True)
    nothing = np.full_like(o, x), np.full_like(lse, -np.inf)
    for states in (([nothing[0], o], [nothing[1], lse]), ([o, nothing[0], nothing[0]], [lse, nothing[1], nothing[1]])):
        for found, wanted in zip(merge_states(*states), (o, lse), strict=True):
            npt.assert_array_equal(found, wanted)
    found, found_lse = merge_states([nothing[0]] * 3, [nothing[1]] * 3)
    npt.assert_array_equal(found, 0)
    npt.assert_array_equal(found_lse, -np.inf)


def test_each_row_goes_its_own_way():
    # Row 0 has seen keys in the first part, row 1 in the second, row 2 in none, row 3 in both.
    o1, o2 = np.array([[1.0], [np.nan], [np.nan], [1.0]]), np.array([[np.nan], [2.0], [np.nan], [4.0]])
    lse1, lse2 = np.array([0.5, -np.inf, -np.inf, 0.0]), np.array([-np.inf, 7.0, -np.inf, np.log(2)])
    o, lse = merge_states([o1, o2], [lse1, lse2])
    npt.assert_allclose(o, [[1], [2], [0], [3]], rtol=1e-15)
    npt.assert_allclose(lse, [0.5, 7, -np.inf, np.log(3)], rtol=1e-15)


@both
def test_nan_in_what_was_seen_stays(dtype):
    o, lse = attention(*arrays(dtype), return_lse=True)
    bad, bad_lse = o.copy(), lse.copy()
    bad[0, 0, 0, 1], bad_lse[0, 0, 1] = np.nan, np.nan
    found, found_lse = merge_states([o, bad], [lse, bad_lse])
    where = np.isnan(found)
    assert where[0, 0, 0].tolist() == [False, True, False, False]
    assert where[0, 0, 1].all()
    assert where.sum() == 5
    npt.assert_array_equal(np.isnan(found_lse), np.isnan(bad_lse))


@both
@pytest.mark.parametrize("level", [-1e30, -1e4, 1e4, 1e30])
def test_logarithms_of_any_size(level, dtype):
    # Both parts alike: the mean, and log 2 more, whatever exp(lse) is.
    o, lse = merge_states([np.array([[2.0]], dtype), np.array([[4.0]], dtype)], [np.array([level], dtype)] * 2)
    npt.assert_array_equal(o, [[3]])
    npt.assert_allclose(lse, [level + np.log(2)], rtol=np.finfo(dtype).eps)
    o, lse = merge_states([np.array([[2.0]], dtype), np.array([[4.0]], dtype)], [np.array([x], dtype) for x in (0, level)])
    npt.assert_array_equal(o, [[2 if level < 0 else 4]])
    npt.assert_array_equal(lse, np.array([max(level, 0)], dtype))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 5), (0, 3), (4, 0), (1, 2, 3, 4, 5)])
def test_any_leading_axes_as_the_reference(shape):
    rng = np.random.default_rng(2)
    outs, lses = numbers(rng, (3, *shape), F32), numbers(rng, (3, *shape[:-1]), F32, 5)
    lses[rng.random(lses.shape) < 0.2] = -np.inf
    for x, y in zip(merge_states(outs, lses), reference.merge_states(outs, lses), strict=True):
        # Sums in float64, then one rounding to float32.
        npt.assert_allclose(x, y, rtol=1.01 * np.finfo(np.float32).eps, atol=1e-12)
