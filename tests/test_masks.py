"""A mask is a predicate; a run is the same as two numbers; the reference says the predicate a second time."""

import itertools
import pickle

import numpy as np
import numpy.testing as npt
import pytest

import fastattn
import reference
from fastattn.masks import runs, runs_packed


def singles(Sq, Sk, module):
    """Every kind of mask, for two sequences of Sq queries and Sk keys."""
    masks = [module.causal, module.causal_top_left, module.prefix(2), module.prefix([0, 3])]
    masks += [module.window(left, right) for left in (None, 0, 1, 3) for right in (None, 0, 2)]
    masks += [module.lengths([Sk // 2, Sk]), module.lengths([Sk, Sk // 3], [Sq, Sq // 2])]
    if Sq == Sk:
        ids = np.arange(Sq) // 3
        masks += [module.packed(ids), module.packed([ids, np.arange(Sq) // 2])]
    return masks


def seen_by(mask, Sq, Sk):
    return np.broadcast_to(mask.materialize(Sq, Sk), (2, 1, Sq, Sk))


@pytest.mark.parametrize(("Sq", "Sk"), list(itertools.product(range(9), repeat=2)))
def test_a_run_is_the_predicate_and_both_are_the_reference(Sq, Sk):
    ours, theirs = singles(Sq, Sk, fastattn), singles(Sq, Sk, reference)
    pairs = [*itertools.product(range(len(ours)), repeat=2)]
    j = np.arange(Sk)
    for a, b in pairs:
        mask = ours[a] if a == b else ours[a] & ours[b]
        other = theirs[a] if a == b else theirs[a] & theirs[b]
        expected = seen_by(other, Sq, Sk)
        npt.assert_array_equal(seen_by(mask, Sq, Sk), expected, err_msg=repr(mask))
        lo, hi, seen = runs(mask, 2, Sq, Sk)
        assert seen is None
        if lo is None:
            assert expected.all()
            continue
        assert lo.dtype == hi.dtype == np.int64
        assert lo.shape == hi.shape
        assert lo.shape in ((1, Sq), (2, Sq))
        assert ((lo >= 0) & (lo <= hi) & (hi <= Sk)).all()
        run = (lo[:, None, :, None] <= j) & (j < hi[:, None, :, None])
        npt.assert_array_equal(np.broadcast_to(run, expected.shape), expected, err_msg=repr(mask))


def test_a_wrong_edge_does_not_pass():
    lo, hi, _ = runs(fastattn.causal, 1, 5, 7)
    wrong = (lo[..., None] <= np.arange(7)) & (np.arange(7) < hi[..., None] + 1)
    with pytest.raises(AssertionError):
        npt.assert_array_equal(wrong[0], fastattn.causal.materialize(5, 7))


def test_boolean_arrays_join_from_either_side():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 4, 5)) < 0.5, rng.random((4, 5)) < 0.5
    expected = a & b & fastattn.causal.materialize(4, 5)
    for mask in (fastattn.causal & a & b, a & fastattn.causal & b, b & (a & fastattn.causal)):
        npt.assert_array_equal(mask.materialize(4, 5), expected)
        lo, hi, seen = runs(mask, 2, 4, 5)
        j = np.arange(5)
        npt.assert_array_equal((lo[..., None] <= j) & (j < hi[..., None]) & seen, expected)


@pytest.mark.parametrize("far", [2**31, 2**62, 2**63 - 1, 2**80])
def test_a_window_further_than_any_key_is_no_limit(far):
    for mask in (fastattn.window(far, far), fastattn.window(far), fastattn.prefix(far)):
        assert runs(mask, 1, 3, 4) == (None, None, None)


def test_packed_sequences_have_runs_of_their_own():
    starts_q, starts_k = np.array([0, 3, 3, 7, 8]), np.array([0, 5, 6, 6, 10])
    for mask, other in zip(singles(0, 1, fastattn)[:16], singles(0, 1, reference)[:16], strict=True):
        if "[" in repr(mask):                       # numbers for two sequences, here are four
            continue
        lo, hi = runs_packed(mask, starts_q, np.diff(starts_k), 9)
        if lo is None:
            continue
        assert lo.shape == hi.shape == (1, 9)
        for b in range(4):
            Sq, Sk = np.diff(starts_q)[b], np.diff(starts_k)[b]
            rows, j = slice(starts_q[b], starts_q[b + 1]), np.arange(Sk)
            run = (lo[0, rows, None] <= j) & (j < hi[0, rows, None])
            npt.assert_array_equal(run, np.broadcast_to(other.materialize(Sq, Sk), (1, 1, Sq, Sk))[0, 0], err_msg=repr(mask))
        assert lo[0, 8] == hi[0, 8]


def test_masks_are_values():
    a, b = fastattn.causal & fastattn.lengths([3, 4]), fastattn.causal & fastattn.lengths([3, 4])
    assert a == b
    assert hash(a) == hash(b)
    assert a != fastattn.causal & fastattn.lengths([3, 5])
    assert pickle.loads(pickle.dumps(a)) == a
    assert repr(fastattn.window(3) & fastattn.causal & fastattn.prefix(2)) == "window(3) & causal & prefix(2)"
    with pytest.raises(AttributeError, match="masks do not change"):
        a.masks = ()
    with pytest.raises(TypeError, match="neither true nor false"):
        bool(a)


def test_lengths_are_copied():
    numbers = np.array([3, 4])
    mask = fastattn.lengths(numbers)
    numbers[:] = 1000
    npt.assert_array_equal(mask.k_lengths, [3, 4])


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: fastattn.window(-2), ValueError, "left must not be negative; got -2"),
    (lambda: fastattn.window(1.5), TypeError, "left must be an integer; got float"),
    (lambda: fastattn.window(0, True), TypeError, "right must be an integer; got bool"),
    (lambda: fastattn.prefix(-1), ValueError, "n must not be negative; got -1"),
    (lambda: fastattn.prefix("3"), TypeError, "n must be"),
    (lambda: fastattn.lengths([3, -1]), ValueError, "k_lengths must not be negative; sequence 1 has -1"),
    (lambda: fastattn.lengths([3.0]), TypeError, "k_lengths must be integers; got float64"),
    (lambda: fastattn.lengths([True]), TypeError, "k_lengths must be integers; got bool"),
    (lambda: fastattn.lengths(3), ValueError, r"k_lengths must be \(B,\)"),
    (lambda: fastattn.lengths([3], [1, 2]), ValueError, "as many; got 1 and 2"),
    (lambda: fastattn.packed([0, 1, 0]), ValueError, "in row 0 a segment of id 0 begins at 0 and another at 2"),
    (lambda: fastattn.packed(np.zeros((1, 1, 1), int)), ValueError, r"segment_ids must be \(S,\) or \(B, S\)"),
    (lambda: fastattn.causal & 3, TypeError, "mask must be a mask"),
    (lambda: fastattn.causal & np.ones((2, 2)), TypeError, "is a bias"),
    (lambda: runs(fastattn.lengths([3]), 2, 4, 4), ValueError, "for each of the B = 2 sequences"),
    (lambda: runs(fastattn.lengths([5]), 1, 4, 4), ValueError, "k_lengths must be at most the keys, Sk = 4"),
    (lambda: runs(fastattn.lengths([4], [5]), 1, 4, 4), ValueError, "q_lengths must be at most the queries, Sq = 4"),
    (lambda: runs(fastattn.packed([0, 0]), 1, 3, 3), ValueError, "one segment id for each place"),
    (lambda: runs(np.ones((3, 4), bool), 1, 3, 5), ValueError, "mask must broadcast"),
    (lambda: runs(np.ones((3, 4)), 1, 3, 4), TypeError, "boolean array"),
    (lambda: runs(np.ma.masked_array([True]), 1, 1, 1), TypeError, "masked arrays are not supported"),
    (lambda: runs_packed(fastattn.lengths([1]), np.array([0, 1]), np.array([1]), 1), ValueError, "packed sequences have"),
])
def test_a_mask_that_does_not_fit_says_why(make, error, message):
    with pytest.raises(error, match=message):
        make()
