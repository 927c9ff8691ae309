"""The comparison itself: that its cases are what they say, its rivals right, and its table honest."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest

import reference

from . import compare, report
from .cases import CASES, Sight, error_limit, formula, named, spread
from .rivals import CONTENDERS, OURS, Way, additive, fastattn_mask, installed

SMALL = [case.small() for case in CASES]
NAMES = [case.name for case in CASES]

# The others take seconds to import, and `compare` checks what they give before it takes their time.
LIGHT = (OURS, "numpy")


def made(ours=0.001, rivals=None, **changes):
    """A row as `compare` writes it."""
    times = {OURS: ours, **({"torch": 0.002, "jax": 0.003} if rivals is None else rivals)}
    return {"name": "s512", "case": "1, 8, 512, 64", "mask": "none", "dtype": "float32", "flops": 10**8, "times": 1.5,
            "share": 0.9, "peak": 125.0,
            "contenders": {name: {"min": t, "median": 2 * t} for name, t in times.items()}, **changes}


def result(*rows):
    return {"machine": {"cpu": "Xeon", "target": "rocketlake", "vector_bytes": 64, "cores": [1], "threads": 1,
                        "system": "Linux x86_64", "python": "3.11.7", "numba": "0.68.1"},
            "versions": {OURS: "0.1.0", "torch": "2.13.0", "jax": "0.10.2", "openvino": None},
            "command": "python -m benchmarks.compare", "date": "2026-01-01", "rounds": 20, "seconds": 12.0,
            "cases": list(rows)}


# ---- cases -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", SMALL, ids=NAMES)
def test_a_run_of_keys_is_what_the_mask_says(case):
    mask = fastattn_mask(case)
    seen = np.ones((case.Sq, case.Sk), bool) if mask is None else mask.materialize(case.Sq, case.Sk)
    npt.assert_array_equal(np.broadcast_to(seen, case.seen().shape), case.seen())


@pytest.mark.parametrize("case", SMALL, ids=NAMES)
def test_work_is_two_products_for_each_pair_that_is_seen(case):
    pairs = np.broadcast_to(case.seen(), (case.B, case.Hq, case.Sq, case.Sk)).sum()
    assert case.flops == 2 * pairs * case.D + 2 * pairs * case.Dv


def test_work_of_known_cases():
    full, half = (case.flops for case in named(["s2048", "s2048-causal"]))
    assert full == 4 * 8 * 2048 * 2048 * 64
    assert half == 4 * 8 * (2048 * 2049 // 2) * 64


@pytest.mark.parametrize("case", SMALL, ids=NAMES)
def test_the_formula_is_the_reference(case):
    case = replace(case, Sq=min(case.Sq, 40), Sk=min(case.Sk, 40) if case.Sq == case.Sk else 50)
    if case.mask.lengths:
        case = replace(case, mask=Sight(lengths=spread(3, case.Sk, case.B)))
    q, k, v = case.inputs()
    wanted = reference.attention(q, k, v, mask=case.seen())
    npt.assert_allclose(formula(case, q, k, v), wanted, rtol=0, atol=1e-13)     # both float64, sums of at most 192 numbers


def test_the_formula_in_blocks_of_rows_is_the_formula(monkeypatch):
    case = named(["window"])[0].small()
    whole = formula(case, *case.inputs())
    monkeypatch.setattr("benchmarks.cases.ROWS", 7)
    npt.assert_allclose(formula(case, *case.inputs()), whole, rtol=0, atol=1e-14)


def test_bfloat16_and_float32_are_not_taken_for_float32_and_float64():
    for name, bits in (("s512", 8), ("f64", 24)):
        case = named([name])[0].small()
        q, k, v = case.inputs()
        scale = 2.0 ** (bits - np.frexp(np.abs(q))[1])
        rounded = (np.round(q * scale) / scale).astype(case.dtype)          # q with so many bits in its significand
        assert abs(formula(case, rounded, k, v) - formula(case, q, k, v)).max() > error_limit(case)


# ---- rivals ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("case", SMALL, ids=NAMES)
def test_every_way_gives_the_formula(case, name):
    q, k, v = case.inputs()
    ways = list(CONTENDERS[name](case, q, k, v, 1))
    assert ways
    for way in ways:
        o = way.read(way.run())
        npt.assert_allclose(o, formula(case, q, k, v), rtol=0, atol=error_limit(case), err_msg=way.name)


def test_a_mask_to_add_hides_what_is_not_seen():
    case = named(["chunk"])[0].small()
    npt.assert_array_equal(additive(case) == 0, case.seen())
    npt.assert_array_equal(np.isneginf(additive(case)), ~case.seen())


def test_what_is_not_installed_is_none(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert set(installed().values()) == {None}


# ---- the run -----------------------------------------------------------------------------------------------------------
class Clock:
    """A second passes with each look; and more when somebody works."""

    now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


class NoPeak:
    best = 0.0

    def measure(self):
        self.best = 1.0


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(compare.time, "perf_counter", made)
    return made


@pytest.fixture
def contend(monkeypatch, clock):
    """Run the comparison of contenders that only pretend to work: {name: [(way, seconds, error), ...]}."""
    case = named(["least"])[0]
    turns = []

    def ways(name, offered):
        for label, seconds, error in offered:
            def run(seconds=seconds):
                clock.now += seconds
                turns.append(name)
            yield Way(label, run, lambda _, error=error: formula(case, *case.inputs()) + error)

    def measured(contenders, rounds, seconds):
        for name, offered in contenders.items():
            monkeypatch.setitem(CONTENDERS, name, lambda *_, name=name, offered=offered: ways(name, offered))
        found = compare.measure(case, list(contenders), NoPeak(), 1, rounds, seconds)
        return found["contenders"], turns

    return measured


@pytest.mark.parametrize(("seconds", "calls"), [(0, 1), (1, 1), (3.5, 2), (8.5, 5)])
def test_calls_are_timed_until_the_time_is_over_and_at_least_once(clock, seconds, calls):
    assert compare.timed(lambda: None, seconds) == [1.0] * calls       # the clock ticks before and behind each call


def test_the_fastest_right_way_is_compared(contend):
    found, _ = contend({"torch": [("slow", 9, 0), ("wrong", 1, 1e-3), ("fast", 5, 0), ("slower", 7, 1e-6)]}, 2, 1000)
    assert found["torch"]["way"] == "fast"
    assert found["torch"]["min"] == 6
    assert found["torch"]["tried"].keys() == {"slow", "fast", "slower"}
    assert found["torch"]["failures"] == ["wrong: wrong by 1.0e-03"]


@pytest.mark.parametrize("error", [1e-3, np.nan, np.inf])
def test_a_wrong_result_is_reported_and_not_timed(contend, error):
    found, _ = contend({"torch": [("only", 1, error)], "jax": [("only", 1, 0)]}, 2, 1000)
    assert found["torch"] == {"failed": f"only: wrong by {error:.1e}"}
    assert found["jax"]["min"] == 2


def test_everyone_has_a_turn_in_each_round_and_another_one_begins(contend):
    _, turns = contend({name: [("only", 100, 0)] for name in ("numpy", "torch", "jax")}, 4, 1220)
    # After two calls of each for the trial. A turn is over when its time is, 1220 / 3 / 4 = 101.7 s: one call.
    assert turns[6:] == ["numpy", "torch", "jax", "torch", "jax", "numpy", "jax", "numpy", "torch", "numpy", "torch", "jax"]


def test_who_is_slow_has_fewer_turns(contend):
    found, _ = contend({"torch": [("only", 10, 0)], "jax": [("only", 1000, 0)]}, 10, 1000)
    assert len(found["jax"]["rounds"]) == 1
    assert len(found["torch"]["rounds"]) == 10


def test_a_library_that_fails_stops_nobody(contend, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such operator\nand much more")
        yield

    monkeypatch.setitem(CONTENDERS, "openvino", broken)
    found, _ = contend({"jax": [("only", 1, 0)]}, 1, 100)
    assert "min" in found["jax"]
    assert compare.Contender(named(["least"])[0], "openvino", (), None, 1).result() == {
        "failed": "RuntimeError: no such operator"}


def test_a_comparison_runs_and_its_result_makes_a_table(tmp_path):
    file, root = tmp_path / "results.json", Path(__file__).parent.parent
    run = [sys.executable, "-m", "benchmarks.compare", "--cases", "least", "--rivals", "numpy", "--rounds", "2",
           "--seconds", "0.02", "--json", str(file)]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, check=True)
    assert "least" in done.stdout
    (tmp_path / "README.md").write_text("<!-- table: forward -->\n<!-- /table -->\n")
    report.main([str(file), str(tmp_path / "README.md")])
    assert "| 1, 1, 8, 64 | none |" in (tmp_path / "README.md").read_text()


# ---- the table ---------------------------------------------------------------------------------------------------------
def test_the_ratio_is_to_the_fastest_rival():
    row = made(0.001, {"torch": 0.004, "jax": 0.003})
    assert report.best_rival(row) == "jax"
    assert report.ratio(row) == pytest.approx(3)


def test_rate_and_share_count_needed_work():
    assert report.gflops(made(0.001)) == pytest.approx(100)
    assert report.share(made(0.001)) == pytest.approx(0.8)


@pytest.mark.parametrize(("ours", "lost"), [(0.0019, False), (0.002008, True), (0.004, True)])
def test_a_loss_is_called_one_however_small(ours, lost):
    row = made(ours)
    assert ("LOSS to torch" in report.line(row, [OURS, "torch"])) is lost
    assert ("(loss)" in report.table(result(row))) is lost
    assert ("**1 of 1 lost**" in report.table(result(row))) is lost
    assert ("1 lost: s512" in "\n".join(report.notes(result(row)))) is lost


def test_who_gave_no_result_is_shown_and_not_compared():
    row = made(0.001, {"jax": 0.003})
    row["contenders"]["torch"] = {"failed": "wrong by 1"}
    assert report.best_rival(row) == "jax"
    assert "s512: torch gave no result: wrong by 1" in list(report.notes(result(row)))
    assert "| 1, 8, 512, 64 | none | 1.000 | – | 3.000 | 3.00 | 80% |" in report.table(result(row))


def test_without_rivals_there_is_no_ratio():
    row = made(0.001, {})
    assert report.ratio(row) is None
    assert "no comparison" in report.line(row, [OURS, "torch"])
    assert "none lost" in report.table(result(row))


def test_putting_a_table_twice_changes_nothing_and_leaves_the_rest():
    document = "before\n<!-- table: forward -->\nold\n<!-- /table -->\nafter\n<!-- table: other -->\nkept\n<!-- /table -->\n"
    once = report.put(document, "forward", report.table(result(made())))
    assert report.put(once, "forward", report.table(result(made()))) == once
    assert "old" not in once
    assert once.startswith("before\n<!-- table: forward -->\n|")
    assert once.endswith("<!-- /table -->\nafter\n<!-- table: other -->\nkept\n<!-- /table -->\n")


def test_a_table_says_how_it_is_made_again():
    assert "report results.json README.md` makes this table" in report.table(result(made()))
    assert "report results.json README.md --name other` makes this table" in report.table(result(made()), "other")


def test_a_short_table_has_a_ratio_for_each_rival_and_counts_all_losses():
    text = report.short(result(made(), made(0.004, name="lost")), ["s512"])
    assert "| 1, 8, 512, 64 | none | 1.000 | 2.00 | 3.00 |" in text
    assert "1 of all 2 cases were lost" in text
    with pytest.raises(ValueError, match="not among the results: s1"):
        report.short(result(made()), ["s1"])


@pytest.mark.parametrize("document", ["no markers", "<!-- table: forward -->\n", "<!-- table: forward -->\n<!-- /table -->" * 2])
def test_a_document_without_one_place_for_the_table_is_refused(document):
    with pytest.raises(ValueError, match="the document needs"):
        report.put(document, "forward", "x")


def test_making_a_table_does_not_change_the_result():
    given = result(made(), made(0.004))
    before = copy.deepcopy(given)
    report.table(given)
    assert given == before


def test_an_unknown_case_names_all():
    with pytest.raises(ValueError, match=r"no such case: nothing; there are s2048, .*least"):
        named(["nothing"])
