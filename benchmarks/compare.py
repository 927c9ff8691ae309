"""fastattn and every installed rival, measured alternately in one process: python -m benchmarks.compare [--help]

A round asks each contender in turn, each time in another order, and the FMA peak once; so a machine that is slow for a while
is slow for all. A figure is the least time of all rounds, the ratio is to the rival with the least time, and the share of the
peak is of the best peak in the same rounds. The JSON file has medians and every round's least time besides.

The process is pinned to as many cores as there are threads before NumPy or anything else that owns threads is imported.
A result that is not right to the case's dtype is reported, not timed. The garbage collector rests while time is taken.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import report

# Long enough for the threads of one library to stop spinning before the next one's turn.
REST = 0.02
TRIAL = 0.1                     # seconds given to each way of asking, to find a library's fastest


def confine(threads: int) -> list[int]:
    """Keep this process, and whatever it imports later, to the last `threads` of its cores; which they are."""
    loaded = {"numpy", "torch", "jax"} & set(sys.modules)
    if loaded:
        raise RuntimeError(f"thread counts must be set before {', '.join(sorted(loaded))} is imported")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NPROC"):
        os.environ[name] = str(threads)
    os.environ.update(JAX_PLATFORMS="cpu", ORT_LOGGING_LEVEL="4")
    if not hasattr(os, "sched_setaffinity"):    # macOS, Windows: thread counts alone
        return []
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    if len(cores) < threads:
        raise SystemExit(f"{threads} threads need as many cores; this process may use {len(cores)}")
    os.sched_setaffinity(0, cores)
    return cores


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def timed(run: Callable[[], Any], seconds: float) -> list[float]:
    """The time of each call, for about so many seconds; at least one."""
    times, end = [], time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        times.append(now - start)
        if now >= end:
            return times


class Contender:
    """One library on one case: its fastest right way, and how long that took; or why there is none."""

    def __init__(self, case, name, arrays, right, threads) -> None:
        self.way, self.times, self.rounds = None, [], []
        self.tried: dict[str, float] = {}
        self.failures: list[str] = []
        from .rivals import CONTENDERS

        try:
            for way in CONTENDERS[name](case, *arrays, threads):
                self.consider(case, way, right)
        except Exception as reason:             # whatever a library raises, the others go on
            self.failures.append(_first_line(reason))

    def consider(self, case, way, right) -> None:
        import numpy as np

        from .cases import error_limit

        try:
            error = float(np.abs(way.read(way.run()) - right).max())
            if not error <= error_limit(case):
                self.failures.append(f"{way.name}: wrong by {error:.1e}")
                return
            self.tried[way.name] = min(timed(way.run, TRIAL))
        except Exception as reason:
            self.failures.append(f"{way.name}: {_first_line(reason)}")
            return
        if self.way is None or self.tried[way.name] < self.tried[self.way.name]:
            self.way, self.error = way, error

    def take_turn(self, seconds: float) -> None:
        times = timed(self.way.run, seconds)
        self.times += times
        self.rounds.append(min(times))

    def result(self) -> dict[str, Any]:
        if self.way is None:
            return {"failed": "; ".join(self.failures)}
        return {"way": self.way.name, "min": min(self.times), "median": statistics.median(self.times), "error": self.error,
                "calls": len(self.times), "rounds": self.rounds, "tried": self.tried, "failures": self.failures}


def _first_line(reason: Exception) -> str:
    return f"{type(reason).__name__}: {(str(reason).strip().splitlines() or [''])[0][:200]}"


def measure(case, names, peak, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """All contenders on one case."""
    from .cases import formula

    arrays = case.inputs()
    right = formula(case, *arrays)
    everyone = {name: Contender(case, name, arrays, right, threads) for name in names}
    order = [c for c in everyone.values() if c.way is not None]
    peak.best, share = 0.0, seconds / max(1, len(order))
    with no_collection():
        for n in range(rounds):
            peak.measure()
            for contender in order[n % len(order):] + order[:n % len(order)]:
                # One call of a slow contender may take more than its share of all rounds: it has had its turn then.
                if sum(contender.times) < share:
                    if threads > 1:
                        time.sleep(REST)
                    contender.take_turn(share / rounds)
    return {
        "name": case.name, "case": str(case), "mask": str(case.mask), "dtype": case.dtype, "flops": case.flops,
        "times": case.times, "share": case.share, "peak": peak.best,
        "contenders": {name: contender.result() for name, contender in everyone.items()},
    }


def machine(cores: list[int], threads: int) -> dict[str, Any]:
    import llvmlite
    import numba
    import numpy as np

    from fastattn.machine import TARGET, cpu_model

    return {"cpu": cpu_model(), "target": TARGET.cpu, "vector_bytes": TARGET.vector_bytes, "cores": cores,
            "threads": threads, "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
            "numba": numba.__version__, "llvmlite": llvmlite.__version__, "numpy": np.__version__}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="default: all; a wrong name lists them")
    parser.add_argument("--rivals", nargs="*", metavar="NAME", help="default: all that are installed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=12.0, help="for each case, shared by the contenders")
    parser.add_argument("--json", metavar="FILE", help="where to write everything that was measured")
    given = parser.parse_args(argv)
    if min(given.threads, given.rounds) < 1 or not given.seconds > 0:
        parser.error("threads, rounds and seconds must be positive")
    return given


def _repeatable(given: argparse.Namespace) -> list[str]:
    """The arguments that decide what is measured, where they differ from the defaults."""
    chosen = {name: value for name, value in vars(given).items() if name != "json" and value != vars(arguments([]))[name]}
    return [word for name, value in chosen.items()
            for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))]


def main(argv: list[str] | None = None) -> None:
    given = arguments(argv)
    cores = confine(given.threads)
    # Not before: these import NumPy.
    from .cases import named
    from .peak import Peak
    from .rivals import OURS, installed

    versions = installed()
    try:
        cases = named(given.cases)
    except ValueError as reason:
        raise SystemExit(str(reason)) from None
    unknown = set(given.rivals or ()) - set(versions)
    if unknown:
        raise SystemExit(f"no such rival: {', '.join(sorted(unknown))}; there are {', '.join(versions)}")
    wanted = [name for name in versions if name == OURS or given.rivals is None or name in given.rivals]
    names = [name for name in wanted if versions[name]]
    peaks = {dtype: Peak(dtype, given.threads) for dtype in {case.dtype for case in cases}}

    result = {"machine": machine(cores, given.threads), "versions": {name: versions[name] for name in wanted},
              "command": shlex.join(["python", "-m", "benchmarks.compare", *_repeatable(given)]),
              "date": time.strftime("%Y-%m-%d"), "rounds": given.rounds, "seconds": given.seconds, "cases": []}
    print(report.box(result), report.heading(wanted), sep="\n\n", flush=True)
    for case in cases:
        measured = measure(case, names, peaks[case.dtype], given.threads, given.rounds, given.seconds)
        result["cases"].append(measured)
        print(report.line(measured, wanted), flush=True)
    print("", *report.notes(result), sep="\n")
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
