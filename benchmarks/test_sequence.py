"""The race against the number of words, under pytest-benchmark, on as many cores as the process may use:

    taskset -c 1 pytest benchmarks/test_sequence.py --benchmark-enable --benchmark-json=sequence.json

Without --benchmark-enable the shortest texts run once and are compared with the reference like any test. `benchmarks.sequence`
measures the same alternately, and is quicker: here each layer has its rounds before the next one's turn. What one call would
take is estimated by the needed work from the length before, and skipped where that is above LIMIT.
"""

import numpy.testing as npt
import pytest

from fastattn.machine import cores

from .cases import BATCHES, KINDS, LENGTHS, Race
from .racers import ERROR_LIMIT, installed, right, way

LIMIT = 10.0                    # seconds
SLOW = 0.5                      # seconds: from here on two rounds must do
SHORT = 64                      # words: what a test can wait for

rates: dict[tuple[str, int], float] = {}        # needed FLOP/s of each kind and batch at the last length


def pytest_generate_tests(metafunc):
    measured = metafunc.config.getoption("benchmark_enable") or not metafunc.config.getoption("benchmark_disable")
    lengths = [S for S in LENGTHS if measured or S <= SHORT]
    metafunc.parametrize("race", [Race(kind, S, batch) for batch in BATCHES for S in lengths for kind in KINDS], ids=str)


def test_sequence(race, benchmark):
    if race.kind not in installed():
        pytest.skip("torch is not installed")
    threads, rate = cores(), rates.get((race.kind, race.batch))
    seconds = race.flops / rate if rate else 0
    if seconds > LIMIT:
        pytest.skip(f"it would take about {seconds:.0f} s, and the limit is {LIMIT:g}")
    x = race.words()
    racer, benchmark.group = way(race, x, threads), f"{race.S} words, batch {race.batch}"
    if seconds > SLOW:
        y = benchmark.pedantic(racer.run, rounds=2)
    else:
        racer.run()                             # compiled, whatever is timed
        y = benchmark(racer.run)
    if race.S <= SHORT:
        npt.assert_allclose(racer.read(y), right(race.kind, x), rtol=0, atol=ERROR_LIMIT)
    if benchmark.disabled:
        return
    rates[race.kind, race.batch] = race.flops / benchmark.stats.stats.min
    benchmark.extra_info.update(kind=race.kind, S=race.S, batch=race.batch, threads=threads, flops=race.flops)
