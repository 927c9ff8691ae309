"""The rules of fastattn/tiles/pool.py, one by one, with work that is not attention.

A `Work` stands for a kernel: tiles from a counter, each a Python function that lets go of the GIL while it waits. What
is said of two threads is forced by barriers and events, so nothing here depends on how fast a machine is: the time
limits only turn a deadlock into a failure. What ends or forks a process runs in one of its own.
"""

import asyncio
import contextvars
import gc
import itertools
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest

from fastattn.tiles import pool

LIMIT = 20              # seconds; whoever waits so long waits for ever

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


class Work:
    """Tiles 0, 1, ... that call `tile(i)`, which may wait; `done` holds those that came to an end."""

    def __init__(self, tiles, tile=lambda i: None):
        self.counter, self.tiles, self.tile, self.done = itertools.count(), tiles, tile, []

    def step(self):
        i = next(self.counter)
        if i >= self.tiles:
            return False
        self.tile(i)
        self.done.append(i)
        return True

    def stop(self):
        self.tiles = 0

    def run(self, threads):
        pool.run(self.step, self.stop, threads)
        return sorted(self.done)


def meet(threads, limit=LIMIT):
    """Run as many tiles as threads, none of which ends before all have begun: who passes had that many threads."""
    barrier = threading.Barrier(threads)
    return Work(threads, lambda i: barrier.wait(limit)).run(threads) == list(range(threads))


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(pool, "_pool", pool._Pool())
    monkeypatch.setattr(pool, "_default", None)
    for name in pool.VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def busy():
    """A pool of one helper that is inside another call until the test is over."""
    inside, over = threading.Event(), threading.Event()
    caller = threading.get_ident
    main = []

    def tile(i):
        if caller() in main:
            inside.wait(LIMIT)                          # leave the other tile to the helper
        else:
            inside.set()
            over.wait(LIMIT)

    def call():
        main.append(caller())
        Work(2, tile).run(2)

    other = threading.Thread(target=call)
    other.start()
    assert inside.wait(LIMIT)
    yield over
    over.set()
    other.join(LIMIT)
    assert not other.is_alive()


def in_a_process(script, limit=LIMIT):
    """Run the script, after this file's `Work` and `meet`, and return what it printed. Any complaint is a failure."""
    head = textwrap.dedent("""
        import os, signal, sys, threading, time, types, warnings
        sys.path[:0] = [{root!r}, {tests!r}]
        # The package without what its __init__ imports: the pool needs no Numba, and a second less is worth having.
        sys.modules["fastattn"] = package = types.ModuleType("fastattn")
        package.__path__ = [{root!r} + "/fastattn"]
        # Python 3.12 and up warn at a fork beside other threads: that it works is what the tests here are about.
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        from fastattn.tiles import pool
        from test_pool import Work, meet

        def child(f, limit={limit}):
            "What f() gives in a forked child: True, False, its exit status, or HANG."
            pid = os.fork()
            if pid == 0:
                code = 5
                try:
                    code = 0 if f() else 3
                finally:
                    os._exit(code)
            end = time.monotonic() + limit
            while time.monotonic() < end:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    return {{0: True, 3: False}}.get(status := os.waitstatus_to_exitcode(status), status)
                time.sleep(0.005)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "HANG"
    """)
    here = os.path.dirname(os.path.abspath(__file__))
    head = head.format(root=os.path.dirname(here), tests=here, limit=LIMIT // 2)
    ended = subprocess.run([sys.executable, "-W", "error", "-c", head + textwrap.dedent(script)], capture_output=True,
                           text=True, timeout=2 * limit)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.split()


# ---- run -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("tiles", [0, 1, 2, 50])
def test_every_tile_is_done_once(tiles, threads):
    assert Work(tiles, lambda i: time.sleep(0)).run(threads) == list(range(tiles))


def test_one_thread_is_the_caller_and_needs_no_pool(monkeypatch):
    monkeypatch.setattr(pool, "_pool", None)
    seen = set()
    Work(5, lambda i: seen.add(threading.get_ident())).run(1)
    assert seen == {threading.get_ident()}


def test_threads_begin_when_first_needed_and_grow_in_number():
    assert pool._pool.size == 0
    for threads, size in [(2, 1), (4, 3), (3, 3)]:
        assert meet(threads)
        assert pool._pool.size == size


def test_the_control_alone_nobody_meets():
    barrier = threading.Barrier(2)
    with pytest.raises(threading.BrokenBarrierError):
        Work(2, lambda i: barrier.wait(0.05)).run(1)


def test_calls_nest():
    inner = []

    def tile(i):
        inner.append(Work(5, lambda j: time.sleep(0.001)).run(3))

    assert Work(6, tile).run(3) == list(range(6))
    assert inner == [list(range(5))] * 6


def test_sixteen_callers_share_two_helpers():
    barrier, wrong = threading.Barrier(16), []

    def caller():
        barrier.wait(LIMIT)                             # together, or they would miss each other
        wrong.extend(1 for _ in range(20) if Work(8, lambda i: time.sleep(0)).run(3) != list(range(8)))

    callers = [threading.Thread(target=caller) for _ in range(16)]
    for c in callers:
        c.start()
    for c in callers:
        c.join(LIMIT)
    assert not any(c.is_alive() for c in callers)
    assert not wrong
    assert pool._pool.size == 2


def test_with_every_helper_busy_the_caller_works_alone(busy):
    assert Work(4).run(2) == [0, 1, 2, 3]


def test_an_offer_that_is_left_over_holds_nothing_of_the_caller(busy):
    work = Work(4)
    work.run(2)
    gone = weakref.ref(work)
    assert pool._pool.offers.qsize() == 1
    del work
    assert gone() is None


def test_offers_do_not_pile_up(busy):
    for _ in range(5 * pool._Pool.WAITING):
        Work(1).run(2)
    assert pool._pool.offers.qsize() == pool._Pool.WAITING


def test_an_offer_is_taken_when_a_helper_becomes_free(busy):
    # The tile lets the helper go, and then waits for it.
    barrier = threading.Barrier(2)

    def tile(i):
        busy.set()
        barrier.wait(LIMIT)

    assert Work(2, tile).run(2) == [0, 1]


def test_an_offer_that_is_taken_too_late_does_the_helper_no_harm(monkeypatch):
    jobs, offer = [], pool._pool.offer
    monkeypatch.setattr(pool._pool, "offer", lambda job, helpers: (jobs.append(job), offer(job, helpers)))
    pair = Pair()
    pair.by_caller = pair.stop
    pair.run(2)
    pool._pool.offers.put(jobs[0])
    assert meet(2)


def test_without_a_thread_to_be_had_the_caller_works_alone(monkeypatch):
    def none_left(function, arguments):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pool, "start_new_thread", none_left)
    assert Work(4).run(3) == [0, 1, 2, 3]
    assert pool._pool.offers.empty()


def test_a_call_from_within_the_growing_of_the_pool_does_not_wait_for_it(monkeypatch):
    # As a signal handler or a finalizer does, which run in the midst of anything.
    start, inner = pool.start_new_thread, []

    def interrupted(function, arguments):
        if not inner:
            inner.append(None)
            inner.append(Work(3).run(2))
        return start(function, arguments)

    monkeypatch.setattr(pool, "start_new_thread", interrupted)
    caller = threading.Thread(target=lambda: Work(3).run(2), daemon=True)
    caller.start()
    caller.join(LIMIT)
    assert not caller.is_alive()
    assert inner == [None, [0, 1, 2]]


# ---- the end of a call ---------------------------------------------------------------------------------------------
class Pair(Work):
    """As good as endless tiles; the first of the caller and the first of a helper begin together.

    by_caller, by_helper     what they do then, in their first tile
    left                     whether that tile of the helper, which lasts longer than the caller's, is over
    """

    def __init__(self, by_caller=lambda: None, by_helper=lambda: None):
        super().__init__(5000, self.first)
        self.together, self.left = threading.Barrier(2), False
        self.caller, self.begun = threading.get_ident(), set()
        self.by_caller, self.by_helper = by_caller, by_helper

    def first(self, i):
        me = threading.get_ident()
        if me in self.begun:
            time.sleep(0.001)
            return
        self.begun.add(me)
        self.together.wait(LIMIT)
        if me == self.caller:
            self.by_caller()
        else:
            self.by_helper()
            time.sleep(0.05)                            # the caller is waiting for this thread by now
            self.left = True


def fail(kind, message=""):
    """A function that raises at its first call."""
    kinds = [kind]

    def raises():
        if kinds:
            raise kinds.pop()(message)
    return raises


def test_the_call_returns_when_its_helper_has_left():
    pair = Pair()
    pair.by_caller = pair.stop                          # no tile is left, but the helper is at work on one
    pair.run(2)
    assert pair.left


def test_an_exception_in_the_caller_waits_for_the_helper():
    pair = Pair(by_caller=fail(ZeroDivisionError, "the caller's"))
    with pytest.raises(ZeroDivisionError, match="the caller's"):
        pair.run(2)
    assert (pair.left, pair.tiles) == (True, 0)         # it was told to stop
    assert meet(2)


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_an_exception_in_a_helper_ends_the_work_and_reaches_the_caller(kind):
    pair = Pair(by_helper=fail(kind, "the helper's"))
    with pytest.raises(kind, match="the helper's"):
        pair.run(2)
    assert len(pair.done) < 2500
    assert meet(2)
    assert pool._pool.size == 1                         # the helper outlives what went wrong


def test_of_two_exceptions_the_callers_is_raised():
    pair = Pair(fail(ZeroDivisionError, "the caller's"), fail(KeyError, "the helper's"))
    with pytest.raises(ZeroDivisionError):
        pair.run(2)


@pytest.mark.parametrize("who", ["nobody", "by_caller", "by_helper", "in_the_wait"])
def test_nothing_of_a_call_outlives_it(who):
    # Not even until the garbage collector comes round: an exception's traceback must not lead back to itself.
    pair = Pair()
    pair.by_caller = pair.stop
    if who.startswith("by"):
        setattr(pair, who, fail(ZeroDivisionError))
    stop = fail(ZeroDivisionError) if who == "in_the_wait" else pair.stop
    gc.disable()
    try:
        try:
            pool.run(pair.step, stop, 2)
        except ZeroDivisionError:
            assert who != "nobody"
        pair.by_caller = pair.tile = stop = None        # the test's own cycles
        gone = weakref.ref(pair)
        del pair
        assert gone() is None
    finally:
        gc.enable()


def test_stop_may_fail_and_still_the_call_waits():
    pair, calls = Pair(by_caller=fail(ZeroDivisionError)), []

    def stop():
        calls.append(None)
        if len(calls) < 100:
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        pool.run(pair.step, stop, 2)
    assert (pair.left, len(calls)) == (True, 1)


# ---- interrupts ----------------------------------------------------------------------------------------------------
def interrupt():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@pytest.fixture
def interruptible():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


signals = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system has no signals for one thread")


@signals
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_between_two_steps(threads):
    work = Work(10**9, lambda i: interrupt() if i == 3 else None)
    with pytest.raises(KeyboardInterrupt):
        work.run(threads)
    assert meet(2)


@signals
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_during_the_wait_is_raised_after_it():
    pair = Pair(by_helper=lambda: (time.sleep(0.05), interrupt()))
    pair.by_caller = pair.stop
    with pytest.raises(KeyboardInterrupt):
        pair.run(2)
    assert pair.left
    assert meet(2)


@signals
@pytest.mark.usefixtures("interruptible")
def test_more_ctrl_c_does_not_end_the_wait():
    def thrice():
        for _ in range(3):
            time.sleep(0.03)
            interrupt()

    pair = Pair(by_caller=interrupt, by_helper=thrice)
    with pytest.raises(KeyboardInterrupt):
        pair.run(2)
    assert pair.left


def test_an_interrupt_at_any_place_waits_for_the_helper():
    # Python looks for signals when a function begins and when a call of C code has ended. A profiler is called at
    # these very places, so here it raises at the first of them within the pool, then at the second, ...
    inside, begun = set(), threading.Event()
    main = threading.get_ident()

    def tile(i):
        if threading.get_ident() == main:
            begun.wait(LIMIT)
        else:
            inside.add(i)
            begun.set()
            time.sleep(0.005)
            inside.discard(i)

    def strike(frame, event, argument):
        nonlocal places
        if frame.f_code.co_filename == pool.__file__ and event in ("call", "c_return"):
            places -= 1
            if places == 0:
                raise KeyboardInterrupt

    assert meet(2)
    for place in itertools.count(1):
        begun.clear()
        work, places, struck = Work(2, tile), place, False
        try:
            sys.setprofile(strike)
            work.run(2)
        except KeyboardInterrupt:
            struck = True
        finally:
            sys.setprofile(None)
        assert not inside
        if not struck:
            break
    assert place > 5
    assert sorted(work.done) == [0, 1]
    assert meet(2)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer that signals")
def test_wherever_interrupts_strike_no_helper_is_left_behind():
    # A timer strikes after so many microseconds of a call, once or again and again.
    assert in_a_process("""
        inside, armed, wrong, raised = set(), [], 0, 0

        def tile(i):
            me = threading.get_ident()
            inside.add(me)
            time.sleep(0.0002)
            inside.discard(me)

        def strike(signum, frame):
            if armed:
                raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, strike)
        me = threading.get_ident()
        for i in range(1000):
            work = Work(4, tile)
            armed.append(True)
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + i), 1e-4 * (i % 3))
                    work.run(3)
                finally:
                    armed.clear()
                    wrong += bool(inside - {me})
            except KeyboardInterrupt:
                raised += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            inside.clear()
        print(wrong, raised > 100, meet(3))
    """) == ["0", "True", "True"]


# ---- fork and exit -------------------------------------------------------------------------------------------------
@forks
def test_a_forked_child_has_a_pool_of_its_own():
    # Before the fork, in the child, in a child of the child, after it. The control keeps the parent's pool, whose
    # threads the child does not have: nobody ever meets the caller.
    assert in_a_process("""
        print(meet(3), child(lambda: meet(3)), child(lambda: child(lambda: meet(3)) is True), meet(3))

        def with_the_parents_pool():
            pool._pool = parents
            try:
                return meet(3, 0.2)
            except threading.BrokenBarrierError:
                return False

        parents = pool._pool
        print(child(with_the_parents_pool))
    """) == ["True"] * 4 + ["False"]


@forks
def test_a_lock_that_was_held_at_the_fork_does_not_stop_the_child():
    # Another thread grows the pool at that moment. The control, with the parent's pool, hangs.
    assert in_a_process("""
        held, over = threading.Event(), threading.Event()

        def hold():
            with pool._pool.growing:
                held.set()
                over.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        parents = pool._pool

        def with_the_parents_pool():
            pool._pool = parents
            return meet(2)

        print(child(lambda: meet(2)), child(with_the_parents_pool, limit=0.5))
        over.set()
        thread.join()
        print(meet(2))
    """) == ["True", "HANG", "True"]


@forks
def test_children_forked_while_threads_are_at_work():
    assert in_a_process("""
        wrong, over = [], threading.Event()

        def at_work():
            while not over.is_set():
                wrong.extend([1] * (Work(8, lambda i: time.sleep(0)).run(3) != list(range(8))))

        threads = [threading.Thread(target=at_work) for _ in range(3)]
        for t in threads:
            t.start()
        print(*{child(lambda: meet(3)) for _ in range(30)})
        over.set()
        for t in threads:
            t.join()
        print(len(wrong))
    """) == ["True", "0"]


@forks
def test_a_forking_pool_of_processes():
    # Under OpenMP its workers die and are replaced for ever.
    assert in_a_process("""
        import multiprocessing
        meet(3)
        with multiprocessing.get_context("fork").Pool(2) as processes:
            print(*processes.map(meet, [2, 3, 2, 3]))
    """) == ["True"] * 4


@forks
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_forked_child_reads_its_default_again():
    assert in_a_process("""
        os.environ["FASTATTN_NUM_THREADS"] = "1"
        pool.cores = lambda: 8
        print(pool.thread_count())
        os.environ["FASTATTN_NUM_THREADS"] = "5"
        print(pool.thread_count(), child(lambda: pool.thread_count() == 5))
    """) == ["1", "1", "True"]


@pytest.mark.parametrize("before", ["meet(3)", "None"])
def test_calls_work_at_exit_and_even_after_it(before):
    # An atexit function; then the finalizer of what is still there when the modules are gone.
    assert in_a_process(f"""
        import atexit, builtins

        class Last:
            def __init__(self):
                # Bound here: the names of the module are None by the time that this is used.
                self.run, self.tiles, self.put = pool.run, Work(4), os.write

            def __del__(self):
                self.tiles.run(3)
                self.put(1, repr(len(self.tiles.done)).encode())

        builtins.last = Last()
        atexit.register(lambda: print(*Work(4, lambda i: time.sleep(0.001)).run(3), flush=True))
        {before}
    """) == ["0", "1", "2", "3", "4"]


def test_a_daemon_thread_at_work_does_not_disturb_the_exit():
    assert in_a_process("""
        def at_work():
            while True:
                Work(100, lambda i: time.sleep(0.0001)).run(3)

        for _ in range(3):
            threading.Thread(target=at_work, daemon=True).start()
        meet(3)
        time.sleep(0.05)
        print("end")
    """) == ["end"]


def test_importing_starts_no_thread():
    assert in_a_process("""
        import _thread
        from fastattn.tiles import pool
        print(_thread._count(), end=" ")                # of threads that _thread has started
        Work(3).run(1)
        print(_thread._count(), end=" ")
        meet(2)
        print(_thread._count())
    """) == ["0", "0", "1"]


# ---- how many threads ----------------------------------------------------------------------------------------------
@pytest.fixture
def machine(monkeypatch):
    """Sets what `thread_count` goes by: variables, processors, quota."""
    def of(processors=64, quota=None, **variables):
        monkeypatch.setattr(pool, "cores", lambda: processors)
        monkeypatch.setattr(pool, "_quota", lambda root: quota)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    return of


F, O, N = "FASTATTN_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"


@pytest.mark.parametrize(("given", "threads"), [
    ({}, 64),
    ({"processors": 3}, 3),
    ({"quota": 5}, 5),
    ({"processors": 3, "quota": 5}, 3),
    ({F: "7"}, 7),
    ({O: "6"}, 6),
    ({N: "5"}, 5),
    ({F: "7", O: "6", N: "5"}, 7),                      # the first, not the least
    ({O: "6", N: "5"}, 6),
    ({F: "99"}, 64),
    ({F: "99", "quota": 9, "processors": 11}, 9),
    ({F: " 7 "}, 7),
    ({F: "4,2"}, 4),                                    # OpenMP's list for nested levels
    *[({F: garbage}, 64) for garbage in ("", "0", "-3", "abc", "2.5", ",2", "9" * 5000)],
    ({F: "", O: "0", N: "5"}, 5),                       # garbage counts as not set
])
def test_the_default_is_the_least_of_what_is_asked_for_and_what_is_there(machine, given, threads):
    machine(**given)
    assert pool.thread_count() == threads


def test_the_default_is_read_once(machine):
    machine(processors=3)
    assert pool.thread_count() == 3
    machine(processors=5)
    assert pool.thread_count() == 3


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_the_processors_are_those_that_we_may_run_on(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7} if pid == 0 else set())
    assert pool.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert pool.cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert pool.cores() == 1


V1 = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(("groups", "files", "quota"), [
    ("0::/", {}, None),
    ("0::/", {"cpu.max": "max 100000"}, None),
    ("0::/", {"cpu.max": "200000 100000"}, 2),
    ("0::/", {"cpu.max": "150000 100000\n"}, 2),        # a container: its own group is the root
    ("0::/", {"cpu.max": "1000 100000"}, 1),
    ("0::/a/b", {"a/b/cpu.max": "350000 100000"}, 4),
    ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
    ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2),
    ("0::/a", {"b/cpu.max": "100000 100000"}, None),    # someone else's
    ("0::/", {"cpu.max": ""}, None),
    ("0::/", {"cpu.max": "abc def"}, None),
    ("0::/", {"cpu.max": "100000 0"}, None),
    ("", {"cpu.max": "100000 100000"}, None),
    ("nonsense", {}, None),
    ("4:cpu,cpuacct:/", {f"cpu,cpuacct/{V1[0]}": "250000", f"cpu,cpuacct/{V1[1]}": "100000"}, 3),
    ("4:cpu:/a/b", {f"cpu/a/{V1[0]}": "400000", f"cpu/a/{V1[1]}": "100000"}, 4),
    ("4:cpu:/", {f"cpu/{V1[0]}": "-1", f"cpu/{V1[1]}": "100000"}, None),
    ("4:cpuacct:/", {f"cpuacct/{V1[0]}": "100000", f"cpuacct/{V1[1]}": "100000"}, None),
    ("8:pids:/\n4:cpu:/\n0::/", {f"cpu/{V1[0]}": "500000", f"cpu/{V1[1]}": "100000", "cpu.max": "max 100000"}, 5),
    ("4:cpu:/\n0::/", {f"cpu/{V1[0]}": "500000", f"cpu/{V1[1]}": "100000", "cpu.max": "200000 100000"}, 2),
])
def test_the_quota_of_the_cgroups_rounded_up(tmp_path, groups, files, quota):
    files = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert pool._quota(tmp_path) == quota


def test_a_system_without_cgroups_has_no_quota(tmp_path):
    assert pool._quota(tmp_path) is None


def test_this_very_machine_has_a_default():
    assert 1 <= pool.thread_count() <= (os.cpu_count() or 1)


def test_the_argument_goes_before_the_context_and_that_before_the_default(machine):
    machine(processors=9)
    with pool.threads(3):
        assert (pool.thread_count(2), pool.thread_count()) == (2, 3)
    assert pool.thread_count() == 9


class Four:
    def __index__(self):
        return 4


@pytest.mark.parametrize("ask", [pool.threads, pool.thread_count])
@pytest.mark.parametrize(("n", "error", "message"), [
    (0, ValueError, r"threads must be at least 1; got 0"),
    (-2, ValueError, r"threads must be at least 1; got -2"),
    (True, TypeError, r"threads must be an int; got True"),
    (2.0, TypeError, r"threads must be an int; got 2\.0"),
    ("2", TypeError, r"threads must be an int; got '2'"),
    ([2], TypeError, r"threads must be an int; got \[2\]"),
])
def test_what_is_no_number_of_threads_is_refused(ask, n, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        ask(n)


def test_none_is_no_number_for_a_context():
    with pytest.raises(TypeError, match="threads must be an int; got None"):
        pool.threads(None)


def test_what_counts_as_an_int_is_one():
    assert pool.thread_count(Four()) == pool.threads(Four()).n == 4


def test_contexts_nest_and_end_with_an_exception(machine):
    machine(processors=9)
    two, three = pool.threads(2), pool.threads(3)
    seen = []

    def inner():
        with three:
            with two, two:
                seen.append(pool.thread_count())
            seen.append(pool.thread_count())
            raise KeyError

    with two:
        with pytest.raises(KeyError):
            inner()
        seen.append(pool.thread_count())
    with two:                                           # and again
        seen.append(pool.thread_count())
    assert (seen, pool.thread_count()) == ([2, 3, 2, 2], 9)


def test_one_context_object_serves_many_contexts(machine):
    machine(processors=9)
    two = pool.threads(2)
    contexts = contextvars.copy_context(), contextvars.copy_context()
    contexts[0].run(two.__enter__)
    contexts[1].run(two.__enter__)
    contexts[0].run(two.__exit__, None, None, None)
    assert [c.run(pool.thread_count) for c in contexts] == [9, 2]
    contexts[0].run(two.__exit__, None, None, None)     # an asynchronous generator may be closed in another context
    assert contexts[0].run(pool.thread_count) == 9


def test_other_threads_do_not_see_it(machine):
    machine(processors=9)
    answers = queue.SimpleQueue()

    def other():
        answers.put(pool.thread_count())
        with pool.threads(4):
            both.wait(LIMIT)
            answers.put(pool.thread_count())
            both.wait(LIMIT)

    both = threading.Barrier(2)
    # Free-threaded Python hands its context to a new thread, unless told otherwise.
    thread = threading.Thread(target=contextvars.Context().run, args=(other,))
    with pool.threads(2):
        thread.start()
        both.wait(LIMIT)
        assert pool.thread_count() == 2                 # while the other is inside its own
        both.wait(LIMIT)
        thread.join(LIMIT)
    assert [answers.get(timeout=LIMIT) for _ in range(2)] == [9, 4]
    assert pool.thread_count() == 9


def test_asyncio_tasks_inherit_it_and_keep_their_own(machine):
    machine(processors=9)
    seen = {}

    async def task(name, n, inside, leave):
        seen[name, "inherited"] = pool.thread_count()
        with pool.threads(n):
            inside.set()
            await leave.wait()
            seen[name, "own"] = pool.thread_count()
            seen[name, "to_thread"] = await asyncio.to_thread(pool.thread_count)

    async def main():
        first, second = asyncio.Event(), asyncio.Event()
        with pool.threads(2):
            tasks = [asyncio.create_task(task("a", 3, first, second)), asyncio.create_task(task("b", 4, second, first))]
            await asyncio.wait_for(asyncio.gather(*tasks), LIMIT)
            return pool.thread_count()

    assert asyncio.run(main()) == 2
    assert seen == {(name, kind): 2 if kind == "inherited" else n
                    for name, n in (("a", 3), ("b", 4)) for kind in ("inherited", "own", "to_thread")}
