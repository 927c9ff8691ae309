"""How far float32 results lie from float64, against the number of keys: python -m benchmarks.accuracy [--help]

    the usual error      root mean square of o - o*, as a share of that of o*, in units of u = 2^-24: what rounding costs
    the largest          of |o - o*|, in the same units

o* is the formula in float64. 256 queries, as the error depends on the number of keys that each mixes. Of several ways to
ask a library the one with the least usual error counts.
"""

from __future__ import annotations

import argparse
from typing import Any

from . import progress
from .compare import at_least_one, begun, command, confine, contenders, end, write

H, D, QUERIES = 4, 64, 256
U = 2.0**-24
LARGEST = ", largest"          # what a kind is called that shows it


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--keys", nargs="+", type=at_least_one, metavar="S", default=[2**n for n in range(4, 18)])
    parser.add_argument("--rivals", nargs="*", metavar="NAME", help="default: all that are installed")
    parser.add_argument("--threads", type=at_least_one, default=1)
    parser.add_argument("--json", metavar="FILE", help="where to write everything that was measured")
    return parser


def case(S: int) -> Any:
    """256 queries over S keys."""
    from .cases import ALL, F32, Case

    return Case(f"s{S}", 1, H, H, QUERIES, S, D, D, ALL, F32)


def errors(name: str, case, threads: int) -> tuple[float, float]:
    """(usual, largest) of the contender's most exact way; RuntimeError if there is none."""
    import numpy as np

    from .cases import formula
    from .rivals import CONTENDERS

    q, k, v = case.inputs()
    right, found = formula(case, q, k, v), []
    unit = U * np.sqrt(np.mean(right**2))
    for way in CONTENDERS[name](case, q, k, v, threads):
        e = (way.read(way.run()) - right) / unit
        found.append((float(np.sqrt(np.mean(e**2))), float(np.abs(e).max())))
    if not found:
        raise RuntimeError("no way to ask for it")
    return min(found)


def main(argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    cores = confine(given.threads)
    versions = contenders(given.rivals)
    result = begun(cores, given.threads, versions, command(parser(), given), left_out={}, results=[])
    names = [name for name, version in versions.items() if version]
    with progress.bar(len(names) * len(given.keys)) as advance:
        try:
            for S in given.keys:
                for name in names:
                    advance(f"{name}: {S} keys", 0)
                    try:
                        usual, largest = errors(name, case(S), given.threads)
                    except Exception as reason:         # whatever a library raises, the others go on
                        result["left_out"][f"{name}, {S} keys"] = f"{type(reason).__name__}: {reason}".splitlines()[0]
                    else:
                        for kind, error in ((name, usual), (name + LARGEST, largest)):
                            result["results"].append({"kind": kind, "S": S, "batch": 1, "threads": given.threads, "error": error})
                    advance("")
        except KeyboardInterrupt:
            result["interrupted"] = f"{name}, {S} keys"
    from .report import text

    print(text(result))
    write(result, given.json)
    end(result)


if __name__ == "__main__":
    main()
