"""Our threads: they take the next tile until none is left, and the caller works too.

    caller    run --- offer -- step, step, ... none left -- close: nobody else begins, wait for who is inside -- return
                        |
    helper              `---- begin -- step, step, ... none left -- leave

Why an own pool and not Numba's parallel=True: what that does depends on the threading layer that a user happens to
have. GNU OpenMP kills a forked child (signal 15, so a multiprocessing Pool never returns); the workqueue layer ends the
process when two Python threads call at once, which is what Dask does; the layer without either fault must be installed.
Why not ThreadPoolExecutor: it queues a future for each helper. A Ctrl-C between submit and the line that keeps the
future loses it, and its thread may write into the caller's arrays later; cancelled futures pile up while the workers
are busy. Here one `_Job` for the whole call counts who is inside, so nothing can be lost, and a call costs less.

The rules
    The caller never needs a helper.   An offer that nobody took is closed, not waited for. So calls may nest, come from
                                       any number of threads, find every helper busy, or find no thread to be had.
    A helper never outlives the call.  It works through raw pointers, so `run` returns, or raises, only when all who
                                       began have left. An interrupt in that wait is raised after it. An offer that is
                                       still in the queue then holds nothing of the caller's.
    An exception ends the work.        The caller's or a helper's: no more tiles are handed out; it reaches the caller.
    Threads begin when first needed.   With a forked child, which has none of its parent's threads, it all starts anew.
    Threads do not delay the exit.     They are daemons, and asleep unless some caller is at work.

The limits
    Ctrl-C gets through between two steps, so within the time of one.
    A helper with nothing to do costs about a microsecond (0.6 us; 3.5 with ThreadPoolExecutor and cancel; Intel
    Xeon, Python 3.11: python -m timeit -s "from fastattn.tiles.pool import run" "run(bool, int, 2)"), but waking it up
    pays only from some 300 us of work on. That is for the caller of `run` to judge.
    A signal handler that forks in the middle of a call, and goes on with that call in the child, waits there for
    threads that the child does not have.
"""

from __future__ import annotations

import math
import operator
import os
from _thread import start_new_thread
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from threading import Lock, RLock
from types import TracebackType
from typing import SupportsIndex

from ..machine import cores

# ---- how many threads ----------------------------------------------------------------------------------------------
VARIABLES = ("FASTATTN_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")

# What each `with threads(n)` around us asked for, innermost first.
_asked: ContextVar[tuple[int, ...]] = ContextVar("fastattn.threads", default=())
_default: int | None = None


class threads:
    """The number of threads of the calls inside a with block.

    >>> with fastattn.threads(2):
    ...     o = attention(q, k, v)

    It belongs to the context (contextvars) and never to the process: an asyncio task inherits it and keeps its own
    changes to itself, other threads do not see it. A threads= argument goes before it. May be nested and used again.

    Without either: the first of FASTATTN_NUM_THREADS, OMP_NUM_THREADS, NUMBA_NUM_THREADS that is set, but not more
    than the processors that this process may run on, nor than its cgroup's quota, rounded up. "4,2" counts as 4, as
    OpenMP has it; what is no number of at least 1 counts as not set. Read at the first call of a process, and of a
    forked child.
    """

    __slots__ = ("n",)

    def __init__(self, n: SupportsIndex) -> None:
        self.n = _checked(n)

    def __enter__(self) -> None:
        _asked.set((self.n, *_asked.get()))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _asked.set(_asked.get()[1:])


def thread_count(threads: SupportsIndex | None = None) -> int:
    """The threads of a call: the argument, else the innermost `with threads(n)`, else the default."""
    if threads is not None:
        return _checked(threads)
    asked = _asked.get()
    return asked[0] if asked else _default or _read_default()


def _checked(n: SupportsIndex) -> int:
    try:
        count = None if isinstance(n, bool) else operator.index(n)
    except TypeError:
        count = None
    if count is None:
        raise TypeError(f"threads must be an int; got {n!r}")
    if count < 1:
        raise ValueError(f"threads must be at least 1; got {n!r}")
    return count


def _read_default() -> int:
    global _default
    limits = (_variable(os.environ), cores(), _quota(Path("/")))
    _default = min(limit for limit in limits if limit is not None)
    return _default


def _variable(environment: Mapping[str, str]) -> int | None:
    """What the first variable that holds a number of at least 1 says."""
    for name in VARIABLES:
        try:
            n = int(environment.get(name, "").partition(",")[0])
        except ValueError:
            continue
        if n >= 1:
            return n
    return None


def _quota(root: Path) -> int | None:
    """The processors that the cgroups of this process may fill, rounded up; None: no limit.

    /proc/self/cgroup      0::/a/b            version 2: sys/fs/cgroup/a/b/cpu.max holds "<quota or max> <period>"
                           4:cpu,cpuacct:/a   version 1: sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us, -1: no limit

    A limit of /a holds for /a/b too. A container may see its own cgroup mounted as / but named as on the host, so
    names that are not there say nothing.
    """
    quotas = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, name = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        inside = PurePosixPath(name.lstrip("/"))
        for group in (mount / inside, *(mount / parent for parent in inside.parents)):
            if controllers:
                words = [_read(group / f"cpu.cfs_{word}_us") for word in ("quota", "period")]
            else:
                words = _read(group / "cpu.max").split()
            try:
                quota, period = map(int, words)
            except ValueError:                      # no such file, or "max"
                continue
            if quota > 0 and period > 0:
                quotas.append(math.ceil(quota / period))
    return min(quotas, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


# ---- the work ------------------------------------------------------------------------------------------------------
def run(step: Callable[[], bool], stop: Callable[[], object], threads: int) -> None:
    """Call `step` until it says that no tile is left, on up to `threads` threads, of which the caller is one.

    step     works on some of the tiles that nobody has taken yet, for at most about 50 ms and without the GIL;
             returns whether tiles may be left. Its memory must hang on its own variables: when the interpreter ends,
             module globals and thread-locals are freed while daemon threads are still in native code
    stop     makes every later step find no tile; called by any thread at any time, at the end too; raises nothing

    Returns when every tile is done. If it raises, tiles may be undone, but nobody works on one any more.
    """
    if threads == 1:
        while step():
            pass
        return
    job = _Job(step, stop)
    try:
        try:
            _pool.offer(job, threads - 1)
            while step():
                pass
        finally:
            job.close()
        if job.error is not None:
            raise job.error
    finally:
        # Once more, as a rule for nothing: a second Ctrl-C that hits the very call above must not end the wait.
        job.close()
        job.error = None                            # its traceback leads back here: a cycle would keep arrays alive


class _Job:
    """One call: what to do, and how many helpers are at it."""

    __slots__ = ("error", "guard", "helpers", "inside", "step", "stop")

    def __init__(self, step: Callable[[], bool], stop: Callable[[], object]) -> None:
        self.step = step
        self.stop = stop
        self.error: BaseException | None = None
        self.helpers = 0
        self.guard = Lock()                         # so that a helper begins before the end of the work, or not at all
        self.inside = Lock()                        # held from when the first helper begins until the last has left

    def help(self) -> None:
        """Take steps until no tile is left, unless the call has come to its end."""
        with self.guard:
            if self.step is _nothing:
                return
            if not self.helpers:
                self.inside.acquire()
            self.helpers += 1
        try:
            while self.step():
                pass
        except BaseException as error:
            self.error = error
            self.stop()
        finally:
            with self.guard:
                self.helpers -= 1
                if not self.helpers:
                    self.inside.release()

    def close(self) -> None:
        """End the work, wait until every helper has left, forget what the work was. A second time does nothing."""
        interrupt = None
        while self.stop is not _nothing:
            try:
                try:
                    self.stop()
                finally:
                    with self.guard:
                        self.step = _nothing
                    # Not just acquire: one that succeeds may still end in a KeyboardInterrupt. The number only falls.
                    while self.helpers:
                        self.inside.acquire()
                    self.stop = _nothing
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            try:
                raise interrupt
            finally:
                del interrupt                       # its traceback leads back to this frame


def _nothing() -> bool:
    """The step of a job that is over."""
    return False


# ---- the threads ---------------------------------------------------------------------------------------------------
class _Pool:
    """Threads that sleep until work is offered."""

    # Offers in the queue for each thread, at most. So many wait only when all threads are busy while callers come and
    # go; then a call is as well off alone, and the queue stays bounded.
    WAITING = 64

    def __init__(self) -> None:
        self.offers: SimpleQueue[_Job] = SimpleQueue()
        self.size = 0
        # Reentrant: a signal handler or a finalizer may call while this very thread is growing the pool.
        self.growing = RLock()

    def offer(self, job: _Job, helpers: int) -> None:
        """Ask for so many helpers. Some, or none, will come."""
        if self.size < helpers:
            self.grow(helpers)
        if self.offers.qsize() < self.WAITING * self.size:
            for _ in range(helpers):
                self.offers.put(job)

    def grow(self, size: int) -> None:
        """Have so many threads, or as many as there are to be had."""
        with self.growing:
            while self.size < size:
                try:
                    # Not threading.Thread, which waits until its thread runs: while the interpreter ends, none does.
                    start_new_thread(_help, (self.offers,))
                except RuntimeError:                # no more threads to be had
                    return
                self.size += 1


def _help(offers: SimpleQueue[_Job]) -> None:
    while True:
        offers.get().help()


_pool = _Pool()


def _start_anew() -> None:
    """In a forked child: the threads are gone, the locks may be held by them, and the processors may be others."""
    global _pool, _default
    _pool, _default = _Pool(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
