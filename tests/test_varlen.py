"""attention_varlen is attention of each sequence, bit by bit; hostile lengths are refused, and never believed."""

import functools
import itertools
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest

import fastattn
import reference
from fastattn import api, attention, attention_varlen, causal, causal_top_left, checks, lengths, packed, prefix, window
from fastattn.passes import launch
from tests.bounds import exact, ratio, sharp
from tests.guard import guarded, memory
from tests.problems import DTYPES, F32, W, few_channels, many_channels, numbers

both = pytest.mark.parametrize("dtype", DTYPES, ids=str)
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="guard pages and signals of POSIX")


def starts(rng, B, most):
    """Where B sequences begin and end, empty ones among them."""
    return np.cumsum(np.r_[0, rng.integers(0, most + 1, B) * (rng.random(B) < 0.85)])


def problem(rng, dtype=None, most=40):
    """q, k, v, cu_seqlens_q, cu_seqlens_k and options."""
    dtype = np.dtype(dtype or rng.choice(["f4", "f8"]))
    B, Hkv, group, D = int(rng.integers(0, 6)), *(int(n) for n in rng.integers(1, 4, 3))
    Dv = many_channels(dtype) if rng.random() < 0.2 else int(rng.choice(few_channels(dtype)))
    cu_q, cu_k = starts(rng, B, most), starts(rng, B, most)
    behind = rng.integers(0, 4, 2)
    q = numbers(rng, (cu_q[-1] + behind[0], Hkv * group, D), dtype)
    k, v = (numbers(rng, (cu_k[-1] + behind[1], Hkv, n), dtype) for n in (D, Dv))
    masks = [None, causal, causal_top_left, window(5, 3), causal & window(9), prefix(4)]
    options = {"mask": masks[rng.integers(0, len(masks))]}
    if rng.random() < 0.3:
        options["sink"] = rng.standard_normal(Hkv * group)
    if rng.random() < 0.3:
        options["alibi"] = rng.random(Hkv * group)
    if rng.random() < 0.2:
        options["softcap"] = 2.0
    if rng.random() < 0.3:
        options["scale"] = -0.4
    return q, k, v, cu_q, cu_k, options


def sequences(q, k, v, cu_q, cu_k, **options):
    """Each sequence by itself, with `attention`; rows behind the last are 0 and -inf."""
    o, lse = np.zeros((*q.shape[:2], v.shape[2]), q.dtype), np.full(q.shape[:2], -np.inf, q.dtype)
    for b in range(len(cu_q) - 1):
        rows, keys = slice(*cu_q[b:b + 2]), slice(*cu_k[b:b + 2])
        one = (x.swapaxes(0, 1) for x in (q[rows], k[keys], v[keys]))
        ob, lb = attention(*one, return_lse=True, **options)
        o[rows], lse[rows] = ob.swapaxes(0, 1), lb.T
    return o, lse


def assert_same(found, wanted):
    for x, y in zip(found, wanted, strict=True):
        npt.assert_array_equal(x, y)


@pytest.mark.parametrize("threads", [1, 3])
def test_it_is_attention_of_each_sequence(threads, monkeypatch):
    # Few queries would be another pass's, whose sums come in another order.
    monkeypatch.setattr(api, "is_decode", lambda dtype, rows: False)
    monkeypatch.setattr(api, "_forward", functools.cache(api._forward.__wrapped__))
    monkeypatch.setattr(launch, "SERIAL_FLOPS", 0)
    monkeypatch.setattr(launch, "SLICE_FLOPS", 0)
    rng = np.random.default_rng(threads)
    for _ in range(500):
        q, k, v, cu_q, cu_k, options = problem(rng, most=90 if rng.random() < 0.2 else 30)
        found = attention_varlen(q, k, v, cu_q, cu_k, return_lse=True, threads=threads, **options)
        assert_same(found, sequences(q, k, v, cu_q, cu_k, **options))


@both
def test_it_is_the_reference(dtype):
    rng = np.random.default_rng(5)
    for _ in range(20):
        q, k, v, cu_q, cu_k, options = problem(rng, dtype, most=12)
        ours = attention_varlen(q, k, v, cu_q, cu_k, return_lse=True, **options)
        if isinstance(options["mask"], prefix):
            options["mask"] = reference.prefix(4)
        theirs = reference.attention_varlen(q, k, v, cu_q, cu_k, return_lse=True, **options)
        # Sums of a dozen numbers of size 1.
        for x, y in zip(ours, theirs, strict=True):
            npt.assert_allclose(x, y, rtol=1e3 * np.finfo(dtype).eps, atol=100 * np.finfo(dtype).eps)


@both
def test_long_sequences_are_within_the_bound(dtype):
    if not sharp(dtype):
        pytest.skip("nothing wider than float64 to compare it with")
    rng = np.random.default_rng(6)
    cu = np.array([0, W(dtype) + 1, W(dtype) + 200, W(dtype) + 201])
    q, k, v = (numbers(rng, (int(cu[-1]), 2, 8), dtype) for _ in range(3))
    o, lse = attention_varlen(q, k, v, cu, cu, mask=causal, return_lse=True)
    for lo, hi in itertools.pairwise(cu):
        one = [x[lo:hi].swapaxes(0, 1)[None] for x in (q, k, v)]
        wanted = exact(*one, seen=causal.materialize(hi - lo, hi - lo))
        assert ratio(o[lo:hi].swapaxes(0, 1)[None], lse[lo:hi].T[None], wanted) <= 1


def test_a_mask_goes_by_each_sequence():
    # Two sequences of 2 queries over 3 keys, all scores 0: causal sees 2, then 3 of its own keys.
    q, k, v = np.zeros((4, 1, 1)), np.zeros((6, 1, 1)), np.arange(6.0)[:, None, None]
    o = attention_varlen(q, k, v, [0, 2, 4], [0, 3, 6], mask=causal)
    npt.assert_allclose(o[:, 0, 0], [0.5, 1, 3.5, 4], rtol=1e-15)
    # A prefix for each sequence: the first sees all 3 keys at once.
    o = attention_varlen(q, k, v, [0, 2, 4], [0, 3, 6], mask=prefix([3, 0]))
    npt.assert_allclose(o[:, 0, 0], [1, 1, 3.5, 4], rtol=1e-15)


def test_sequences_without_queries_or_keys():
    q, k, v = np.zeros((3, 1, 2)), np.zeros((2, 1, 2)), np.ones((2, 1, 2))
    o, lse = attention_varlen(q, k, v, [0, 0, 2, 3], [0, 1, 1, 2], return_lse=True)
    npt.assert_array_equal(o[:2], 0)
    npt.assert_array_equal(lse[:2], -np.inf)
    # The one key's v, and its score 0: to rounding, as o is a sum times 1 / l and lse a sum of logarithms.
    npt.assert_allclose(o[2], 1, rtol=1e-15)
    npt.assert_allclose(lse[2], 0, atol=1e-14)
    o, lse = attention_varlen(q, k, v, [0, 0, 2, 3], [0, 1, 1, 2], sink=[0.0], return_lse=True)
    npt.assert_allclose(o[:, 0, 0], [0, 0, 0.5], rtol=1e-15)
    npt.assert_allclose(lse[:, 0], [0, 0, np.log(2)], rtol=1e-15)
    o, lse = attention_varlen(q, k, v, [0], [0], return_lse=True)              # no sequence at all
    npt.assert_array_equal(o, 0)
    npt.assert_array_equal(lse, -np.inf)


def test_rows_behind_the_last_sequence_are_0_whatever_out_was():
    q = np.ones((5, 1, 2), np.float32)
    out = np.full_like(q, np.nan)
    _, lse = attention_varlen(q, q, q, [0, 2], [0, 2], out=out, sink=[1.0], return_lse=True)
    npt.assert_array_equal(out[2:], 0)
    npt.assert_array_equal(lse[2:], -np.inf)


def test_out_and_inputs_of_any_layout():
    rng = np.random.default_rng(7)
    for _ in range(50):
        q, k, v, cu_q, cu_k, options = problem(rng)
        wanted = attention_varlen(q, k, v, cu_q, cu_k, **options)
        heads_first = [x.swapaxes(0, 1).copy().swapaxes(0, 1) for x in (q, k, v)]
        out = np.full((wanted.shape[1], len(wanted), wanted.shape[2] + 2), np.nan, wanted.dtype)[..., 1:-1].swapaxes(0, 1)
        assert attention_varlen(*heads_first, cu_q, cu_k, out=out, **options) is out
        npt.assert_array_equal(out, wanted)


def test_no_sequence_sees_another():
    rng = np.random.default_rng(8)
    for _ in range(200):
        q, k, v, cu_q, cu_k, options = problem(rng)
        if len(cu_q) == 1:
            continue
        wanted = attention_varlen(q, k, v, cu_q, cu_k, return_lse=True, **options)
        b = int(rng.integers(0, len(cu_q) - 1))
        rows, keys = slice(*cu_q[b:b + 2]), slice(*cu_k[b:b + 2])
        for x, own in ((q, rows), (k, keys), (v, keys)):
            kept = x[own].copy()
            x[...] = rng.choice([np.nan, np.inf, 1e38])             # the other sequences, and what lies behind them
            x[own] = kept
        found = attention_varlen(q, k, v, cu_q, cu_k, return_lse=True, **options)
        assert_same([x[rows] for x in found], [x[rows] for x in wanted])


# ---- hostile lengths -------------------------------------------------------------------------------------------------------
HUGE = [-1, -(2**31), -(2**63), 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**40, 2**62, 2**63 - 1]


def corrupt(rng, good, most):
    """Numbers with something wrong: for sequences of which none ends behind `most`, or for lengths of at most so many."""
    bad, at = np.array(good), int(rng.integers(0, len(good)))
    how = rng.integers(0, 6)
    if how == 0:
        bad[at] = HUGE[rng.integers(0, len(HUGE))]
    elif how == 1:
        bad[at] = most + 1 + int(rng.integers(0, 3))
    elif how == 2:
        bad = bad.astype(rng.choice(["f4", "f8", "c8", "O", "S3", "?", "m8[s]"]))
    elif how == 3:
        bad = bad.reshape(rng.choice([1, -1]), len(bad), 1)[:1]
    elif how == 4:
        bad = np.append(bad, -3)
    else:
        bad = [[], "0", {}, object(), [[0], [1, 2]], 1.5, np.nan][rng.integers(0, 7)]
    return bad


SECRET = 1234.5


def beside_a_secret(rows):
    """(rows, 1, 2) numbers, 1, behind numbers of somebody else's; what lies further is not to be touched."""
    there = memory(4 * (8 * 2 + rows * 2), "tail")[0].view(F32).reshape(-1, 1, 2)
    there[:8] = SECRET
    there[8:] = 1
    return there[8:]


def accepted(what, count, seed):
    """The corrupt numbers that were not refused. In a process of its own, as guard pages end it."""
    rng, found = np.random.default_rng(seed), []
    packed_rows = [beside_a_secret(7) for _ in range(3)]
    x = [guarded(np.ones((3, 1, 7, 2), F32))[0] for _ in range(3)]
    for _ in range(count):
        if what == "cu_seqlens":
            good = np.r_[0, np.sort(rng.integers(0, 8, 3))]
            bad = corrupt(rng, good, 7)
            calls = [lambda good=good, bad=bad: attention_varlen(*packed_rows, good, bad),
                     lambda good=good, bad=bad: attention_varlen(*packed_rows, bad, good)]
        else:
            good = rng.integers(0, 8, 3)
            bad = corrupt(rng, good, 7)
            calls = [lambda bad=bad: attention(*x, mask=causal & lengths(bad)),
                     lambda good=good, bad=bad: attention(*x, mask=lengths(good, bad)),
                     lambda good=good, bad=bad: attention(*x, mask=lengths(bad, good))]
        try:
            calls[rng.integers(0, len(calls))]()
            found.append(repr(bad))
        except (TypeError, ValueError, IndexError):
            pass
    return found


@POSIX
@pytest.mark.parametrize("what", ["cu_seqlens", "lengths"])
@pytest.mark.parametrize("count", [5000, pytest.param(200_000, marks=pytest.mark.nightly)])
def test_corrupt_lengths_are_refused(call, what, count):
    assert call(accepted, what, count, 9) == []


def believed(start, end):
    """The largest number that a call gives which believes that its one sequence has these rows of keys, whose v are 1."""
    checks.cumulative = lambda name, x, rows, of: np.array(x, np.int64)
    q, k, v = (beside_a_secret(7) for _ in range(3))
    return float(attention_varlen(q, k, v, [0, 7], [start, end]).max())


@POSIX
def test_the_control_lengths_that_are_believed_show_a_secret_or_end_the_process(call, run):
    assert call(believed, 0, 7) < 1.1
    assert call(believed, -8, 7) > 100
    assert run(believed, 0, 5000).status == -signal.SIGSEGV


@pytest.mark.parametrize("kind", ["i1", "u1", "i4", "u4", "u8", ">i4", ">u8"])
def test_integers_of_any_kind_will_do(kind):
    q = numbers(np.random.default_rng(0), (7, 1, 2), F32)
    cu, n = np.array([0, 3, 7], kind), np.array([5], kind)
    npt.assert_array_equal(attention_varlen(q, q, q, cu, cu), attention_varlen(q, q, q, [0, 3, 7], [0, 3, 7]))
    x = q[None, None, :, 0]
    npt.assert_array_equal(attention(x, x, x, mask=lengths(n, n)), attention(x, x, x, mask=lengths([5], [5])))


def test_masks_that_need_their_own_lengths_are_refused():
    q = np.ones((4, 1, 2))
    for mask in (lengths([2, 2]), packed([0, 0, 1, 1]), np.ones((4, 4), bool), causal & lengths([2, 2])):
        with pytest.raises(ValueError, match="where cu_seqlens say how long sequences are"):
            attention_varlen(q, q, q, [0, 2, 4], [0, 2, 4], mask=mask)


class Fickle:
    """An array that is fine when it is looked at first, and hostile from then on."""

    def __init__(self, *values):
        self.values = list(values)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values.pop(0) if len(self.values) > 1 else self.values[0])


def test_what_is_checked_is_what_is_used():
    q = numbers(np.random.default_rng(0), (7, 1, 2), F32)
    wanted = attention_varlen(q, q, q, [0, 3, 7], [0, 4, 7])
    found = attention_varlen(q, q, q, Fickle([0, 3, 7], [0, 2**40, 7]), Fickle([0, 4, 7], [-(2**40), 4, 7]))
    npt.assert_array_equal(found, wanted)
    x = q[None, None, :, 0]
    npt.assert_array_equal(attention(x, x, x, mask=lengths(Fickle([3], [2**40]))), attention(x, x, x, mask=lengths([3])))


# ---- lengths that change during the call -----------------------------------------------------------------------------------
HERE = str(Path(fastattn.__file__).parent)


class Refused(bytes):
    """What stands for a result where there is none."""


def results(at, new, f):
    """What f gives if `new` is written into the array `at` before its n-th line, for n = 1, 2, ... until it has no more."""
    old, outer = at.copy(), sys.gettrace()
    for n in itertools.count(1):
        left = n

        def line(frame, event, argument):
            nonlocal left
            left -= event == "line"
            if not left:
                at[...] = new
                left = -1                               # never 0 again
            return line

        at[...] = old
        sys.settrace(lambda frame, event, argument: line if frame.f_code.co_filename.startswith(HERE) else None)
        try:
            found = f().tobytes()
        except (ValueError, IndexError):
            found = Refused()
        finally:
            sys.settrace(outer)
        if left > 0:
            at[...] = old
            return
        yield found


# Rows enough for every mixture of the two: a call that mixed them would be wrong, but touch nothing else.
ROWS, OLD, NEW = numbers(np.random.default_rng(3), (200, 2, 4), F32), np.array([0, 20, 40, 64]), [0, 10, 30, 64]
HOSTILE = [[0, 2**40, 2**41, 2**42], [0, -5, 40, 64], [-(2**40), 20, 40, 64], [0, 20, 40, 201]]


def test_lengths_that_change_are_seen_as_they_were_or_as_they_are():
    # Python gives other threads a turn between two of its lines: here they write at every one.
    cu_q, cu_k = OLD.copy(), OLD.copy()

    def f():
        return attention_varlen(ROWS, ROWS, ROWS, cu_q, cu_k, mask=causal)

    old = f().tobytes()
    for cu in (cu_q, cu_k):
        cu[...] = NEW
        new = f().tobytes()
        cu[...] = OLD
        # Before they are copied, and after.
        assert set(results(cu, NEW, f)) == {new, old}
        for hostile in HOSTILE:
            assert set(results(cu, hostile, f)) == {Refused(), old}


def test_the_control_without_a_copy_two_kinds_of_lengths_are_mixed(monkeypatch):
    monkeypatch.setattr(checks, "cumulative", lambda name, x, rows, of: x)
    cu = OLD.copy()
    whole = [attention_varlen(ROWS, ROWS, ROWS, x, OLD, mask=causal).tobytes() for x in (OLD, np.array(NEW))]
    found = results(cu, NEW, lambda: attention_varlen(ROWS, ROWS, ROWS, cu, OLD, mask=causal))
    assert set(found) - {*whole, Refused()}


@pytest.mark.parametrize("mask", [lengths, prefix])
def test_numbers_of_a_mask_that_change_are_seen_as_they_were_or_as_they_are(mask):
    x = ROWS[:30].reshape(3, 2, 10, 4)
    n = np.array([3, 7, 10])

    def f():
        return attention(x, x, x, mask=causal & mask(n))

    old = f().tobytes()
    n[...] = new = [5, 0, 8]
    after = f().tobytes()
    n[...] = [3, 7, 10]
    assert set(results(n, new, f)) == {after, old}
    assert set(results(n, [5, -3, 8], f)) == {Refused(), old}


def test_another_thread_may_write_the_lengths_all_the_time():
    q = np.ones((64, 2, 4), np.float32)
    cu, over = np.array([0, 20, 40, 64]), threading.Event()

    def write():
        rng = np.random.default_rng(0)
        while not over.is_set():
            cu[1:] = rng.choice([2**40, -5, 64, 0, 20], 3) if rng.random() < 0.5 else (20, 40, 64)
            time.sleep(0)                               # the other's turn

    writer, turn = threading.Thread(target=write), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    writer.start()
    ends = {"done": 0, "refused": 0}
    try:
        for _ in range(1_000_000):
            if min(ends.values()) >= 500:
                break
            try:
                o = attention_varlen(q, q, q, cu, cu, mask=causal)
            except ValueError:
                ends["refused"] += 1
                continue
            # Every v that there is is 1: so is a mean of them, to rounding; 0 where no keys are seen, or no sequence is.
            assert ((np.abs(o - 1) < 1e-6) | (o == 0)).all()
            ends["done"] += 1
    finally:
        over.set()
        writer.join()
        sys.setswitchinterval(turn)
    assert min(ends.values()) >= 500


def test_lengths_are_copied():
    n, x = np.array([3]), numbers(np.random.default_rng(0), (1, 1, 7, 2), F32)
    mask = lengths(n)
    wanted = attention(x, x, x, mask=mask)
    n[0] = 2**40
    npt.assert_array_equal(attention(x, x, x, mask=mask), wanted)
    with pytest.raises(ValueError, match="assignment destination is read-only"):
        mask.k_lengths[0] = 2**40


@pytest.mark.parametrize("wrong", [{"softcap": -1}, {"scale": np.inf}, {"threads": 0}, {"sink": [1.0]}], ids=str)
def test_what_is_refused_leaves_out_alone(wrong):
    q, out = np.ones((9, 2, 4), "f4"), np.full((9, 2, 4), 7, "f4")
    with pytest.raises(ValueError, match=next(iter(wrong))):
        attention_varlen(q, q, q, [0, 5], [0, 5], out=out, **wrong)
    assert (out == 7).all()
