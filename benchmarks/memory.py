"""Memory that attention takes besides its inputs, against the number of words: python -m benchmarks.memory [--help]

    bytes = the largest resident set of the process during one call - its resident set before

Each figure comes from a process of its own, which has imported the library, made the inputs and called it once at a small
size before. The result is counted, as it has to be somewhere; what it takes by itself is given besides. Linux only: no
other system forgets a process's largest resident set when asked, which loading a library may have made larger than any call.
Where all scores would take more than half of the memory that is free, whoever may hold them is left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import progress
from .compare import at_least_one, begun, command, confine, contenders, end, write

H, D = 8, 64
SMALL = 64                      # words of the call that comes before, which compiles and starts threads
RESULT = "the result alone"
FUSED = ("fastattn", "torch")   # they never hold all scores


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--words", nargs="+", type=at_least_one, metavar="S", default=[2**n for n in range(7, 15)])
    parser.add_argument("--rivals", nargs="*", metavar="NAME", default=["numpy", "torch"])
    parser.add_argument("--threads", type=at_least_one, default=1)
    parser.add_argument("--json", metavar="FILE", help="where to write everything that was measured")
    return parser


def case(S: int) -> Any:
    """Eight heads of S words that all see each other."""
    from .cases import ALL, F32, Case

    return Case(f"s{S}", 1, H, H, S, S, D, D, ALL, F32)


# ---- in a process of its own ---------------------------------------------------------------------------------------------
def resident(which: str) -> int:
    """Bytes of this process: VmRSS, now in memory; VmHWM, the most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


def bytes_taken(name: str, S: int, threads: int) -> int:
    """By one call of the contender's first way to ask."""
    from .rivals import CONTENDERS

    def call(S):
        q, k, v = case(S).inputs()
        return next(iter(CONTENDERS[name](case(S), q, k, v, threads))).run

    call(SMALL)()
    run = call(S)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")     # the most so far is what there is now
    before = resident("VmRSS")
    o = run()                                                           # alive until it is counted
    taken = resident("VmHWM") - before
    del o
    return max(0, taken)


def measured(name: str, S: int, threads: int) -> int:
    """`bytes_taken` in a process of its own; RuntimeError with its last words if it fails."""
    code = (f"from {__package__} import compare, memory; compare.confine({threads}); "
            f"print(memory.bytes_taken({name!r}, {S}, {threads}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    return int(done.stdout)


# ---- all of them ---------------------------------------------------------------------------------------------------------
def available() -> int:
    """Bytes that programs can have without swapping."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def main(argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("memory is measured on Linux only: no other system can forget a process's largest resident set")
    cores = confine(given.threads)
    versions = contenders(given.rivals)
    result = begun(cores, given.threads, versions, command(parser(), given), left_out={}, results=[])
    names = [name for name, version in versions.items() if version]
    with progress.bar(len(names) * len(given.words)) as advance:
        try:
            for S in given.words:
                result["results"].append({"kind": RESULT, "S": S, "batch": 1, "threads": given.threads, "bytes": 4 * S * H * D})
                for name in names:
                    advance(f"{name}: {S} words", 0)
                    add(result, name, S, given.threads)
                    advance("")
        except KeyboardInterrupt:
            result["interrupted"] = f"{name}, {S} words"
    from .report import text

    print(text(result))
    write(result, given.json)
    end(result)


def add(result: dict[str, Any], name: str, S: int, threads: int) -> None:
    """One figure, or why there is none."""
    if name not in FUSED and available() < 2 * 4 * H * S * S:
        result["left_out"][f"{name}, {S} words"] = f"{4 * H * S * S / 1e9:.1f} GB of scores"
        return
    try:
        taken = measured(name, S, threads)
    except RuntimeError as reason:
        result["left_out"][f"{name}, {S} words"] = str(reason)
        return
    result["results"].append({"kind": name, "S": S, "batch": 1, "threads": threads, "bytes": taken})


if __name__ == "__main__":
    main()
