"""What was measured, for people: text while it runs, the README's tables, and charts.

    python -m benchmarks.report results.json                 print the table
    python -m benchmarks.report results.json README.md       put it between <!-- table: forward --> and <!-- /table -->
    python -m benchmarks.report 1.json 2.json README.md      ... of what was measured in pieces
                        ... --charts benchmarks/charts       draw it, too, and show the picture above the table
                        ... --name forward-avx2              one of several: <!-- table: forward-avx2 -->
                        ... --name short --short s2048 s512  some cases only

What results.json may be, and the table that it becomes unless --name says another:

    forward     compare --json; or pytest benchmarks/test_forward.py --benchmark-enable --benchmark-json=results.json
    sequence    sequence --json, or pytest benchmarks/test_sequence.py in the same way: seconds against the number of words
    memory      memory --json: bytes against the number of words
    accuracy    accuracy --json: errors against the number of keys

A case has contenders, and it is their ratio that counts; the other three are curves, one for each kind of contender:

    {"results": [{"kind": "torch lstm", "S": 1024, "batch": 1, "threads": 1, "seconds_min": 0.0163, ...}, ...], ...}

Losses stand in the table like wins. Nothing here is written by hand or rounded in our favour: a ratio that shows as 1.00 may
be a loss by 0.4 %, and then is marked as one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

OURS = "fastattn"
Measured = dict[str, Any]
Curve = dict[int, float]                # a number for each S


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


class Group(NamedTuple):
    """What can be compared: curves of one batch size on as many cores."""

    batch: int
    threads: int

    def __str__(self) -> str:
        batch = "one sequence" if self.batch == 1 else f"{self.batch} sequences"
        return f"{batch}, {plural(self.threads, 'core')}"


class Quantity(NamedTuple):
    """What curves show. `against`: what S counts."""

    name: str                           # the table's, the chart's
    field: str
    title: str
    against: str
    unit: str
    show: Callable[[float], str]


QUANTITIES = (
    Quantity("sequence", "seconds_min", "Time against the number of words", "words", "ms", lambda x: milliseconds(x)),
    Quantity("memory", "bytes", "Memory besides the inputs against the number of words", "words", "MB",
             lambda x: f"{x / 1e6:.1f}"),
    Quantity("accuracy", "error", "Error of float32, in units of 2⁻²⁴, against the number of keys", "keys", "roundings",
             lambda x: f"{x:.3g}"),
)


def quantity(result: Measured) -> Quantity | None:
    """What the curves of a result show; None: it has cases and no curves."""
    if "cases" in result:
        return None
    fields = {field for row in result.get("results", ()) for field in row}
    found = next((q for q in QUANTITIES if q.field in fields), None)
    if found is None:
        raise ValueError(f"the file must have cases, benchmarks, or results with one of "
                         f"{', '.join(q.field for q in QUANTITIES)}; got {', '.join(sorted(result))}")
    return found


def curves(result: Measured, field: str) -> dict[Group, dict[str, Curve]]:
    """The curve of each kind, in groups that can be compared, all in the order measured."""
    found: dict[Group, dict[str, Curve]] = {}
    for row in result["results"]:
        found.setdefault(Group(row["batch"], row["threads"]), {}).setdefault(row["kind"], {})[row["S"]] = row[field]
    return found


def crossings(a: Curve, b: Curve) -> list[tuple[float, bool]]:
    """Each S where a and b are equal, on straight lines between the points of log-log paper; and whether a is larger behind."""
    both = sorted(a.keys() & b.keys())
    gap = [math.log(a[S] / b[S]) for S in both]
    return [(S * (T / S) ** (d / (d - e)), d < 0) for (S, T), (d, e) in zip(pairwise(both), pairwise(gap), strict=True)
            if d < 0 <= e or e < 0 <= d]


def at_once(kind: str) -> bool:
    """Whether a kind of the race is an attention layer, ours, that sees all words at once."""
    from .cases import SIGHTS  # not before it is needed: it imports NumPy

    return kind in SIGHTS


def slower(kinds: dict[str, Curve], name: str) -> dict[str, str]:
    """Where a kind takes longer than each of those that are not ours at once, in words; "" where it never does."""
    found = {}
    for rival in (rival for rival, curve in kinds.items() if not at_once(rival) and curve.keys() & kinds[name].keys()):
        met = crossings(kinds[name], kinds[rival])
        first = min(kinds[name].keys() & kinds[rival].keys())
        found[rival] = "at every length" if not met and kinds[name][first] > kinds[rival][first] else " and ".join(
            f"{'from' if behind else 'up to'} {S:,.0f} words" for S, behind in met)
    return found


def from_pytest(report: Measured) -> Measured:
    """A report of pytest-benchmark in the form of `compare`, or of curves; its extra_info decides."""
    info, ours = report["machine_info"], report["machine_info"].get("fastattn")
    rows = [(x["extra_info"], x["stats"], x) for x in report["benchmarks"] if x["extra_info"]]
    if ours is None or not rows:
        raise ValueError("a report of pytest-benchmark must come from benchmarks/, by --benchmark-enable, and not be empty")
    file, versions = rows[0][2]["fullname"].split("::")[0], dict(ours["versions"])
    numba, llvmlite = versions.pop("numba"), versions.pop("llvmlite")
    result: Measured = {
        "machine": {**{name: ours[name] for name in ("cpu", "target", "vector_bytes", "threads")}, "cores": [], "numba": numba,
                    "llvmlite": llvmlite, "system": f"{info['system']} {info['machine']}", "python": info["python_version"]},
        "date": report["datetime"][:10], "rounds": None,
        "command": f"python -m pytest {file} --benchmark-enable --benchmark-json=results.json"}
    if "S" in rows[0][0]:
        return result | {"versions": versions, "results": [
            {**extra, "seconds_min": stats["min"], "seconds_median": stats["median"]} for extra, stats, _ in rows]}
    return result | {"versions": {OURS: versions[OURS]}, "cases": [
        {"name": x["params"]["name"], "case": extra["shape"], "mask": extra["mask"], "dtype": extra["dtype"],
         "flops": extra["gflops"] * stats["min"] * 1e9, "peak": extra["peak_gflops"], "times": None, "share": None,
         "contenders": {OURS: {"min": stats["min"], "median": stats["median"]}}} for extra, stats, x in rows]}


def read(files: list[Path]) -> Measured:
    """What was measured, whoever wrote it; of several files of one sort, machine and versions all together."""
    parts = []
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        parts.append(from_pytest(found) if "benchmarks" in found else found)
    return joined(parts) if len(parts) > 1 else parts[0]


def joined(parts: list[Measured]) -> Measured:
    """One result of several that were measured in pieces. What was measured again counts as it was last."""
    key, first = "cases" if "cases" in parts[0] else "results", parts[0]
    for part in parts:
        same = [(x.get("rounds") if key == "cases" else None, x["versions"], key in x, {
            name: value for name, value in x["machine"].items() if key == "cases" or name not in ("threads", "cores")})
            for x in (first, part)]
        if same[0] != same[1]:
            raise ValueError("files that are joined must be of one sort, machine and versions, and cases of one number of rounds")
    which = "name", "kind", "S", "batch", "threads"
    rows = {tuple(map(row.get, which)): row for part in parts for row in part[key]}
    left_out = {what: why for part in parts for what, why in part.get("left_out", {}).items()}
    return first | {
        key: list(rows.values()), "left_out": left_out, "date": " to ".join(sorted({part["date"] for part in parts})),
        "command": " && ".join(f"{part['command']} --json {n}.json" for n, part in enumerate(parts, 1)),
        "interrupted": ", ".join(part["interrupted"] for part in parts if part.get("interrupted")) or None,
        "files": [f"{n}.json" for n in range(1, len(parts) + 1)]}


# ---- as text while it is measured ----------------------------------------------------------------------------------------
def box(result: Measured) -> str:
    """Machine, versions, command."""
    m = result["machine"]
    where = plural(m["threads"], "thread") + (f" on {_cores(m['cores'])}" if m["cores"] else "")
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
    times = "".join(f"{milliseconds(t.get(name)) if name in row['contenders'] else '-':>12}" for name in names)
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
    yield from _interruption(result)


def _interruption(result: Measured) -> Iterator[str]:
    if result.get("interrupted"):
        yield f"interrupted at {result['interrupted']}: nothing behind it was measured"


def text(result: Measured) -> str:
    """Curves as numbers, a line for each kind."""
    q, lines = quantity(result), []
    for group, kinds in curves(result, q.field).items():
        sizes = sorted({S for curve in kinds.values() for S in curve})
        width = max(map(len, kinds)) + 2
        lines += [f"{group}: {q.unit} against {q.against}", " " * width + "".join(f"{S:>10}" for S in sizes)]
        for kind, curve in kinds.items():
            lines.append(f"{kind:{width}}" + "".join(f"{q.show(curve[S]) if S in curve else '':>10}" for S in sizes))
    return "\n".join([*lines, *(f"{what} left out: {why}" for what, why in result.get("left_out", {}).items()),
                      *_interruption(result)])


def _show(x: float | None, form: str) -> str:
    return "" if x is None else format(x, form)


def milliseconds(seconds: float | None) -> str:
    """Four digits, from microseconds to seconds."""
    if seconds is None:
        return "none"
    return f"{1e3 * seconds:.{max(0, min(4, 3 - math.floor(math.log10(1e3 * seconds))))}f}"


# ---- as the README's table -----------------------------------------------------------------------------------------------
FORWARD = "forward"


def usual_name(result: Measured) -> str:
    """The table's name in the document, unless it is given another."""
    q = quantity(result)
    return q.name if q else FORWARD


def table(result: Measured, name: str | None = None, options: str = "") -> str:
    """Markdown: all numbers, losses in bold, and below what it was measured with and how it is made again.

    name       the table's in the document; None: the usual one
    options    what report was asked for besides, as it can be typed
    """
    q = quantity(result)
    lines = _forward(result) if q is None else _curves(result, q)
    named = "" if name in (None, usual_name(result)) else f" --name {name}"
    files = " ".join(result.get("files", ["results.json"]))
    command = result["command"] + ("" if ".json" in result["command"] else " --json results.json")
    return "\n".join([*lines, "", *(f"{note}." for note in _interruption(result)), f"{_versions(result)}; {result['date']}. "
                      f"`{command} && python -m benchmarks.report {files} README.md{named}{options}` makes this table."])


def _versions(result: Measured) -> str:
    m = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    return f"{versions}; Numba {m['numba']}, Python {m['python']}, {m['system']}"


def _forward(result: Measured) -> Iterator[str]:
    """A line a case."""
    rivals, m = rivals_of(result), result["machine"]
    head = ["B, H, S, D", "mask", "fastattn", *rivals, *["× best rival"][:len(rivals)], "of FMA peak"]
    yield from _lines(head, [_cells(row, rivals) for row in result["cases"]])
    yield ""
    least = f"the least of {result['rounds']} alternating rounds" if result["rounds"] else "the least of all rounds"
    yield (f"Milliseconds, {least}, {_where(m, m['threads'])}; H is Hq/Hkv where they differ, S is Sq×Sk, D is D/Dv. "
           + (f"× best rival: how many times faster than the fastest other; {_losses(result)}. " if rivals else "")
           + f"The peak is measured {'in the same rounds' if result['rounds'] else 'right behind'}; only pairs of query and key "
             "that the mask lets through count as work.")


def _curves(result: Measured, q: Quantity) -> Iterator[str]:
    """A table for each group, a line a kind, a column for each S."""
    for group, kinds in curves(result, q.field).items():
        sizes = sorted({S for curve in kinds.values() for S in curve})
        least = {S: min(curve[S] for curve in kinds.values() if S in curve) for S in sizes}
        race = q.field == "seconds_min"
        rows = [[kind, *(_cell(curve.get(S), q, race and curve.get(S) == least[S]) for S in sizes)]
                for kind, curve in kinds.items()]
        yield from _lines([f"{group}: {q.unit}", *(f"{S:,}" for S in sizes)], rows, text=1)
        yield ""
        if race:
            yield from _race(kinds)
    what = {"seconds_min": "Milliseconds, the least of several rounds; the fastest in bold",
            "bytes": "The most that one call adds to the process's memory, its result included",
            "error": "Root mean square of o − o*, and the largest |o − o*|, as shares of the root mean square of o*, which is in "
                     "float64; one rounding is 2⁻²⁴"}[q.field]
    left_out = "; ".join(f"{name}: {why}" for name, why in result.get("left_out", {}).items())
    yield (f"{what}, {_where(result['machine'])}; columns: the number of {q.against}."
           + (f" Left out: {left_out}." if left_out else ""))


def _cell(x: float | None, q: Quantity, bold: bool) -> str:
    return "–" if x is None else f"**{q.show(x)}**" if bold else q.show(x)


def _race(kinds: dict[str, Curve]) -> Iterator[str]:
    """Where each kind of attention wins and loses."""
    for name in filter(at_once, kinds):
        lost = slower(kinds, name)
        ahead, behind = [x for x, where in lost.items() if not where], [f"{x} {where}" for x, where in lost.items() if where]
        says = [f"faster than {_listed(ahead)} at every length"] if ahead else []
        says += [f"takes longer than {_listed(behind)}"] if behind else []
        if says:
            yield f"- {name}: {'; '.join(says)}"
    yield ""


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def short(result: Measured, names: list[str]) -> str:
    """Some of the cases, with their ratio for each rival, and how many of all were lost."""
    rows = [row for row in result.get("cases", ()) if row["name"] in names]
    unknown = set(names) - {row["name"] for row in rows}
    if unknown:
        raise ValueError(f"not among the results: {', '.join(sorted(unknown))}")
    rivals, m, cells = rivals_of(result), result["machine"], []
    for row in rows:
        t = timings(row)
        ratios = (f"{t[name] / t[OURS]:.2f}" if name in t else "–" for name in rivals)
        cells.append([_shape(row), row["mask"], milliseconds(t[OURS]), *ratios])
    return "\n".join([
        *_lines(["B, H, S, D", "mask", "fastattn, ms", *(f"× {name}" for name in rivals)], cells), "",
        f"How many times faster than each, {_where(m, m['threads'])}, {result['date']}; "
        f"{len(lost(result))} of all {len(result['cases'])} cases were lost to one of them. [All cases](#measured).",
    ])


def _where(m: Measured, threads: int | None = None) -> str:
    """The machine; and on how many of its cores, where that is the same for all."""
    cores = "" if threads is None else f"{plural(threads, 'core')} of "
    return f"on {cores}{_article(m['cpu'])} ({8 * m['vector_bytes']}-bit vectors)"


def rivals_of(result: Measured) -> list[str]:
    return [name for name, version in result["versions"].items() if version and name != OURS]


def _lines(head: list[str], rows: list[list[str]], text: int = 2) -> Iterator[str]:
    """A Markdown table: some columns of text, the others of numbers."""
    for cells in (head, ["---"] * text + ["--:"] * (len(head) - text), *rows):
        yield f"| {' | '.join(cells)} |"


def _shape(row: Measured) -> str:
    return row["case"].replace("x", "×")


def _losses(result: Measured) -> str:
    count = len(lost(result))
    return f"**{count} of {len(result['cases'])} lost**" if count else "none lost"


def _cells(row: Measured, rivals: list[str]) -> list[str]:
    t, times, part = timings(row), ratio(row), share(row)
    ours = milliseconds(t.get(OURS))
    won = "–" if times is None else f"**{times:.2f} (loss)**" if times < 1 else f"{times:.2f}"
    return [_shape(row), row["mask"], ours, *(milliseconds(t[name]) if name in t else "–" for name in rivals),
            *[won][:len(rivals)], "–" if part is None else f"{part:.0%}"]


def plural(n: int, what: str) -> str:
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


def pictures(result: Measured, directory: Path, name: str, base: Path) -> str:
    """Draw the charts of a result into a directory, and give the Markdown that shows them from a document in `base`."""
    from . import charts

    directory.mkdir(parents=True, exist_ok=True)
    shown = []
    for chart in charts.charts(result, name):
        file = directory / f"{chart.name}.svg"
        file.write_text(chart.svg, encoding="utf-8")
        shown.append(f"![{chart.says}]({Path(os.path.relpath(file, base)).as_posix()})")
    return "\n\n".join(shown)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="what benchmarks wrote: --json, or --benchmark-json of "
                        "pytest-benchmark; last the Markdown file that gets the table, if it is not to be printed")
    parser.add_argument("--name", help="the table's name in the document; default: forward, sequence, memory or accuracy")
    parser.add_argument("--short", nargs="+", metavar="CASE", help="these cases alone, and what it was measured with in a line")
    parser.add_argument("--charts", type=Path, metavar="DIRECTORY", help="where to draw it, as SVG")
    given = parser.parse_args(argv)
    *results, document = given.results if given.results[-1].suffix == ".md" else [*given.results, None]
    try:
        if not results:
            parser.error("there must be a file of results before the document")
        result = read(results)
        name = given.name or usual_name(result)
        options = f" --charts {given.charts.as_posix()}" if given.charts else ""
        content = short(result, given.short) if given.short else table(result, name, options)
        if given.charts:
            base = document.parent if document else Path()
            content = f"{pictures(result, given.charts, name, base)}\n\n{content}"
        if document is not None:
            document.write_text(put(document.read_text(encoding="utf-8"), name, content), encoding="utf-8")
    except (OSError, ValueError, ImportError) as reason:
        raise SystemExit(f"report: {reason}") from None
    if document is None:
        print(content)


if __name__ == "__main__":
    main()
