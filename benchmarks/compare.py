"""fastattn and every installed rival, measured alternately in one process: python -m benchmarks.compare [--help]

A round asks each contender in turn, each time in another order, and the FMA peak once; so a machine that is slow for a while
is slow for all. A figure is the least time of all rounds, the ratio is to the rival with the least time, and the share of the
peak is of the best peak in the same rounds. The JSON file has medians and every round's least time besides.

The process is pinned to as many cores as there are threads before NumPy or anything else that owns threads is imported.
A result that is not right to the case's dtype is reported, not timed. The garbage collector rests while time is taken.
Ctrl-C ends it early: what has been measured until then is printed and written all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import progress, report

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
            self.failures.append(first_line(reason))

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
            self.failures.append(f"{way.name}: {first_line(reason)}")
            return
        if self.way is None or self.tried[way.name] < self.tried[self.way.name]:
            self.way, self.error = way, error

    def take_turn(self, seconds: float) -> None:
        times = timed(self.way.run, seconds)
        self.times += times
        self.rounds.append(min(times))

    def result(self) -> dict[str, Any]:
        if not self.times:
            return {"failed": "; ".join(self.failures) if self.way is None else "interrupted before its first turn"}
        return {"way": self.way.name, "min": min(self.times), "median": statistics.median(self.times), "error": self.error,
                "calls": len(self.times), "rounds": self.rounds, "tried": self.tried, "failures": self.failures}


def first_line(reason: Exception) -> str:
    return f"{type(reason).__name__}: {(str(reason).strip().splitlines() or [''])[0][:200]}"


def measure(case, names, peak, threads: int, rounds: int, seconds: float,
            advance: progress.Advance = progress.silent) -> dict[str, Any]:
    """All contenders on one case. Interrupted, it gives the rounds that it has; raises KeyboardInterrupt if it has none."""
    from .cases import formula

    advance(f"{case.name}: is everyone right?", 0)
    arrays = case.inputs()
    right = formula(case, *arrays)
    everyone = {name: Contender(case, name, arrays, right, threads) for name in names}
    order = [c for c in everyone.values() if c.way is not None]
    peak.best, share, interrupted = 0.0, seconds / max(1, len(order)), False
    try:
        with no_collection():
            for n in range(rounds):
                advance(f"{case.name}: round {n + 1} of {rounds}", n > 0)
                peak.measure()
                for contender in order[n % len(order):] + order[:n % len(order)]:
                    # One call of a slow contender may take more than its share of all rounds: it has had its turn then.
                    if sum(contender.times) < share:
                        if threads > 1:
                            time.sleep(REST)
                        contender.take_turn(share / rounds)
        advance("")
    except KeyboardInterrupt:
        if not any(contender.times for contender in order):
            raise
        interrupted = True
    return {
        "name": case.name, "case": str(case), "mask": str(case.mask), "dtype": case.dtype, "flops": case.flops,
        "times": case.times, "share": case.share, "peak": peak.best,
        "interrupted": interrupted, "contenders": {name: contender.result() for name, contender in everyone.items()},
    }


def machine(cores: list[int], threads: int) -> dict[str, Any]:
    import llvmlite
    import numba
    import numpy as np

    from fastattn.machine import TARGET, cpu_model

    return {"cpu": cpu_model(), "target": TARGET.cpu, "vector_bytes": TARGET.vector_bytes, "cores": cores,
            "threads": threads, "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
            "numba": numba.__version__, "llvmlite": llvmlite.__version__, "numpy": np.__version__}


def begun(cores: list[int], threads: int, versions: dict[str, str | None], command: str, **more: Any) -> dict[str, Any]:
    """A result of which nothing is measured yet: what every one has in common, and more."""
    return {"machine": machine(cores, threads), "versions": versions, "command": command, "date": time.strftime("%Y-%m-%d"),
            "interrupted": None, **more}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="default: all; a wrong name lists them")
    parser.add_argument("--rivals", nargs="*", metavar="NAME", help="default: all that are installed")
    parser.add_argument("--threads", type=at_least_one, default=1)
    parser.add_argument("--rounds", type=at_least_one, default=20)
    parser.add_argument("--seconds", type=positive, default=12.0, help="for each case, shared by the contenders")
    parser.add_argument("--json", metavar="FILE", help="where to write everything that was measured")
    return parser


def at_least_one(text: str) -> int:
    """An argument that counts something."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {text}")
    return int(text)


def positive(text: str) -> float:
    """An argument that is a time."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number; got {text}")
    return float(text)


def command(parser: argparse.ArgumentParser, given: argparse.Namespace) -> str:
    """What measures the same again: the arguments that decide it, where they differ from the defaults."""
    chosen = {name: value for name, value in vars(given).items() if name != "json" and value != parser.get_default(name)}
    return shlex.join([*parser.prog.split(), *(word for name, value in chosen.items() for word in (
        f"--{name}", *map(str, value if isinstance(value, list) else [value])))])


def contenders(rivals: list[str] | None) -> dict[str, str | None]:
    """The version of us and of these rivals, or of all that there are; None: not installed. SystemExit names an unknown one."""
    from .rivals import OURS, installed

    versions = installed()
    unknown = set(rivals or ()) - set(versions)
    if unknown:
        raise SystemExit(f"no such rival: {', '.join(sorted(unknown))}; there are {', '.join(versions)}")
    return {name: version for name, version in versions.items() if name == OURS or rivals is None or name in rivals}


def write(result: dict[str, Any], file: str | None) -> None:
    """Keep what was measured, if there is a place for it."""
    if file:
        Path(file).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def end(result: dict[str, Any]) -> None:
    """Exit as Ctrl-C ends a command, if it was that."""
    if result["interrupted"]:
        raise SystemExit(130)


def fill(result: dict[str, Any], cases, seconds: Callable[[int], float], show: Callable[[dict[str, Any]], None]) -> None:
    """Measure the cases and add them to the result, each with seconds(how many are left), and `show` it. Ctrl-C ends it."""
    from .peak import Peak

    threads, rounds = result["machine"]["threads"], result["rounds"]
    names = [name for name, version in result["versions"].items() if version]
    with progress.bar(len(cases) * rounds) as advance:
        advance("compiling", 0)
        peaks = {dtype: Peak(dtype, threads) for dtype in {case.dtype for case in cases}}
        for n, case in enumerate(cases):
            try:
                row = measure(case, names, peaks[case.dtype], threads, rounds, seconds(len(cases) - n), advance)
                result["cases"].append(row)
                show(row)
                if row["interrupted"]:
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                result["interrupted"] = case.name
                return


def main(argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    cores = confine(given.threads)
    from .cases import named  # not before: it imports NumPy

    try:
        cases = named(given.cases)
    except ValueError as reason:
        raise SystemExit(str(reason)) from None
    versions = contenders(given.rivals)
    result = begun(cores, given.threads, versions, command(parser(), given), rounds=given.rounds, seconds=given.seconds, cases=[])
    print(report.box(result), report.heading(list(versions)), sep="\n\n", flush=True)

    def show(row: dict[str, Any]) -> None:
        print(report.line(row, list(versions)), flush=True)
        write(result, given.json)               # after each case: a run of minutes may be killed, too

    fill(result, cases, lambda left: given.seconds, show)
    print("", *report.notes(result), sep="\n")
    write(result, given.json)
    end(result)


if __name__ == "__main__":
    main()
