"""What the library promises a process: many callers, forks, exit, Ctrl-C, a strange floating-point state, little memory.

Each promise has the real kernels under it and, next to it, its control: the same without what keeps the promise. All of it
happens in processes of their own; no time is measured, limits only turn a hang into a failure.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import hashlib
import mmap
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fastattn import attention, attention_varlen, cache_info, causal, lengths, merge_states, packed, prefix, window
from fastattn.fpu import MARKERS
from fastattn.passes import launch
from fastattn.tiles import pool
from tests.processes import LIMIT, child_of

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux counts")
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
JOIN = 120              # seconds: whoever waits so long waits for ever
NIGHT = 4 * 3600        # seconds, for a process at a nightly figure


def at(push, nightly):
    """The figure for every push, and the one for the night."""
    return [push, pytest.param(nightly, marks=pytest.mark.nightly)]


def status(name):
    """One of Linux's numbers about this process, in MB or as it is."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name + ":"))
    return int(line.split()[1]) / (1 << 10 if "kB" in line else 1)


# ---- calls -------------------------------------------------------------------------------------------------------------
def operands(Sq, Sk, heads=(2, 2), D=16, Dv=64, dtype="f4", seed=0):
    rng = np.random.default_rng(seed)
    Hq, Hkv = heads
    return [rng.standard_normal((1, H, S, C)).astype(dtype) for H, S, C in [(Hq, Sq, D), (Hkv, Sk, D), (Hkv, Sk, Dv)]]


# Two compiled variants, and shapes of one tile, of several, and of several heads that share one.
CALLS = [
    ((70, 70), {}, {"mask": causal}),
    ((1, 300), {"heads": (6, 2)}, {}),
    ((200, 90), {"D": 24}, {"mask": window(20, 3)}),
    ((33, 150), {"Dv": 5, "D": 3}, {"alibi": [0.1, 0.4]}),
    ((130, 64), {"heads": (4, 1)}, {"sink": [0.1, 0.2, 0.3, 0.4]}),
    ((65, 65), {"Dv": 5}, {"mask": packed([0] * 30 + [1] * 35), "bias": np.linspace(0, 1, 65, dtype="f4")}),
]


@functools.cache
def arrays(n):
    shape, more, _ = CALLS[n]
    return operands(*shape, **more)


def bits(n, threads=None):
    """The n-th call's result, as a number to compare."""
    o, lse = attention(*arrays(n), **CALLS[n][2], return_lse=True, threads=threads)
    return hashlib.sha256(o.tobytes() + lse.tobytes()).hexdigest()


def everything_in_threads():
    """Work is shared however little of it there is, one task at a time."""
    launch.SERIAL_FLOPS, launch.SLICE_FLOPS = 0, 1


class Steps:
    """Stands before the kernels: keeps who made each native call, and sends a Ctrl-C into the main thread's n-th.

    So that everybody has a part in it, whatever else the machine does: no helper begins before the caller, and with
    `helpers_first` the caller makes no call before a helper has made one.
    """

    def __init__(self, helpers_first=False, strike=None):
        self.guard, self.strike, self.main, self.calls = launch._guarded(), strike, threading.get_ident(), []
        self.begun, self.helped = threading.Event(), threading.Event()
        if not helpers_first:
            self.helped.set()
        launch._guarded = lambda: self

    @property
    def by_caller(self):
        return self.calls.count(self.main)

    def __call__(self, *arguments):
        by_helper = threading.get_ident() != self.main
        if not by_helper:
            self.begun.set()
        assert (self.begun if by_helper else self.helped).wait(JOIN)
        self.calls.append(threading.get_ident())
        if not by_helper and self.by_caller == self.strike:
            sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
            sender.start()
            status = self.guard(*arguments)             # Python looks for signals when it comes back, or even before
            sender.join()
            return status
        status = self.guard(*arguments)
        self.helped.set()
        return status


def with_helpers(*x, threads, **options):
    """attention in several threads, of which the caller is not the first to work."""
    alone = launch._guarded
    Steps(helpers_first=True)
    try:
        return attention(*x, threads=threads, **options)
    finally:
        launch._guarded = alone


# ---- many callers ------------------------------------------------------------------------------------------------------
def together(count, caller):
    """caller(0), caller(1), ... in as many threads, which begin at one moment."""
    barrier = threading.Barrier(count)

    def begin(i):
        barrier.wait(JOIN)
        caller(i)

    threads = [threading.Thread(target=begin, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_sixteen_threads(rounds):
    """The wrong results of 16 threads that call at once, with helpers."""
    everything_in_threads()
    right, wrong = [bits(n, 1) for n in range(len(CALLS))], []

    def caller(first):
        for i in range(first, first + rounds):
            n = i % len(CALLS)
            wrong.extend([n] * (bits(n, 1 + i % 4) != right[n]))

    together(16, caller)
    return len(wrong)


@pytest.mark.parametrize("rounds", at(1000, 10_000))
def test_sixteen_threads_get_what_one_gets(call, rounds):
    assert call(in_sixteen_threads, rounds, limit=LIMIT if rounds <= 1000 else NIGHT) == 0


class SharedScratch:
    """The scratch memory of a library that forgot that it has threads."""

    def __init__(self):
        self.pieces = {}

    piece = launch._Scratch.piece


def with_shared_scratch(shared, rounds):
    """The wrong results of four threads, up to the first, each in one kernel for longer than it has a processor for itself."""
    launch.SLICE_FLOPS, wrong = 1e12, []
    x = operands(1024, 1024)
    right = attention(*x, threads=1).tobytes()
    # In the scratch stands where results go: what another thread may write to must not be given back before the end.
    outs = [np.empty_like(x[2]) for _ in range(4)]
    if shared:
        launch._scratch = SharedScratch()

    def caller(i):
        for _ in range(rounds):
            if wrong:
                return
            if attention(*x, threads=1, out=outs[i]).tobytes() != right:
                wrong.append(i)

    together(4, caller)
    return len(wrong)


def test_the_control_with_shared_scratch_they_do_not(call):
    assert call(with_shared_scratch, False, 20) == 0
    assert call(with_shared_scratch, True, 1000) > 0


# ---- forks -------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def threads_in_calls(wrong, count=3):
    """Threads that call all the time, with helpers."""
    right, over = [bits(n, 1) for n in range(len(CALLS))], threading.Event()

    def at_work(first):
        i = first
        while not over.is_set():
            n = i % len(CALLS)
            wrong.extend([n] * (bits(n, 3) != right[n]))
            i += 1

    threads = [threading.Thread(target=at_work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield right
    finally:
        over.set()
        for thread in threads:
            thread.join()


def forks_beside_threads(forks):
    """How children end that are forked while threads are in calls, and what went wrong in the parent."""
    everything_in_threads()
    wrong, ends = [], []
    with threads_in_calls(wrong) as right:
        for i in range(forks):
            n = i % len(CALLS)
            ends.append(child_of(lambda n=n: bits(n, 3) == right[n], 20))
    ends.append(bits(0, 3) == right[0])
    return [sorted(map(str, set(ends))), len(wrong)]


@FORKS
@pytest.mark.parametrize("forks", at(200, 2000))
def test_children_forked_beside_threads_in_calls_are_right(call, forks):
    assert call(forks_beside_threads, forks, limit=LIMIT if forks <= 200 else NIGHT) == [["True"], 0]


def fork_while_the_pool_grows(reset):
    """A fork at the moment at which another thread holds the pool's lock; the control: the child keeps the parent's pool."""
    everything_in_threads()
    right, held, over = bits(2, 1), threading.Event(), threading.Event()

    def hold():
        with pool._pool.growing:
            held.set()
            over.wait(JOIN)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(JOIN)
    parents = pool._pool

    def child():
        if not reset:
            pool._pool = parents
        return bits(2, 3) == right

    end = child_of(child, 20 if reset else 1)
    over.set()
    thread.join(JOIN)
    return end


@FORKS
def test_a_forked_child_begins_anew(call):
    assert call(fork_while_the_pool_grows, True) is True
    assert call(fork_while_the_pool_grows, False) == "HANG"      # the control


def pool_of_processes(method):
    """A preloaded server: the parent has called, with threads; so do its workers then; and the parent again."""
    everything_in_threads()
    right = [bits(n, 3) for n in range(len(CALLS))]
    numbers = list(range(len(CALLS))) * 2
    # Workers that are not forked begin with the module as it is.
    with multiprocessing.get_context(method).Pool(2, everything_in_threads) as processes:
        theirs = processes.starmap(bits, [(n, 3) for n in numbers], chunksize=1)
        processes.close()
        processes.join()
    return [theirs == [right[n] for n in numbers], [bits(n, 3) for n in range(len(CALLS))] == right]


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_pools_of_processes(call, method):
    assert call(pool_of_processes, method) == [True, True]


# ---- exit --------------------------------------------------------------------------------------------------------------
def executed(step, stop, threads):
    """`pool.run` with the threads of the standard library."""
    with ThreadPoolExecutor(threads) as executor:
        while any([each.result() for each in [executor.submit(step) for _ in range(threads)]]):
            pass


def at_exit(before, by_executor=False):
    """Register a call for the end; what that prints is the process's last line."""
    everything_in_threads()
    if by_executor:
        pool.run = executed
    right = bits(2, 3 if before else 1)
    atexit.register(lambda: sys.stdout.write("true\n" if bits(2, 3) == right else "false\n"))


@pytest.mark.parametrize("before", [True, False], ids=["used before", "first used then"])
def test_a_call_at_exit_is_right(call, before):
    assert call(at_exit, before) is True


def test_the_control_threads_of_the_standard_library_are_over_by_then(run):
    ended = run(at_exit, True, True)
    assert "cannot schedule new futures after" in ended.complaint
    assert ended.lines == ["null"]


class Unkept(launch._Scratch):
    """Each thread's memory, of which a call keeps no more than where it is."""

    def piece(self, shape):
        if shape not in self.pieces:
            work = super().piece(shape)
            page = mmap.mmap(-1, ctypes.sizeof(work))       # which goes when it is freed, unlike malloc's
            page[:] = bytes(work)
            paged = self.pieces[shape] = type(work).from_buffer(page)
            paged.keeps = work.keeps
        work = self.pieces[shape]
        return type(work).from_address(ctypes.addressof(work))


def ends_with_daemons_at_work(times, kept):
    """How processes end, the ordinary way, whose daemon threads are in kernels, with helpers, and stay there for long."""
    launch.SLICE_FLOPS = 1e12
    x = operands(2048, 2048)
    attention(*x)
    if not kept:
        launch._scratch = Unkept()
    ends = []
    for i in range(times):
        pid = os.fork()
        if pid == 0:
            def at_work():
                while True:
                    attention(*x, threads=2)

            for _ in range(3):
                threading.Thread(target=at_work, daemon=True).start()
            time.sleep(0.002 * (i % 10))
            raise SystemExit(0)                         # and so through all of Python's finalization
        ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return sorted(set(ends))


@FORKS
@pytest.mark.parametrize("times", at(100, 1000))
def test_daemon_threads_in_calls_do_not_disturb_the_exit(call, times):
    assert call(ends_with_daemons_at_work, times, True, limit=LIMIT if times <= 100 else NIGHT) == [0]


@FORKS
def test_the_control_what_a_module_holds_is_gone_before_they_are(call):
    assert -signal.SIGSEGV in call(ends_with_daemons_at_work, 20, False)


# ---- Ctrl-C ------------------------------------------------------------------------------------------------------------
def interrupts(times):
    """SIGINT into running calls at various moments: how many were raised, and whether all is right afterwards."""
    everything_in_threads()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    right, raised = [bits(n, 1) for n in range(len(CALLS))], 0
    for i in range(times):
        timer = threading.Timer(0.001 + 0.0007 * (i % 11), os.kill, (os.getpid(), signal.SIGINT))
        end = time.monotonic() + JOIN
        try:
            timer.start()
            while time.monotonic() < end:
                bits(i % len(CALLS), 1 + i % 3)
        except KeyboardInterrupt:
            raised += 1
        timer.join()
    return [raised, [bits(n, 3) for n in range(len(CALLS))] == right]


@POSIX
@pytest.mark.parametrize("times", at(100, 1000))
def test_every_ctrl_c_is_raised_and_the_next_call_is_right(call, times):
    assert call(interrupts, times, limit=LIMIT if times <= 100 else NIGHT) == [times, True]


# 2 heads x 2048 x 2048 x (16 + 64) x 2 flops
LONG, FLOPS, SLICE = (2048, 2048), 1.34e9, 3e7


def slices(slice_flops, threads, strike):
    """The native calls of one long call, those of its caller, and whether it ended in a KeyboardInterrupt.

    slice_flops: what one of them may do; None: as the library has it
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    launch.SLICE_FLOPS, steps = slice_flops or launch.SLICE_FLOPS, Steps(strike=strike)
    try:
        attention(*operands(*LONG), threads=threads)
        end = False
    except KeyboardInterrupt:
        end = True
    return [len(steps.calls), steps.by_caller, end]


@POSIX
@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_ends_a_call_between_two_slices_that_are_short(call, threads):
    by_all, _, interrupted = call(slices, SLICE, threads, None)
    assert by_all >= FLOPS / SLICE
    assert not interrupted
    _, by_caller, interrupted = call(slices, SLICE, threads, 2)
    assert by_caller == 2
    assert interrupted


def test_a_slice_is_short(call):
    # 1e9 flops: 100 ms at 10 GFLOP/s, which any machine has.
    by_all, _, _ = call(slices, None, 1, None)
    assert by_all >= FLOPS / 1e9


@POSIX
def test_the_control_a_call_in_one_piece_runs_to_its_end(call):
    assert call(slices, 1e30, 1, None) == [1, 1, False]


# ---- the floating-point state --------------------------------------------------------------------------------------------
X86 = platform.machine().lower() in ("x86_64", "amd64")
STATE = pytest.mark.skipif(sys.platform != "linux" or not (X86 or platform.machine() == "aarch64"),
                           reason="the layout of C's fenv_t is known for Linux only")

# fenv_t: 28 bytes of the x87, then MXCSR; on ARM FPCR, then FPSR.
CONTROL = 28 if X86 else 0
STATUS = 28 if X86 else 4
STATES = {"flush to zero": 0x8040, "round up": 0x4000, "round down": 0x2000, "round to zero": 0x6000} if X86 else {
    "flush to zero": 1 << 24, "round up": 1 << 22, "round down": 2 << 22, "round to zero": 3 << 22}
CONTROL_BITS = 0xE040 if X86 else 7 << 22
# Invalid, divide by zero, overflow, underflow: what NumPy warns of. Python's own arithmetic is inexact all the time.
FLAGS = 0b011101 if X86 else 0b01111


def fenv():
    """The state as C gives it, and as numbers: (control bits, flags)."""
    state = (ctypes.c_uint32 * 8)()
    ctypes.CDLL(None).fegetenv(state)
    return state, state[CONTROL // 4] & CONTROL_BITS, state[STATUS // 4] & FLAGS


@contextlib.contextmanager
def strange(name):
    """The state of this thread changed, and no flag up."""
    before, *_ = fenv()
    state, *_ = fenv()
    state[STATUS // 4] &= ~FLAGS
    state[CONTROL // 4] = state[CONTROL // 4] & ~CONTROL_BITS | STATES[name]
    c = ctypes.CDLL(None)
    c.fesetenv(state)
    try:
        yield
    finally:
        c.fesetenv(before)


def unguarded():
    """The kernels called as they are."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * (5 + MARKERS))

    def call(result, unused, job, work):
        nothing, at_job, at_work = ctypes.c_int64(), ctypes.addressof(job), ctypes.addressof(work)
        return kind(job.entry)(at_work, ctypes.addressof(nothing), at_job, at_work, job.budget, *[0] * MARKERS)

    return call


def in_a_strange_state(name, guard):
    """Whether bits, state and flags are what they should be. D and the values make both rounding and subnormals matter."""
    everything_in_threads()
    if not guard:
        plain = unguarded()
        launch._guarded = lambda: plain
    q, k, v = operands(130, 70, D=64)
    tiny = v * np.float32(1e-39)
    huge = q * np.float32(1e30)

    def results(threads):
        called = functools.partial(attention if threads == 1 else with_helpers, q, k, threads=threads)
        merged = merge_states([v[0], tiny[0]], [v[0, :, :, 0], v[0, :, :, 1]])[0]
        return [called(v).tobytes(), called(tiny).tobytes(), merged.tobytes() if guard else b""]

    right = results(1)
    assert np.frombuffer(right[1], "f4").any()
    found = {"older helper": results(3) == right}
    with strange(name):
        found["caller"] = results(1) == right
        found["caller and older helper"] = results(3) == right
        found["state"] = fenv()[1] == STATES[name]
    pool._start_anew()
    with strange(name):                                 # threads that start here inherit it
        found["younger helper"] = results(3) == right
    found["helper elsewhere"] = results(3) == right
    with strange(name):
        step = launch._guarded()
        flags = []

        def watched(*arguments):
            before = fenv()[2]
            status = step(*arguments)
            flags.append(fenv()[2] == before)
            return status

        launch._guarded = lambda: watched
        attention(huge, huge[:, :, :70], v, threads=1)
        found["flags"] = all(flags) and bool(flags)
    return found


def names(found):
    return sorted(name for name, good in found.items() if not good)


@STATE
@pytest.mark.parametrize("state", STATES)
def test_a_strange_floating_point_state_changes_no_bit_and_is_left_as_it_was(call, state):
    assert names(call(in_a_strange_state, state, True)) == []


@STATE
@pytest.mark.parametrize("state", ["flush to zero", "round up"])
def test_the_control_without_the_guard_it_does(call, state):
    wrong = {"caller", "younger helper", "helper elsewhere", "flags"}
    assert wrong <= set(names(call(in_a_strange_state, state, False)))


def options_in_a_strange_state(state, dtype, options):
    """Whether the bits are the same where scale log2 e is no power of 2, and numbers are rounded to q's type."""
    q, k, v = operands(5, 7, D=48, Dv=3, dtype=dtype)
    right = attention(q, k, v, **options).tobytes()
    with strange(state):
        return attention(q, k, v, **options).tobytes() == right


@STATE
@pytest.mark.parametrize(("state", "dtype", "options"), [
    ("round up", "f4", {"sink": [0.1, 0.3]}),
    ("round up", "f8", {}),
    ("round down", "f4", {"alibi": [0.1, 0.3]}),
])
def test_nor_does_it_change_the_numbers_that_kernels_are_given(call, state, dtype, options):
    assert call(options_in_a_strange_state, state, dtype, options)


# ---- big indices -------------------------------------------------------------------------------------------------------
STEP = (1 << 31) + 64           # elements: the second of three lies past 2^31, the third past 2^32
NORESERVE = 0x4000


def far_apart(shape, axis, dtype):
    """An array of zeros whose neighbours along one axis lie STEP elements apart; only what is touched takes memory."""
    item = np.dtype(dtype).itemsize
    strides = list(np.empty(shape, dtype).strides)
    strides[axis] = STEP * item
    size = STEP * item * (shape[axis] - 1) + (1 << 20)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    return np.ndarray(shape, dtype, memory, 0, strides)


OPERANDS = {"q": (3, 3, 3, 8), "k": (3, 3, 3, 8), "v": (3, 3, 3, 5), "bias": (3, 3, 3, 3), "mask": (3, 3, 3, 3),
            "out": (3, 3, 3, 5)}


def wrap_offsets():
    """Every stride in 31 bits, as an int32 has them; not negative and no greater, so that they stay within the array."""
    run, strides = launch.Forward.run, [name for name in launch.JOB.kinds if name[-2:] in ("_b", "_h", "_s")]

    def wrapped(self, job, *options):
        for name in strides:
            setattr(job, name, getattr(job, name) & 0x7FFFFFFF)
        run(self, job, *options)

    launch.Forward.run = wrapped


def with_big_strides(wrapped):
    """Which operands, far apart along which axis, give other bits; and the memory that it all took, in MB."""
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal(shape).astype("f4") for name, shape in OPERANDS.items()}
    given["mask"] = given["mask"] > -0.3

    def run(q, k, v, **options):
        o, lse = attention(q, k, v, **options, return_lse=True)
        return o.tobytes() + lse.tobytes()

    right, wrong, before = run(**given), [], status("VmHWM")
    if wrapped:
        wrap_offsets()
    for name, shape in OPERANDS.items():
        for axis in range(3):
            x = far_apart(shape, axis, given[name].dtype)
            # What is negative in 31 bits would be large, and lead out of the array.
            for view, y in [("", x), (" backwards", x[:, :, ::-1])][:1 if wrapped else 2]:
                y[...] = given[name]
                if run(**given | {name: y}) != right:
                    wrong.append(f"{name} {axis}{view}")
    near = [rng.standard_normal((3, 2, C)).astype("f4") for C in (8, 8, 5)]
    far = [far_apart(x.shape, 0, x.dtype) for x in near]
    for x, y in zip(near, far, strict=True):
        y[...] = x
    starts = [0, 1, 3]
    if attention_varlen(*far, starts, starts).tobytes() != attention_varlen(*near, starts, starts).tobytes():
        wrong.append("packed")
    return [wrong, status("VmHWM") - before]


@LINUX
def test_strides_beyond_2_31_and_2_32_elements(call):
    wrong, megabytes = call(with_big_strides, False)
    assert wrong == []
    assert megabytes < 100


@LINUX
def test_the_control_with_offsets_of_32_bits(call):
    wrong, _ = call(with_big_strides, True)
    assert {f"{name} {axis}" for name in OPERANDS for axis in range(3)} | {"packed"} <= set(wrong)


# ---- memory ------------------------------------------------------------------------------------------------------------
def raised_peak(f, *arguments, **more):
    """By how many MB f takes more memory than there was in use, at its worst moment."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)                    # what was freed and is still held would be taken without being seen
    Path("/proc/self/clear_refs").write_text("5")       # the peak is what there is now
    before = status("VmHWM")
    f(*arguments, **more)
    return status("VmHWM") - before


# A window, as the time would grow with S² without one, and what each option holds for every query or every key.
OPTIONS = {
    "window": lambda S: {"mask": causal & window(255)},
    "lengths": lambda S: {"mask": window(63, 0) & lengths([S - 7])},
    "packed": lambda S: {"mask": packed(np.arange(S) // 200)},
    "prefix": lambda S: {"mask": prefix(3) & window(63)},
    "bias of keys": lambda S: {"mask": window(63, 0), "bias": np.zeros(S, "f4")},
    "bias of queries": lambda S: {"mask": window(63, 0), "bias": np.zeros((S, 1), "f4")},
    "boolean of keys": lambda S: {"mask": np.ones(S, bool) & window(63, 0)},
    "boolean of queries": lambda S: {"mask": np.ones((S, 1), bool) & window(63, 0)},
    "alibi": lambda S: {"mask": window(63, 0), "alibi": [0.1]},
    "sink": lambda S: {"mask": window(63, 0), "sink": [0.1]},
}


def memory(S, names):
    """What calls over S keys take besides their arrays, in MB."""
    # An array of (Sq, Sk) is refused, and not paged in.
    import resource
    everything_in_threads()
    small = operands(1024, 1024, heads=(1, 1))
    for name in names:
        with_helpers(*small, **OPTIONS[name](1024), threads=2)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    x, found = operands(S, S, heads=(1, 1)), {}
    out = np.ones_like(x[2])
    for name in names:
        options = OPTIONS[name](S)
        try:
            found[name] = raised_peak(attention, *x, **options, out=out, threads=2)
        except MemoryError:
            found[name] = float("inf")
    return found


@LINUX
@pytest.mark.parametrize("names", [
    [name for name in OPTIONS if name.split()[0] != "boolean"], [name for name in OPTIONS if name.split()[0] == "boolean"]],
    ids=["runs and numbers", "booleans"])
def test_memory_grows_with_s_and_not_with_its_square(call, names):
    # Runs, and what NumPy makes on the way to them: half a dozen int64 for each of 65,536 queries, 3 MB; a bias of queries,
    # repeated for 16 keys, 4 MB more; promised are 8 and 1 for each of two threads. (Sq, Sk) bytes would be 4096 MB.
    found = call(memory, 65_536, names)
    assert {name: most for name, most in found.items() if most > 10} == {}


def memory_seen(megabytes):
    """What raised_peak says of an array that is made where as many MB were freed just before."""
    np.ones(megabytes << 17)
    return raised_peak(np.ones, megabytes << 17)


@LINUX
@pytest.mark.parametrize("megabytes", [16, 64])
def test_the_control_memory_is_seen(call, megabytes):
    assert call(memory_seen, megabytes) > megabytes - 1


def memory_of_what_broadcasts(name, heads):
    """What a call over many heads takes besides its arrays, in MB, for an option that is the same for all of them."""
    S = 4096
    q, k, v = operands(S, S, heads=(heads, 1), Dv=5)
    keys, out = np.ones((S, 2), bool)[:, 0], np.ones((*q.shape[:3], 5), q.dtype)
    options = {"bias": np.float32(1), "mask": window(63, 0)} if name == "one bias" else {"mask": keys & window(63, 0)}
    everything_in_threads()
    with_helpers(q[:, :, :200], k, v, bias=np.float32(1), threads=2)
    return raised_peak(attention, q, k, v, out=out, threads=2, **options)


@LINUX
@pytest.mark.parametrize(("name", "heads"), [("one bias", 96), ("every other byte", 2)])
def test_what_broadcasts_is_not_expanded(call, name, heads):
    # (96, 4096, 16) numbers of 4 bytes are 24 MB, (2, 4096, 4096) bytes 32 MB.
    assert call(memory_of_what_broadcasts, name, heads) <= 8


def plain(q, k, v):
    """The formula, with its (Sq, Sk) array."""
    s = q @ k.swapaxes(2, 3)
    p = np.exp(s - s.max(3, keepdims=True))
    return p / p.sum(3, keepdims=True) @ v


def memory_without_a_mask(S):
    """Ours beside the plain formula's."""
    everything_in_threads()
    x = operands(S, S, heads=(1, 1))
    out = np.ones_like(x[2])
    with_helpers(*x, out=out, threads=2)
    return [raised_peak(attention, *x, out=out, threads=2), raised_peak(plain, *x)]


@LINUX
def test_memory_without_a_mask_is_that_of_the_threads(call):
    ours, plains = call(memory_without_a_mask, 4096)
    assert ours <= 1
    assert plains > 64                                  # the control: 4096 x 4096 numbers of 4 bytes


# ---- leaks -------------------------------------------------------------------------------------------------------------
def varied_calls(rng, count):
    """Calls of many shapes and options, refused ones among them."""
    for _ in range(count):
        Hkv, group, Sq, Sk, D = (int(n) for n in rng.integers(1, (4, 4, 40, 40, 40)))
        q, k, v = operands(Sq, Sk, heads=(Hkv * group, Hkv), D=D, Dv=int(rng.choice([1, 2, 5, 7, 64])))
        mask = [None, causal, window(3, 4), lengths([Sk // 2]), rng.random((Sq, Sk)) < 0.5][rng.integers(5)]
        o, lse = attention(q, k, v, mask=mask, return_lse=True, threads=int(rng.integers(1, 4)))
        kind = rng.integers(8)
        if kind == 0:
            merge_states([o, o], [lse, lse])
        elif kind == 1:
            x = (np.ascontiguousarray(y[0].swapaxes(0, 1)) for y in (q[:, :, :Sk], k[:, :, :Sq], v[:, :, :Sq]))
            attention_varlen(*x, [0, min(Sq, Sk)], [0, min(Sq, Sk)], mask=causal)
        elif kind == 2:
            with contextlib.suppress(ValueError):
                attention(q, k, v[:, :, :-1], mask=mask)


def counts():
    for _ in range(4):          # the keys of what is kept are tuples in tuples, which are left alone one layer a time
        gc.collect()
    told = cache_info()
    return {"MB": status("VmRSS"), "threads": status("Threads"), "files": len(os.listdir("/proc/self/fd")),
            "objects": len(gc.get_objects()), "kernels": told["compiled"] + told["loaded"]}


def soak(calls, leak):
    """What there is more after so many calls than after the first few, which fill what is kept for good."""
    everything_in_threads()
    kept, rng = [], np.random.default_rng(0)
    varied_calls(rng, 1500)
    before = counts()
    for _ in range(calls // 500):
        varied_calls(rng, 500)
        if leak:
            kept.append([np.ones(1 << 18), os.dup(0), [[] for _ in range(50)]])
    return {name: n - before[name] for name, n in counts().items()}


@LINUX
@pytest.mark.parametrize("calls", at(10_000, 1_000_000))
def test_nothing_is_left_behind(call, calls):
    more = call(soak, calls, False, limit=LIMIT if calls <= 10_000 else NIGHT)
    # 1 MB, and what malloc's arenas still gain: as much after a million calls.
    assert more.pop("MB") < 4
    # Each of three threads keeps scratch memory of up to eight kinds, by chance more of them than before.
    assert more.pop("objects") <= 100
    assert more == {"threads": 0, "files": 0, "kernels": 0}


@LINUX
def test_the_control_a_leak_is_noticed(call):
    more = call(soak, 4000, True)
    assert more["MB"] > 12
    assert more["files"] == 8
    assert more["objects"] > 300
