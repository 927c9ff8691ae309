"""What `compare` measured, for people: text while it runs, and the README's table.

    python -m benchmarks.report results.json                 print the table
    python -m benchmarks.report results.json README.md       put it between <!-- table: forward --> and <!-- /table -->
                        ... --name forward-avx2              one of several: <!-- table: forward-avx2 -->
                        ... --name short --short s2048 s512  some cases only

Losses stand in the table like wins. Nothing here is written by hand or rounded in our favour: a ratio that shows as 1.00 may
be a loss by 0.4 %, and then is marked as one.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OURS = "fastattn"
Measured = dict[str, Any]


# ---- what follows from the figures ---------------------------------------------------------------------------------------
def timings(row: Measured, statistic: str = "min") -> dict[str, float]:
    """Seconds of each contender that gave a right result."""
    return {name: x[statistic] for name, x in row["contenders"].items() if statistic in x}


def best_rival(row: Measured) -> str | None:
    """The rival with the least time."""
    rivals = {name: t for name, t in timings(row).items() if name != OURS}
    return min(rivals, key=rivals.__getitem__, default=None)


def ratio(row: Measured, statistic: str = "min") -> float | None:
    """How many times faster than the best rival we are; below 1 is a loss; None: there is nobody to compare with."""
    t, rival = timings(row, statistic), best_rival(row)
    return t[rival] / t[OURS] if rival and OURS in t else None


def gflops(row: Measured) -> float | None:
    """Needed work a second."""
    t = timings(row).get(OURS)
    return row["flops"] / t / 1e9 if t else None


def share(row: Measured) -> float | None:
    """The part of the FMA peak of the same rounds."""
    rate = gflops(row)
    return rate / row["peak"] if rate else None


def lost(result: Measured) -> list[str]:
    """The cases in which some rival was faster."""
    return [row["name"] for row in result["cases"] if (ratio(row) or 1) < 1]


def geometric_mean(numbers: list[float]) -> float:
    return math.exp(sum(map(math.log, numbers)) / len(numbers))


# ---- as text while it is measured ----------------------------------------------------------------------------------------
def box(result: Measured) -> str:
    """Machine, versions, command."""
    m = result["machine"]
    where = f"{m['threads']} thread{'s' * (m['threads'] > 1)}" + (f" on {_cores(m['cores'])}" if m["cores"] else "")
    others = ", ".join(f"{name} {version or 'not installed'}" for name, version in result["versions"].items())
    return (f"{m['cpu']}, {m['target']}, {8 * m['vector_bytes']}-bit vectors; {where}; Python {m['python']}, "
            f"Numba {m['numba']}\n{others}\n{result['command']}   {result['date']}\n"
            f"milliseconds, the least of {result['rounds']} alternating rounds")


def _cores(cores: list[int]) -> str:
    return ("core " if len(cores) == 1 else "cores ") + ", ".join(map(str, cores))


def heading(names: list[str]) -> str:
    times = "".join(f"{name:>12}" for name in names)
    return (f"{'':16}{'B, H, S, D':24}{'mask':21}{times}{'GFLOP/s':>9}{'of peak':>9}{'(aim)':>7}"
            f"{'x best':>8}{'median':>8}{'(aim)':>7}")


def line(row: Measured, names: list[str]) -> str:
    """One row: everyone's least time, our rate, and the ratio to the best rival."""
    t = timings(row)
    times = "".join(f"{_milliseconds(t.get(name)) if name in row['contenders'] else '-':>12}" for name in names)
    aims = [f"({row['share']:.0%})" if row["share"] else "", f"({row['times']:g})" if row["times"] else ""]
    return (f"{row['name']:16}{row['case']:24}{row['mask']:21}{times}{_show(gflops(row), '.1f'):>9}"
            f"{_show(share(row), '.1%'):>9}{aims[0]:>7}{_show(ratio(row), '.2f'):>8}{_show(ratio(row, 'median'), '.2f'):>8}"
            f"{aims[1]:>7}  {verdict(row)}")


def verdict(row: Measured) -> str:
    times = ratio(row)
    if times is None:
        return "no comparison"
    return f"LOSS to {best_rival(row)}" if times < 1 else f"best rival: {best_rival(row)}"


def notes(result: Measured) -> Iterator[str]:
    """The sum of it, and who gave no result where and why."""
    ratios = [x for x in map(ratio, result["cases"]) if x is not None]
    if ratios:
        names = lost(result)
        losses = f"{len(names)} lost: {', '.join(names)}" if names else "none lost"
        yield f"{geometric_mean(ratios):.2f} x the best rival, geometric mean of {len(ratios)}; {losses}"
    for row in result["cases"]:
        for name, x in row["contenders"].items():
            if "failed" in x:
                yield f"{row['name']}: {name} gave no result: {x['failed']}"


def _show(x: float | None, form: str) -> str:
    return "" if x is None else format(x, form)


def _milliseconds(seconds: float | None) -> str:
    """Four digits, from microseconds to seconds."""
    if seconds is None:
        return "none"
    return f"{1e3 * seconds:.{max(0, min(4, 3 - math.floor(math.log10(1e3 * seconds))))}f}"


# ---- as the README's table -----------------------------------------------------------------------------------------------
NAME = "forward"


def table(result: Measured, name: str = NAME) -> str:
    """Markdown: one line a case, losses in bold, what it was measured with below. name: the table's in the document."""
    rivals, m = _rivals(result), result["machine"]
    head = ["B, H, S, D", "mask", "fastattn", *rivals, "× best rival", "of FMA peak"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    return "\n".join([
        *_lines(head, [_cells(row, rivals) for row in result["cases"]]), "",
        f"Milliseconds, the least of {result['rounds']} alternating rounds, on {_plural(m['threads'], 'core')} of "
        f"{_article(m['cpu'])} ({8 * m['vector_bytes']}-bit vectors); H is Hq/Hkv where they differ, S is Sq×Sk, D is D/Dv. "
        f"× best rival: how many times faster than the fastest other; {_losses(result)}. "
        f"The peak is measured in the same rounds; only pairs of query and key that the mask lets through count as work.",
        "",
        f"{versions}; Numba {m['numba']}, Python {m['python']}, {m['system']}; {result['date']}. "
        f"`{result['command']} --json results.json && python -m benchmarks.report results.json README.md"
        f"{'' if name == NAME else f' --name {name}'}` makes this table.",
    ])


def short(result: Measured, names: list[str]) -> str:
    """Some of the cases, with their ratio for each rival, and how many of all were lost."""
    rows = [row for row in result["cases"] if row["name"] in names]
    unknown = set(names) - {row["name"] for row in rows}
    if unknown:
        raise ValueError(f"not among the results: {', '.join(sorted(unknown))}")
    rivals, m, cells = _rivals(result), result["machine"], []
    for row in rows:
        t = timings(row)
        ratios = (f"{t[name] / t[OURS]:.2f}" if name in t else "–" for name in rivals)
        cells.append([_shape(row), row["mask"], _milliseconds(t[OURS]), *ratios])
    return "\n".join([
        *_lines(["B, H, S, D", "mask", "fastattn, ms", *(f"× {name}" for name in rivals)], cells), "",
        f"How many times faster than each, on {_plural(m['threads'], 'core')} of {_article(m['cpu'])} "
        f"({8 * m['vector_bytes']}-bit vectors), {result['date']}; "
        f"{len(lost(result))} of all {len(result['cases'])} cases were lost to one of them. [All cases](#measured).",
    ])


def _rivals(result: Measured) -> list[str]:
    return [name for name, version in result["versions"].items() if version and name != OURS]


def _lines(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A Markdown table: two columns of text, the others of numbers."""
    for cells in (head, ["---", "---", *["--:"] * (len(head) - 2)], *rows):
        yield f"| {' | '.join(cells)} |"


def _shape(row: Measured) -> str:
    return row["case"].replace("x", "×")


def _losses(result: Measured) -> str:
    count = len(lost(result))
    return f"**{count} of {len(result['cases'])} lost**" if count else "none lost"


def _cells(row: Measured, rivals: list[str]) -> list[str]:
    t, times, part = timings(row), ratio(row), share(row)
    ours = _milliseconds(t.get(OURS))
    won = "–" if times is None else f"**{times:.2f} (loss)**" if times < 1 else f"{times:.2f}"
    return [_shape(row), row["mask"], ours, *(_milliseconds(t[name]) if name in t else "–" for name in rivals),
            won, "–" if part is None else f"{part:.0%}"]


def _plural(n: int, what: str) -> str:
    return f"one {what}" if n == 1 else f"{n} {what}s"


def _article(cpu: str) -> str:
    return f"{'an' if cpu[:1] in 'AEIOaeio' else 'a'} {cpu}"


def put(document: str, name: str, content: str) -> str:
    """The document with `content` between <!-- table: name --> and the next <!-- /table -->, whatever was there."""
    begin, end = f"<!-- table: {name} -->", "<!-- /table -->"
    pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if len(pattern.findall(document)) != 1:
        raise ValueError(f"the document needs {begin} and {end} once, each on a line of its own")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", document)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what benchmarks.compare --json wrote")
    parser.add_argument("document", type=Path, nargs="?", help="the Markdown file that gets the table")
    parser.add_argument("--name", default=NAME, help="the table's name in the document")
    parser.add_argument("--short", nargs="+", metavar="CASE", help="these cases alone, and what it was measured with in a line")
    given = parser.parse_args(argv)
    result = json.loads(given.results.read_text(encoding="utf-8"))
    content = short(result, given.short) if given.short else table(result, given.name)
    if given.document is None:
        print(content)
    else:
        given.document.write_text(put(given.document.read_text(encoding="utf-8"), given.name, content), encoding="utf-8")


if __name__ == "__main__":
    main()
