"""How fast fastattn is on your machine, in two minutes: what `fastattn bench` runs.

Ten of the cases against every rival that is installed, then the attention layer against LSTMs, wins and losses alike. The time
is shared: what getting ready took is taken from what measuring gets, so the whole takes about as long as was asked for.

`fastattn bench` starts this file as a program of its own, `python -m benchmarks.bench`: thread counts must be set before
NumPy is imported, and the command has imported it. In a wheel pyproject.toml puts the very files of benchmarks/ and reference/
into fastattn/bench/, and the command finds them there; in a checkout they are beside fastattn/. So cases and rivals exist
once, nothing but fastattn is installed under a name of its own, and the library itself never imports a benchmark.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from . import progress, report
from .compare import at_least_one, begun, command, confine, contenders, end, fill, positive, write

CASES = ["s2048", "s512-causal", "gqa-causal", "batch8", "padding", "prompt", "sentence", "image", "next", "least"]
ROUNDS = 8
LEAST = 0.1                     # seconds for a case, however late it is
RACE = 0.2                      # part of the time
RACERS = ["attention", "window 256", "lstm", "torch lstm"]
WORDS = [64, 1024, 4096]


class Budget:
    """Seconds that measuring a case may take, so that all end in time: what getting ready has taken on average is left."""

    def __init__(self, seconds: float) -> None:
        self.begin = time.perf_counter()
        self.seconds, self.given, self.cases = seconds, 0.0, 0

    def __call__(self, left: int) -> float:
        spent = time.perf_counter() - self.begin
        # Nothing is known before the first: half of its time, as it compiles and imports, too.
        share = (self.seconds - spent) / left
        ready = (spent - self.given) / self.cases if self.cases else share / 2
        now = max(LEAST, share - ready)
        self.given, self.cases = self.given + now, self.cases + 1
        return now


HEADING = f"{'':12}{'B, H, S, D':22}{'mask':16}{'fastattn':>10}   times as fast as ..."


# ---- in words ------------------------------------------------------------------------------------------------------------
def times(x: float) -> str:
    """2.13x, 34x; a loss never shows as 1: 0.996x."""
    return f"{x:.3f}x" if 0.99 < x < 1 else f"{x:.0f}x" if x >= 10 else f"{x:.2f}x"


def verdict(row: report.Measured) -> str:
    """2.4x torch, 4.8x numpy; lost to onnxruntime 0.92x."""
    t = report.timings(row)
    if report.OURS not in t:
        return f"no result: {row['contenders'][report.OURS]['failed']}"
    ratios = sorted(((x / t[report.OURS], name) for name, x in t.items() if name != report.OURS), reverse=True)
    won = ", ".join(f"{times(x)} {name}" for x, name in ratios if x >= 1)
    lost = ", ".join(f"{name} {times(x)}" for x, name in ratios if x < 1)
    return "; ".join(filter(None, [won, f"lost to {lost}" if lost else ""])) or "nobody to compare with"


def line(row: report.Measured) -> str:
    ours = report.timings(row).get(report.OURS)
    shown = "" if ours is None else f"{report.milliseconds(ours)} ms"
    return f"{row['name']:12}{row['case']:22}{row['mask']:16}{shown:>10}   {verdict(row)}"


def summary(result: report.Measured) -> Iterator[str]:
    """The geometric means, all losses, and who was not there."""
    rows = result["cases"]
    best = [x for x in map(report.ratio, rows) if x is not None]
    if best:
        each = []
        for name in report.rivals_of(result):
            pairs = [report.timings(row) for row in rows]
            ratios = [t[name] / t[report.OURS] for t in pairs if name in t and report.OURS in t]
            each += [f"{times(report.geometric_mean(ratios))} {name}"] if ratios else []
        yield (f"Geometric mean of {len(best)} cases: {times(report.geometric_mean(best))} the fastest rival of each; "
               f"{', '.join(each)}.")
        names = report.lost(result)
        yield f"Lost to the fastest rival: {len(names)} of {len(best)}{': ' if names else ''}{', '.join(names)}."
    missing = [name for name, version in result["versions"].items() if not version]
    if missing:
        yield (f"Not installed, so not compared: {', '.join(missing)}. For all of them: pip install torch 'fastattn[bench]'")
    yield from (note for note in report.notes(result) if "gave no result" in note or "interrupted" in note)


def race(result: report.Measured, seconds: float, advance: progress.Advance) -> Iterator[str]:
    """Run the attention layer against LSTMs on texts of several lengths; a line for each length, then who wins where."""
    from .racers import installed
    from .sequence import race

    kinds = [kind for kind in RACERS if kind in installed()]
    lines: list[str] = []

    def show(new: list[report.Measured]) -> None:
        t = {row["kind"]: row["seconds_min"] for row in new}
        for ours in (kind for kind in kinds if report.at_once(kind) and kind in t):
            ratios = [f"{times(t[kind] / t[ours])} {kind}" if t[kind] >= t[ours] else f"lost to {kind} {times(t[kind] / t[ours])}"
                      for kind in kinds if not report.at_once(kind) and kind in t]
            lines.append(f"{ours:12}{new[0]['S']:>6,} words{report.milliseconds(t[ours]):>10} ms   {', '.join(ratios)}")

    result |= {"seconds": seconds / len(WORDS), "limit": seconds}
    race(result, kinds, WORDS, [1], show, advance)
    yield from lines
    yield from (f"{what} left out: {why}" for what, why in result["left_out"].items())


# ---- the command ---------------------------------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastattn bench", description=(
        "How fast fastattn is on this machine, beside every rival that is installed: ten cases, then the attention layer against "
        "LSTMs. Losses are shown like wins."))
    parser.add_argument("--seconds", type=positive, default=120.0, help="about how long all of it takes; default: 120")
    parser.add_argument("--threads", type=at_least_one, default=1, help="how many cores; default: 1")
    parser.add_argument("--json", metavar="FILE", help="where to write everything that was measured")
    return parser


def main(argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    cores = confine(given.threads)
    budget = Budget(given.seconds * (1 - RACE))
    from .cases import named  # not before: it imports NumPy

    versions = contenders(None)
    result = begun(cores, given.threads, versions, command(parser(), given), rounds=ROUNDS, seconds=given.seconds, cases=[])
    print(report.box(result), "", HEADING, sep="\n", flush=True)

    def show(row: report.Measured) -> None:
        print(line(row), flush=True)
        write(result, given.json)

    fill(result, named(CASES), budget, show)
    print("", *summary(result), sep="\n", flush=True)
    if not result["interrupted"]:
        raced = result | {"results": [], "left_out": {}}
        with progress.bar(len(WORDS) * ROUNDS) as advance:
            lines = list(race(raced, max(1.0, given.seconds - (time.perf_counter() - budget.begin)) / 2, advance))
        result |= {"results": raced["results"], "interrupted": raced["interrupted"]}
        print("", "A layer over all words at once, and over windows of 256, against networks that read word by word:", *lines,
              sep="\n", flush=True)
    write(result, given.json)
    end(result)


if __name__ == "__main__":
    main()
