"""The race against the number of words, all words at once or one after the other: python -m benchmarks.sequence [--help]

A round asks each layer in turn, each time in another order, so a machine that is slow for a while is slow for all. A figure is
the least time of all rounds. Who is slow has fewer turns: at least three, or one
where a call takes a second.

What one call would take is estimated by the needed work from the length before; what is above --limit is left out and said
to be. Every layer's answer for 16 words is compared with the reference's, and who is wrong is left out, too. The
process is pinned to as many cores as there are threads before NumPy or anything else that owns threads is imported. Ctrl-C
ends it early: what has been measured until then is printed and written all the same.

The JSON file: machine, versions, command, date, rounds, seconds, limit, interrupted, left_out {"torch lstm, 32,768 words": why}
and results, a list of {"kind", "S", "batch", "threads", "seconds_min", "seconds_median", "calls", "flops"}.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from . import progress, report
from .compare import REST, begun, command, confine, end, first_line, no_collection, timed, write

CHECKED = 16                    # words of the text on which every layer must be right
LEAST, LONG = 3, 1.0            # turns, whatever the time, where a call takes less than so many seconds
WARM = 4.0                      # seconds: what takes less is called once before, so that memory that it keeps is there
Result = dict[str, Any]


# ---- the run -----------------------------------------------------------------------------------------------------------
class Runner:
    """One layer in the race: how long its calls took at this length, and what that says of the next one."""

    def __init__(self, kind: str, batch: int, threads: int) -> None:
        self.kind, self.batch, self.threads = kind, batch, threads
        self.rate: float | None = None          # needed FLOP/s at the last length
        self.wrong = ""
        self.times: list[float] = []

    def start(self, race: Any, x: Any) -> None:
        """Be ready for these words."""
        from .racers import way

        self.race, self.run, self.times = race, way(race, x, self.threads).run, []
        if self.rate is None or self.estimate(race) < WARM:
            self.run()

    def check(self, race: Any) -> None:
        """Be right on these words, or say why not."""
        import numpy as np

        from .racers import ERROR_LIMIT, right, way

        try:
            x = race.words()
            racer = way(race, x, self.threads)
            error = float(np.abs(racer.read(racer.run()) - right(self.kind, x)).max())
            self.wrong = "" if error <= ERROR_LIMIT else f"wrong by {error:.1e}"
        except Exception as reason:             # whatever a library raises, the others go on
            self.wrong = first_line(reason)

    def estimate(self, race: Any) -> float:
        """Seconds that a call will take; 0: nothing is known yet."""
        return race.flops / self.rate if self.rate else 0.0

    def take_turn(self, seconds: float) -> None:
        self.times += timed(self.run, seconds)

    def result(self) -> Result:
        self.rate = self.race.flops / min(self.times)
        return {"kind": self.kind, "S": self.race.S, "batch": self.batch, "threads": self.threads,
                "seconds_min": min(self.times), "seconds_median": statistics.median(self.times),
                "calls": len(self.times), "flops": self.race.flops}


def rounds_of(runners: list[Runner], rounds: int, seconds: float, advance: progress.Advance) -> None:
    """Give each runner its turns, `seconds` for all of them together."""
    share = seconds / max(1, len(runners))
    with no_collection():
        for n in range(rounds):
            for runner in runners[n % len(runners):] + runners[:n % len(runners)]:
                advance(f"{runner.race}: round {n + 1} of {rounds}", 0)
                # A call of a slow runner may take more than its share of all rounds: it has had its turn then.
                if sum(runner.times) < share or (n < LEAST and max(runner.times) < LONG):
                    if runner.threads > 1:
                        time.sleep(REST)
                    runner.take_turn(share / rounds)
            advance("")


def race(result: Result, kinds: list[str], lengths: list[int], batches: list[int], show: Callable[[list[Result]], None],
         advance: progress.Advance = progress.silent) -> None:
    """Measure, and add to the result's results, left_out and interrupted; show(results) of each length."""
    from .cases import Race

    for batch in batches:
        runners = [Runner(kind, batch, result["machine"]["threads"]) for kind in kinds]
        for S in sorted(lengths):
            here: list[Runner] = []
            where = f"{S:,} words" + (f", batch {batch}" if batch > 1 else "")
            try:
                if min(lengths) == S:
                    for runner in runners:
                        advance(f"{runner.kind}: is it right?", 0)
                        runner.check(Race(runner.kind, CHECKED, batch))
                x = Race(kinds[0], S, batch).words()
                for runner in runners:
                    asked = Race(runner.kind, S, batch)
                    seconds = runner.estimate(asked)
                    if runner.wrong or seconds > result["limit"]:
                        why = runner.wrong or f"about {seconds:.0f} s a call, more than {result['limit']:g}"
                        result["left_out"][str(asked)] = why
                    else:
                        advance(f"{asked}: first call", 0)
                        runner.start(asked, x)
                        here.append(runner)
                if here:
                    rounds_of(here, result["rounds"], result["seconds"], advance)
            except KeyboardInterrupt:
                result["interrupted"] = where
            new = [runner.result() for runner in here if runner.times]
            result["results"] += new
            try:
                if new:
                    show(new)
            except KeyboardInterrupt:
                result["interrupted"] = where
            if result["interrupted"]:
                return


# ---- what it shows -----------------------------------------------------------------------------------------------------
def compared(ours: report.Curve, rival: report.Curve) -> str:
    """How much faster, where; where slower."""
    gain = {S: rival[S] / ours[S] for S in sorted(ours.keys() & rival.keys())}
    lost = [S for S, x in gain.items() if x < 1]
    span = f"{min(gain.values()):.2f} to {max(gain.values()):.2f} times as fast, {min(gain):,} to {max(gain):,} words"
    if not lost:
        return f"{span}: ahead at every length"
    return f"{span}: BEHIND at {', '.join(f'{S:,}' for S in lost)}"


def verdicts(results: list[Result]) -> Iterator[str]:
    """Who is ahead of whom, where and by how much, wins and losses alike."""
    from .cases import SIGHTS

    for (batch, threads), kinds in report.curves({"results": results}, "seconds_min").items():
        yield f"batch {batch}, {threads} core{'s' * (threads > 1)}"
        rivals = {kind: curve for kind, curve in kinds.items() if kind not in SIGHTS}
        for name in SIGHTS:
            for rival, curve in rivals.items():
                if kinds.get(name, {}).keys() & curve.keys():
                    line = f"  {name:<10} {rival:<25} {compared(kinds[name], curve)}"
                    S = max((S for S, behind in report.crossings(kinds[name], curve) if behind), default=None)
                    yield line + (f"; as fast at about {S:,.0f}" if S else "")


def heading(kinds: list[str]) -> str:
    return f"{'milliseconds':<12} " + " ".join(f"{kind:>{_width(kind)}}" for kind in kinds)


def line(kinds: list[str], new: list[Result]) -> str:
    """The times of one length; a star at the least."""
    times = {row["kind"]: row["seconds_min"] for row in new}
    least = min(times.values())
    cells = [f"{_milliseconds(times[kind])}{'*' * (times[kind] == least)}" if kind in times else "-" for kind in kinds]
    name = f"{new[0]['batch']} x {new[0]['S']:,}"
    return f"{name:<12} " + " ".join(f"{cell:>{_width(kind)}}" for kind, cell in zip(kinds, cells, strict=True))


def _width(kind: str) -> int:
    return max(8, len(kind))


def _milliseconds(seconds: float) -> str:
    """Three digits at least, and none behind the point from 100 on."""
    return f"{1e3 * seconds:.{min(4, max(0, 2 - math.floor(math.log10(1e3 * seconds))))}f}"


# ---- the command -------------------------------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequence", description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="default: all that are installed; a wrong one lists them")
    parser.add_argument("--words", nargs="+", type=int, metavar="S", help="default: 16 to 32768")
    parser.add_argument("--batch", nargs="+", type=int, metavar="B", help="default: 1 and 16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each length, shared by the layers")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds; what one call of takes longer is left out")
    parser.add_argument("--json", metavar="FILE", help="where to write everything that was measured")
    return parser


def main(argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    counts = [given.threads, given.rounds, *(given.words or ()), *(given.batch or ())]
    if min(counts) < 1 or not min(given.seconds, given.limit) > 0:
        parser().error("words, batch, threads, rounds, seconds and limit must be positive")
    # OpenBLAS's threads look for work for 2^26 cycles behind each product. On two cores that is the core which the next step of
    # a layer, the mix or the recurrence, would run on: steps of 1 ms took 40.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    cores = confine(given.threads)
    # Not before: these import NumPy.
    import numpy as np

    from fastattn import __version__

    from .cases import BATCHES, LENGTHS, TORCH
    from .racers import installed

    there = installed()
    unknown = set(given.kinds or ()) - set(there)
    if unknown:
        raise SystemExit(f"no such layer here: {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    kinds = [kind for kind in there if given.kinds is None or kind in given.kinds]
    torch = importlib.metadata.version("torch") if set(kinds) & set(TORCH) else None
    versions = {"fastattn": __version__, "numpy": np.__version__, "torch": torch}
    result = begun(cores, given.threads, versions, command(parser(), given), rounds=given.rounds, seconds=given.seconds,
                   limit=given.limit, left_out={}, results=[])

    def show(new: list[Result]) -> None:
        print(line(kinds, new), flush=True)
        write(result, given.json)               # after each length: a run of minutes may be killed, too

    lengths, batches = given.words or list(LENGTHS), given.batch or list(BATCHES)
    print(heading(kinds), flush=True)
    with progress.bar(len(batches) * len(lengths) * given.rounds) as advance:
        race(result, kinds, lengths, batches, show, advance)
    print("", *verdicts(result["results"]), *(f"left out: {what}: {why}" for what, why in result["left_out"].items()), sep="\n")
    if result["interrupted"]:
        print(f"interrupted at {result['interrupted']}")
    end(result)


if __name__ == "__main__":
    main()
