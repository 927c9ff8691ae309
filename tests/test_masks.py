"""A mask says the same three times: as a drawing, key by key (`materialize`), and as the run of keys that kernels get."""

import copy
import itertools
import pickle

import numpy as np
import numpy.testing as npt
import pytest

import fastattn
import reference
from fastattn import causal, causal_top_left, lengths, packed, prefix, window
from fastattn.masks import REMEMBERED, runs, runs_packed

BOTH = pytest.mark.parametrize("module", [fastattn, reference], ids=lambda module: module.__name__)


# ---- by hand -----------------------------------------------------------------------------------------------------------
DRAWINGS = {
    "causal": ["# # # # .", "# # # # #"],
    "causal ": [". .", "# .", "# #"],
    "causal_top_left": ["# . . . .", "# # . . ."],
    "causal_top_left ": ["# .", "# #", "# #"],
    "window(1, 1)": [". # # # .", ". . # # #", ". . . # #"],
    "window(0, 0)": [". . # . .", ". . . # .", ". . . . #"],
    "window(1)": [". # # # #", ". . # # #", ". . . # #"],
    "window(None, 1)": ["# # # # .", "# # # # #", "# # # # #"],
    "window(-1, 0)": ["# # # . .", "# # # # .", "# # # # #"],
    "window(1, -1)": [". # # # #", ". . # # #", ". . . # #"],
    "window(1, 0) ": [". .", ". .", "# .", "# #"],
    "lengths([3])": ["# # # . .", "# # # . .", "# # # . ."],
    "lengths([3], [1])": ["# # # . .", ". . . . .", ". . . . ."],
    "causal & lengths([4])": ["# # . . .", "# # # . .", "# # # # ."],
    "causal & lengths([4], [2])": ["# # # . .", "# # # # .", ". . . . ."],
    "window(1, 0) & lengths([4], [2])": [". # # . .", ". . # # .", ". . . . ."],
    "causal_top_left & lengths([2])": ["# . . . .", "# # . . .", "# # . . ."],
    "causal & lengths([4], [2]) & lengths([3])": ["# # . . .", "# # # . .", ". . . . ."],
    "causal & lengths([3]) & lengths([4], [2])": ["# # . . .", "# # # . .", ". . . . ."],
    "causal & lengths([4], [1]) & lengths([4], [2])": ["# # # # .", ". . . . .", ". . . . ."],
    "causal & lengths([4], [2]) & lengths([4], [1])": ["# # # # .", ". . . . .", ". . . . ."],
    "causal & window(1)": [". # # . .", ". . # # .", ". . . # #"],
    "packed([7, 7, 2, 2, 2])": ["# # . . .", "# # . . .", ". . # # #", ". . # # #", ". . # # #"],
    "packed([7, 7, 2, 2, 2]) & causal": ["# . . . .", "# # . . .", ". . # . .", ". . # # .", ". . # # #"],
    "prefix(0)": ["# # # . .", "# # # # .", "# # # # #"],
    "prefix(4)": ["# # # # .", "# # # # .", "# # # # #"],
    "prefix(4) & lengths([3])": ["# # # . .", "# # # . .", "# # # . ."],
    "prefix(2) & lengths([3])": ["# # . . .", "# # . . .", "# # # . ."],
}


@BOTH
@pytest.mark.parametrize("name", DRAWINGS)
def test_a_mask_is_its_drawing(module, name):
    drawing = np.array([[mark == "#" for mark in row.split()] for row in DRAWINGS[name]])
    mask = eval(name.strip(), vars(module))
    npt.assert_array_equal(mask.materialize(*drawing.shape).reshape(drawing.shape), drawing)


# ---- key by key, and runs ------------------------------------------------------------------------------------------------
def singles(Sq, Sk, module):
    """Every kind of mask, for two sequences of Sq queries and Sk keys."""
    masks = [module.causal, module.causal_top_left, module.prefix(2), module.prefix([0, 3])]
    masks += [module.window(left, right) for left in (None, 0, 1, 3) for right in (None, 0, 2)]
    masks += [module.lengths([Sk // 2, Sk]), module.lengths([Sk, Sk // 3], [Sq, Sq // 2])]
    if Sq == Sk:
        ids = np.arange(Sq) // 3
        masks += [module.packed(ids), module.packed([ids, np.arange(Sq) // 2])]
    return masks


def seen_by(mask, B, Sq, Sk):
    return np.broadcast_to(mask.materialize(Sq, Sk), (B, 1, Sq, Sk))


def seen_by_runs(mask, B, Sq, Sk):
    """Which keys lie in the runs, which are what kernels may rely on."""
    lo, hi, seen = runs(mask, B, Sq, Sk)
    assert seen is None
    if lo is None:
        assert hi is None
        return np.ones((B, 1, Sq, Sk), bool)
    assert lo.dtype == hi.dtype == np.int64
    assert lo.flags.c_contiguous
    assert hi.flags.c_contiguous
    assert lo.shape == hi.shape
    assert lo.shape in ((1, Sq), (B, Sq))
    assert ((lo >= 0) & (lo <= hi) & (hi <= Sk)).all()
    assert not lo.size or lo.any() or (hi < Sk).any(), "every query sees every key: that is None, None"
    j = np.arange(Sk)
    return np.broadcast_to((lo[:, None, :, None] <= j) & (j < hi[:, None, :, None]), (B, 1, Sq, Sk))


@pytest.mark.parametrize(("Sq", "Sk"), list(itertools.product(range(9), repeat=2)))
def test_a_run_is_the_mask_and_both_are_the_reference(Sq, Sk):
    ours, theirs = singles(Sq, Sk, fastattn), singles(Sq, Sk, reference)
    for a, b in itertools.product(range(len(ours)), repeat=2):
        mask, other = (ours[a], theirs[a]) if a == b else (ours[a] & ours[b], theirs[a] & theirs[b])
        expected = seen_by(other, 2, Sq, Sk)
        npt.assert_array_equal(seen_by(mask, 2, Sq, Sk), expected, err_msg=repr(mask))
        npt.assert_array_equal(seen_by_runs(mask, 2, Sq, Sk), expected, err_msg=repr(mask))


def test_a_wrong_edge_does_not_pass(monkeypatch):
    for mask, wrong in [(causal, lambda self, at: (None, at.p + 2)), (causal, lambda self, at: (None, at.p)),
                        (window(2), lambda self, at: (at.p - 1, None)), (window(2), lambda self, at: (at.p - 3, None))]:
        npt.assert_array_equal(seen_by_runs(mask, 1, 5, 7), seen_by(mask, 1, 5, 7))
        with monkeypatch.context() as patch:
            patch.setattr(type(mask), "run", wrong)
            mask &= lengths([7])                    # not remembered
            with pytest.raises(AssertionError):
                npt.assert_array_equal(seen_by_runs(mask, 1, 5, 7), seen_by(mask, 1, 5, 7))


@pytest.mark.parametrize(("B", "Sq"), [(2, 0), (0, 3), (0, 0), (REMEMBERED // 64, 64), (REMEMBERED // 64 + 1, 64)])
def test_any_size_is_right_remembered_or_not(B, Sq):
    n = np.minimum(np.arange(B) + 1, Sq)
    for _ in range(2):
        for mask in (causal, window(1, 1), causal & lengths(n), prefix(n), packed(np.arange(Sq) // 2)):
            npt.assert_array_equal(seen_by_runs(mask, B, Sq, Sq), seen_by(mask, B, Sq, Sq))


def test_what_is_remembered_depends_on_the_mask_and_on_every_size():
    wanted = [(mask, B, Sq, Sk) for mask in (causal, window(1), window(None, 1), window(2), causal & window(1), window(1) & causal,
                                             lengths([2]), lengths([1]), lengths([2], [2]), prefix(2), prefix([2]), causal_top_left)
              for B, Sq, Sk in ((1, 2, 3), (1, 3, 2), (1, 2, 2), (1, 3, 3))]
    for _ in range(2):
        for mask, B, Sq, Sk in wanted:
            # Equal masks that are not the same object share what is remembered.
            npt.assert_array_equal(seen_by_runs(copy.deepcopy(mask), B, Sq, Sk), seen_by(mask, B, Sq, Sk), err_msg=repr(mask))
    lo, hi, _ = runs(causal, 1, 3, 3)
    assert runs(causal, 1, 3, 3)[1] is hi
    for x in (lo, hi):
        with pytest.raises(ValueError, match="read-only"):
            x[0, 0] = 100


@pytest.mark.parametrize("far", [2**31, 2**62, 2**63 - 1, 2**80])
def test_a_window_further_than_any_key_is_no_limit(far):
    for mask in (window(far, far), window(far), window(None, far), prefix(far)):
        assert runs(mask, 1, 3, 4) == (None, None, None)
        assert mask.materialize(3, 4).all()
    npt.assert_array_equal(seen_by_runs(causal & window(far, far), 1, 3, 4), seen_by(causal, 1, 3, 4))
    npt.assert_array_equal(seen_by_runs(window(far, far) & lengths([2], [1]), 1, 3, 4), seen_by(lengths([2], [1]), 1, 3, 4))


def test_sequences_of_2_to_the_40_have_right_runs():
    # Positions and edges beyond 32 bits. A view of one query stands for the many that nobody needs.
    lo, hi, _ = runs(causal & window(2**35), 1, 3, 2**40)
    npt.assert_array_equal(hi, [[2**40 - 2, 2**40 - 1, 2**40]])
    npt.assert_array_equal(lo, hi - 1 - 2**35)


def test_boolean_arrays_join_from_either_side():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 4, 5)) < 0.5, rng.random((4, 5)) < 0.5
    expected = a & b & causal.materialize(4, 5)
    for mask in (causal & a & b, a & causal & b, b & (a & causal), a & (causal & b)):
        npt.assert_array_equal(mask.materialize(4, 5), expected)
        lo, hi, seen = runs(mask, 2, 4, 5)
        j = np.arange(5)
        npt.assert_array_equal((lo[..., None] <= j) & (j < hi[..., None]) & seen, expected)


@pytest.mark.parametrize("shape", [(), (5,), (1,), (4, 5), (4, 1), (1, 5), (3, 4, 5), (1, 1, 1), (2, 3, 4, 5), (2, 1, 1, 5)])
def test_a_boolean_array_stays_as_it_is(shape):
    seen = np.random.default_rng(0).random(shape) < 0.5
    lo, hi, given = runs(seen, 2, 4, 5)
    assert lo is hi is None
    npt.assert_array_equal(given, seen)
    assert np.shares_memory(given, seen) or not shape


def test_sequences_behind_each_other_have_runs_of_their_own():
    starts_q, starts_k = np.array([0, 3, 3, 7, 8]), np.array([0, 5, 6, 6, 10])
    masks = [(mask(module) for module in (fastattn, reference)) for mask in (
        lambda m: m.causal, lambda m: m.causal_top_left, lambda m: m.window(1), lambda m: m.window(0, 1), lambda m: m.prefix(2),
        lambda m: m.prefix([1, 9, 0, 3]), lambda m: m.causal & m.window(1), lambda m: m.prefix([4, 0, 1, 1]) & m.window(2, 1))]
    for mask, other in masks:
        lo, hi = runs_packed(mask, starts_q, np.diff(starts_k), 9)
        assert lo.shape == hi.shape == (1, 9)
        assert lo.dtype == hi.dtype == np.int64
        assert lo[0, 8] == hi[0, 8]
        for b in range(4):
            Sq, Sk = np.diff(starts_q)[b], np.diff(starts_k)[b]
            rows, j = slice(starts_q[b], starts_q[b + 1]), np.arange(Sk)
            assert ((lo[0, rows] >= 0) & (lo[0, rows] <= hi[0, rows]) & (hi[0, rows] <= Sk)).all()
            seen = other.materialize(Sq, Sk)
            run = (lo[0, rows, None] <= j) & (j < hi[0, rows, None])
            npt.assert_array_equal(run, seen[b, 0] if seen.ndim == 4 else seen, err_msg=repr(mask))
    assert runs_packed(None, starts_q, np.diff(starts_k), 9) == (None, None)
    assert runs_packed(window(None), starts_q, np.diff(starts_k), 9) == (None, None)


# ---- values --------------------------------------------------------------------------------------------------------------
VALUES = [causal, causal_top_left, window(3), window(3, 0), window(None, 3),
          lengths([3, 4]), lengths([3, 4], [3, 4]), lengths([3, 5]), packed([0, 0, 1]), packed([[0, 0, 1]]), packed([0, 1, 1]), prefix(2), prefix([2]), prefix([2, 2]),
          causal & window(3), causal & lengths([3, 4]), causal & prefix(2)]


def test_masks_are_values():
    for (a, mask), (b, other) in itertools.product(enumerate(VALUES), repeat=2):
        assert (mask == other) == (a == b), (mask, other)
    for mask in VALUES:
        for same in (pickle.loads(pickle.dumps(mask)), copy.copy(mask), copy.deepcopy(mask)):
            assert same == mask
            assert hash(same) == hash(mask)
            assert repr(same) == repr(mask)
    assert len(set(VALUES)) == len(VALUES)
    assert window(-1, np.int64(-1)) == window(None, None)
    assert lengths([]) == lengths(np.zeros(0, np.uint8))


def test_a_mask_with_an_array_is_not_hashable():
    seen = np.ones(3, bool)
    assert causal & seen == causal & seen
    other = causal & seen.copy()
    assert causal & seen == other
    seen[1] = False
    assert causal & seen != other
    with pytest.raises(TypeError, match="unhashable"):
        hash(causal & seen)


@pytest.mark.parametrize(("mask", "text"), [
    (causal & causal_top_left, "causal & causal_top_left"),
    (window(3) & window(None, 2) & prefix(2), "window(3) & window(None, 2) & prefix(2)"),
    (window(None), "window(None)"),
    (lengths([7, 5]), "lengths([7, 5])"),
    (lengths([7, 5], [1, 2]), "lengths([7, 5], [1, 2])"),
    (packed([0, 0, 1]) & np.ones((3, 3), bool), "packed([0, 0, 1]) & <bool (3, 3)>"),
    (lengths(range(100)), "lengths([ 0,  1,  2, ..., 97, 98, 99])"),
])
def test_a_mask_is_written_as_it_was_made(mask, text):
    assert repr(mask) == text


def test_masks_do_not_change():
    numbers = np.array([3, 4])
    mask = lengths(numbers) & window(2)
    numbers[:] = 1000
    npt.assert_array_equal(mask.parts[0].k_lengths, [3, 4])
    with pytest.raises(ValueError, match="WRITEABLE"):
        mask.parts[0].k_lengths.flags.writeable = True
    with pytest.raises(AttributeError, match="masks do not change; make a new one instead of setting left"):
        mask.parts[1].left = 3


def test_and_is_not_the_way_to_join():
    # `causal and mask` would be mask alone.
    with pytest.raises(TypeError, match="joined with &, not with `and`"):
        causal and lengths([3])


@pytest.mark.parametrize("x", [np.ones(4, bool), [True, False]])
def test_what_numpy_reads_as_booleans_is_a_mask(x):
    npt.assert_array_equal(runs(x, 1, 1, np.size(x))[2], np.asarray(x))


# ---- errors --------------------------------------------------------------------------------------------------------------
ONE = np.array([0, 1]), np.array([1]), 1                # starts_q, Sk, Tq of one sequence of one query and one key

WRONG = [
    (lambda: window(-2), ValueError, "left must be at least -1; got -2"),
    (lambda: window(1.5), TypeError, "left must be an integer; got float"),
    (lambda: window(0, True), TypeError, "right must be an integer; got bool"),
    (lambda: window(0, np.ones(2, int)), TypeError, "right must be an integer; got ndarray"),
    (lambda: prefix(-1), ValueError, "n must be at least 0; got -1"),
    (lambda: prefix("3"), TypeError, "n must be an integer; got str"),
    (lambda: prefix(np.True_), TypeError, "n must be an integer; got bool"),
    (lambda: prefix([1.0]), TypeError, "n must be integers; got float64"),
    (lambda: prefix([[1], [1, 2]]), ValueError, "n must be an array; its lists differ in length"),
    (lambda: lengths([3, -1]), ValueError, "k_lengths must not be negative; sequence 1 has -1"),
    (lambda: lengths([3, 3], [0, -2]), ValueError, "q_lengths must not be negative; sequence 1 has -2"),
    (lambda: lengths([3.0]), TypeError, "k_lengths must be integers; got float64"),
    (lambda: lengths([True]), TypeError, "k_lengths must be integers; got bool"),
    (lambda: lengths([2**70]), TypeError, "k_lengths must be integers; got list"),
    (lambda: lengths(np.array([2**63], np.uint64)), ValueError, r"k_lengths must be below 2\^63; got 9223372036854775808"),
    (lambda: lengths(np.ma.masked_array([1])), TypeError, "k_lengths: masked arrays are not supported"),
    (lambda: lengths(3), ValueError, r"k_lengths must be \(B,\), one integer for each sequence; got \(\)"),
    (lambda: lengths([3], [1, 2]), ValueError, "as many; got 1 and 2"),
    (lambda: packed([0, 1, 0]), ValueError, "equal ids must stand together; in row 0 a segment of id 0 begins at 0 and "),
    (lambda: packed([[5, 5, 5], [6, 7, 6]]), ValueError, "in row 1 a segment of id 6 begins at 0 and another at 2"),
    (lambda: packed(np.zeros((1, 1, 1), int)), ValueError, r"segment_ids must be \(S,\) or \(B, S\); got \(1, 1, 1\)"),
    (lambda: packed([0.5]), TypeError, "segment_ids must be integers; got float64"),
    (lambda: causal & 3, TypeError, r"mask must be a mask \(causal, .* or a boolean array; got an array of int"),
    (lambda: causal & np.ones((2, 2)), TypeError, "got an array of float64; what is added to the scores is a bias"),
    (lambda: np.ones((2, 2), np.uint8) & causal, TypeError, "got an array of uint8; use x != 0"),
    (lambda: causal & window, TypeError, "or a boolean array; got type"),
    (lambda: causal & [[True], [True, False]], ValueError, "mask must be an array; its lists differ in length"),
    (lambda: runs(np.ma.masked_array([True]), 1, 1, 1), TypeError, "mask: masked arrays are not supported"),
    (lambda: runs(lengths([3]), 2, 4, 4), ValueError, r"mask must have a number for each of the B = 2 .* got lengths\(\[3\]\)"),
    (lambda: runs(lengths([3, 3]), 1, 4, 4), ValueError, r"each of the B = 1 sequences of the batch; got lengths\(\[3, 3\]\)"),
    (lambda: runs(prefix([3]), 2, 4, 4), ValueError, r"each of the B = 2 sequences of the batch; got prefix\(\[3\]\)"),
    (lambda: runs(packed([[0, 0]]), 2, 2, 2), ValueError, r"each of the B = 2 sequences of the batch; got packed\("),
    (lambda: runs(lengths([4, 5]), 2, 4, 4), ValueError, "k_lengths must be at most the keys, Sk = 4; sequence 1 has 5"),
    (lambda: runs(lengths([4], [5]), 1, 4, 4), ValueError, "q_lengths must be at most the queries, Sq = 4; sequence 0 has 5"),
    (lambda: lengths([5]).materialize(4, 4), ValueError, "k_lengths must be at most the keys, Sk = 4"),
    (lambda: runs(packed([0, 0]), 1, 3, 3), ValueError, r"S = Sq = Sk; got segment_ids \(2,\), Sq = 3, Sk = 3"),
    (lambda: runs(packed([0, 0]), 1, 2, 3), ValueError, r"S = Sq = Sk; got segment_ids \(2,\), Sq = 2, Sk = 3"),
    (lambda: runs(np.ones((3, 4), bool), 1, 3, 5), ValueError, r"mask must broadcast to .* got \(3, 4\) for B = 1, Sq = 3, Sk = 5"),
    (lambda: runs(np.ones((2, 5), bool), 1, 3, 5), ValueError, r"mask must broadcast .* got \(2, 5\)"),
    (lambda: runs(causal & np.ones((2, 1, 1, 5), bool), 3, 3, 5), ValueError, r"mask must broadcast .* got \(2, 1, 1, 5\)"),
    (lambda: runs(np.ones((1, 1, 1, 3, 5), bool), 1, 3, 5), ValueError, r"mask must broadcast .* got \(1, 1, 1, 3, 5\)"),
    (lambda: runs(causal & np.ones((2, 1, 1), bool) & np.ones((3, 1, 1), bool), 1, 3, 5), ValueError,
     r"masks that are joined must broadcast .* got \(2, 1, 1\) and \(3, 1, 1\)"),
    (lambda: (causal & lengths([1, 1]) & prefix([1, 2, 3])).materialize(2, 2), ValueError, r"each of the B = 2 .* got prefix\("),
    (lambda: (lengths([1, 1]) & np.ones((3, 1, 1, 1), bool)).materialize(2, 2), ValueError, "must broadcast .* for B = 2"),
    (lambda: runs_packed(lengths([1]), *ONE), ValueError, r"cu_seqlens say how long .* got lengths\(\[1\]\)"),
    (lambda: runs_packed(causal & packed([1]), *ONE), ValueError, r"got packed\(\[1\]\)"),
    (lambda: runs_packed(np.ones((1, 1), bool), *ONE), ValueError, r"got <bool \(1, 1\)>"),
    (lambda: runs_packed(prefix([1, 2]), *ONE), ValueError, r"each of the B = 1 sequences of the batch; got prefix\("),
]


@pytest.mark.parametrize(("make", "error", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_a_mask_that_does_not_fit_says_why(make, error, message):
    with pytest.raises(error, match=message):
        make()
