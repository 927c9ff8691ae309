"""Code in a process of its own: for what ends, forks, limits or poisons a process, and for what is decided when one starts.

`call(f, *arguments)` is f(*arguments), computed there. A process that dies, complains on stderr or hangs is a failure.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).parent
ROOT = TESTS.parent
LIMIT = 240             # seconds, on a machine ten times slower than any; whoever takes longer waits for ever

CHILD = """
import importlib, json, sys, warnings
# Python 3.12 and up warn at a fork beside other threads: that it works is what tests are about.
warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
module, name, arguments = sys.argv[1:]
result = getattr(importlib.import_module(module), name)(*json.loads(arguments))
print(json.dumps(result), flush=True)
"""


class Ended(NamedTuple):
    """How a process came to its end."""

    status: int                         # -n: by signal n
    lines: list[str]
    complaint: str

    @property
    def value(self) -> Any:
        """What the function returned, or what was printed at exit."""
        return json.loads(self.lines[-1])


def start(function, *arguments, cache, package=ROOT, **environment):
    """Begin function(*arguments) in a fresh process. `finish` it."""
    given = {name: value for name, value in os.environ.items()
             if not name.startswith(("NUMBA_", "FASTATTN_", "XDG_CACHE_HOME", "PYTHON"))}
    given |= {"FASTATTN_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    given["PYTHONPATH"] = os.pathsep.join(map(str, (package, TESTS, ROOT)))
    given |= {name: str(value) for name, value in environment.items()}
    given = {name: value for name, value in given.items() if environment.get(name, "") is not None}
    command = [sys.executable, "-W", "error", "-c", CHILD, function.__module__, function.__name__, json.dumps(arguments)]
    # -c puts the working directory first on the path, so it must not be one with a package in it.
    return subprocess.Popen(command, env=given, cwd=TESTS, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True)


def finish(process, limit=LIMIT):
    """Wait for its end, and for that of all it has started. A hang ends them all and fails."""
    try:
        out, complaint = process.communicate(timeout=limit)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        out, complaint = process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise AssertionError(f"still not over after {limit} s\n{out}\n{complaint}") from None
        raise
    return Ended(process.returncode, out.splitlines(), complaint)


def run(function, *arguments, cache, package=ROOT, limit=LIMIT, **environment):
    """How function(*arguments) ends in a fresh process.

    function       of a module in tests/, with arguments and a result that JSON can carry
    cache          where it keeps compiled code
    package        the directory that fastattn is imported from
    environment    variables to set, or with None to unset. Those that steer Numba and fastattn are not inherited
    """
    return finish(start(function, *arguments, cache=cache, package=package, **environment), limit)


def call(function, *arguments, **more):
    """What function(*arguments) returns in a fresh process; as `run`."""
    ended = run(function, *arguments, **more)
    assert (ended.status, ended.complaint) == (0, ""), f"status {ended.status}\n{ended.complaint}"
    return ended.value


def child_of(f, limit=LIMIT):
    """What f() is in a forked child: True, False, else the child's status; HANG if it has none by then."""
    pid = os.fork()
    if pid == 0:
        status = 5
        try:
            status = 0 if f() else 3
        finally:
            os._exit(status)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(status)
            return {0: True, 3: False}.get(status, status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "HANG"
