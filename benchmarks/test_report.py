"""What a report says: that curves cross where they do, that pytest-benchmark is understood, that nothing measured is lost."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from . import accuracy, compare, memory, progress, report
from .cases import formula, named
from .rivals import CONTENDERS, OURS, Way

PYGAL = importlib.util.find_spec("pygal") is not None       # not imported: it changes how everything else is, with a warning
ROOT = Path(__file__).parent.parent
RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.json"))
READ = {file.stem: report.read([file]) for file in RECORDED}


def result(rows, **changes):
    """Curves as `sequence` writes them: rows of kind, S, seconds."""
    return {"machine": {"cpu": "Xeon", "target": "x", "vector_bytes": 64, "cores": [1], "threads": 1, "system": "Linux x86_64",
                        "python": "3.11.7", "numba": "0.68.1"},
            "versions": {OURS: "0.1.0", "torch": "2.13.0"}, "command": "python -m benchmarks.sequence", "date": "2026-01-01",
            "interrupted": None, "left_out": {},
            "results": [{"kind": kind, "S": S, "batch": 1, "threads": 1, "seconds_min": t} for kind, S, t in rows], **changes}


def run(*words, **options):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False, **options)


# ---- curves ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("meet", [20.0, 100.0, 1000.0])
def test_power_laws_cross_where_they_are_equal(meet):
    square, line = ({S: float(S) ** n * meet ** (2 - n) for S in (10, 64, 200, 4096)} for n in (2, 1))
    (S, larger), = report.crossings(square, line)
    assert (pytest.approx(S), larger) == (meet, True)
    assert report.crossings(line, square) == [(pytest.approx(meet), False)]


@pytest.mark.parametrize(("b", "found"), [
    ({1: 2, 2: 2, 4: 2}, []),                               # always above
    ({1: 0.5, 2: 0.5, 4: 0.5}, []),                         # always below
    ({1: 2, 2: 0.5, 4: 2}, [(2**0.5, True), (8**0.5, False)]),
    ({1: 1, 2: 1, 4: 1}, []),                               # equal is not crossed
    ({1: 1, 2: 2, 4: 2}, [(1, False)]),                     # equal at first, then below
    ({1: 2, 2: 1, 4: 2}, [(2, True), (2, False)]),          # touched
    ({1: 2, 4: 0.5, 8: 0.1}, [(2, True)]),                  # only where both are known
    ({3: 5}, []),
])
def test_every_crossing_is_found(b, found):
    assert report.crossings({1: 1, 2: 1, 4: 1}, b) == [(pytest.approx(S), larger) for S, larger in found]


def test_where_attention_is_slower_is_said_in_words():
    kinds = {"attention": {1: 1.0, 4: 16.0}, "causal": {1: 1.0, 4: 1.0}, "never": {1: 2.0, 4: 20.0}, "always": {1: 0.5, 4: 15.0},
             "from": {1: 2.0, 4: 8.0}, "to": {1: 0.5, 4: 32.0}, "elsewhere": {3: 1.0}}
    assert report.slower(kinds, "attention") == {
        "never": "", "always": "at every length", "from": "from 2 words", "to": "up to 2 words"}
    text = report.table(result([(kind, S, t) for kind, curve in kinds.items() for S, t in curve.items()]))
    assert "attention: faster than never at every length; takes longer than always at every length, from from 2 wo" in text


def test_curves_are_compared_with_those_of_as_many_sequences_and_cores():
    rows = [{"kind": "lstm", "S": 16, "batch": batch, "threads": threads, "seconds_min": t}
            for batch, threads, t in ((1, 1, 1), (1, 2, 2), (16, 1, 3))]
    assert {str(group): kinds for group, kinds in report.curves({"results": rows}, "seconds_min").items()} == {
        "one sequence, one core": {"lstm": {16: 1}}, "one sequence, 2 cores": {"lstm": {16: 2}},
        "16 sequences, one core": {"lstm": {16: 3}}}


def test_the_fastest_of_each_length_is_bold():
    text = report.table(result([("attention", 16, 0.002), ("attention", 64, 0.004), ("lstm", 16, 0.001), ("lstm", 64, 0.005)]))
    assert "| attention | 2.000 | **4.000** |" in text
    assert "| lstm | **1.000** | 5.000 |" in text


@pytest.mark.parametrize("found", [{}, {"results": [{"kind": "x", "S": 1}]}, {"cases_": []}])
def test_another_file_is_refused(found, tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps(found))
    with pytest.raises(SystemExit, match="file must have cases, benchmarks, or results with one of seconds_min, bytes, error"):
        report.main([str(file)])


def test_no_file_and_one_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit, match="No such file"):
        report.main([str(tmp_path / "no.json")])
    with pytest.raises(SystemExit):
        report.main([str(tmp_path / "README.md")])
    assert "there must be a file of results before the document" in capsys.readouterr().err


def test_curves_have_no_short_table():
    with pytest.raises(ValueError, match="not among the results: s512"):
        report.short(result([("lstm", 16, 1.0)]), ["s512"])


# ---- files in pieces ---------------------------------------------------------------------------------------------------
def test_pieces_are_joined_and_the_last_measurement_counts():
    a = result([("lstm", 16, 1.0), ("lstm", 64, 2.0)])
    b = result([("lstm", 64, 3.0), ("gru", 16, 4.0)], date="2026-01-03", left_out={"elman, 64 words": "why"},
               interrupted="128 words", machine={**a["machine"], "threads": 2, "cores": [0, 1]})
    both = report.joined([a, b])
    assert report.curves(both, "seconds_min") == {(1, 1): {"lstm": {16: 1.0, 64: 3.0}, "gru": {16: 4.0}}}
    text = report.table(both)
    for said in ("2026-01-01 to 2026-01-03", "elman, 64 words: why", "interrupted at 128 words",
                 "sequence --json 1.json && python -m benchmarks.sequence --json 2.json && python",
                 "-m benchmarks.report 1.json 2.json README.md` makes"):
        assert said in text


@pytest.mark.parametrize("change", [{"versions": {OURS: "0.2.0"}}, {"machine": {"cpu": "other"}}, {"cases": [], "results": None}])
def test_pieces_of_different_things_are_not_joined(change):
    a = result([("lstm", 16, 1.0)])
    b = {name: x for name, x in {**a, **change}.items() if x is not None}
    with pytest.raises(ValueError, match="of one sort, machine and versions"):
        report.joined([a, b])


# ---- recorded ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", READ)
def test_a_table_says_with_what_it_was_measured_and_how_it_is_made_again(name):
    found, text = READ[name], report.table(READ[name])
    assert report.usual_name(found) == name                 # each file is called as its table
    for said in (found["machine"]["cpu"], f"{8 * found['machine']['vector_bytes']}-bit", found["date"], "one core",
                 found["command"], "benchmarks.report results.json README.md",
                 *(f"{x} {v}" for x, v in found["versions"].items() if v)):
        assert said in text


@pytest.mark.parametrize("name", [name for name in READ if name != "forward"])
def test_every_figure_stands_in_the_table(name):
    found, q = READ[name], report.quantity(READ[name])
    for text in (report.table(found), report.text(found)):
        for row in found["results"]:
            line = next(line for line in text.splitlines() if re.match(rf"(\| )?{re.escape(row['kind'])} [ |]", line))
            assert q.show(row[q.field]) in line
        for what in found["left_out"]:
            assert what in text


def test_every_name_can_be_put_into_a_document(tmp_path):
    document = tmp_path / "README.md"
    document.write_text("".join(f"<!-- table: {file.stem} -->\n<!-- /table -->\n" for file in RECORDED))
    for file in RECORDED:
        report.main([str(file), str(document)])
    assert document.read_text().count("makes this table.\n<!-- /table -->") == len(RECORDED) == 4


# ---- pytest-benchmark --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The least case and the shortest race under pytest-benchmark, for milliseconds each."""
    place = tmp_path_factory.mktemp("pytest")
    words = ["-m", "pytest", "-q", "--benchmark-enable", "--benchmark-min-rounds=1", "--benchmark-max-time=0.01"]
    found = {}
    for name, chosen in (("forward", "forward[least]"), ("sequence", "sequence[elman, 16 words]")):
        histogram = [f"--benchmark-histogram={place / name}"] * PYGAL
        done = run(*words, *histogram, f"--benchmark-json={place / name}.json", f"benchmarks/test_{name}.py::test_{chosen}")
        assert done.returncode == 0, done.stdout + done.stderr
        found[name] = place / f"{name}.json"
    return found


def test_a_report_of_pytest_benchmark_becomes_the_table(measured):
    found = report.read([measured["forward"]])
    text = report.table(found)
    stats = json.loads(measured["forward"].read_text())["benchmarks"][0]["stats"]
    assert f"| 1, 1, 8, 64 | none | {report.milliseconds(stats['min'])} |" in text
    assert "× best rival" not in text
    assert "python -m pytest benchmarks/test_forward.py --benchmark-enable --benchmark-json=results.json && python -m" in text
    assert found["cases"][0]["flops"] == pytest.approx(named(["least"])[0].flops)
    assert report.usual_name(found) == "forward"


def test_a_race_under_pytest_benchmark_becomes_curves(measured):
    found = report.read([measured["sequence"]])
    stats = json.loads(measured["sequence"].read_text())["benchmarks"][0]["stats"]
    (group, kinds), = report.curves(found, "seconds_min").items()
    assert group.batch == 1
    assert kinds == {"elman": {16: stats["min"]}}
    assert "one sequence" in report.table(found)


@pytest.mark.skipif(not PYGAL, reason="--benchmark-histogram needs pytest-benchmark[histogram]")
def test_a_histogram_is_drawn(measured):
    assert [file.read_text()[:5] for file in measured["forward"].parent.glob("forward*.svg")] == ["<?xml"]


@pytest.mark.parametrize("found", [{"machine_info": {}, "benchmarks": [{"extra_info": {"S": 1}, "stats": {}}]},
                                   {"machine_info": {"fastattn": {}}, "benchmarks": [{"extra_info": {}, "stats": {}}]}])
def test_a_report_of_something_else_is_refused(found):
    with pytest.raises(ValueError, match="must come from benchmarks/, by --benchmark-enable"):
        report.from_pytest(found)


# ---- Ctrl-C ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def interrupted_at(monkeypatch):
    """The row of a case in which Ctrl-C comes in the rival's n-th call: in the first it must be right, the second is on trial."""
    case = named(["least"])[0]
    right, calls = formula(case, *case.inputs()), []

    class Peak:
        best = 1.0

        def measure(self):
            pass

    def measured(n):
        def answer():
            calls.append(1)
            if len(calls) == n:
                raise KeyboardInterrupt
            return right

        monkeypatch.setitem(CONTENDERS, OURS, lambda *_: iter([Way("only", lambda: right)]))
        monkeypatch.setitem(CONTENDERS, "torch", lambda *_: iter([Way("only", answer)]))
        return compare.measure(case, [OURS, "torch"], Peak(), 1, 5, 1)

    def one_call(run, seconds):
        run()
        return [0.01]

    monkeypatch.setattr(compare, "timed", one_call)
    return measured


def test_an_interrupted_case_keeps_the_rounds_that_it_has(interrupted_at):
    row = interrupted_at(5)
    assert row["interrupted"]
    # Rounds begin with us, them, us: they are interrupted in the third, behind us.
    assert [len(row["contenders"][name]["rounds"]) for name in (OURS, "torch")] == [3, 2]
    assert report.ratio(row) == 1


def test_who_had_no_turn_is_not_compared(interrupted_at):
    row = interrupted_at(3)
    assert row["contenders"]["torch"] == {"failed": "interrupted before its first turn"}
    assert report.ratio(row) is None


@pytest.mark.parametrize("call", [1, 2])
def test_before_the_first_round_there_is_nothing_to_keep(interrupted_at, call):
    with pytest.raises(KeyboardInterrupt):
        interrupted_at(call)


def test_nor_before_the_first_turn(monkeypatch):
    case, = named(["least"])
    monkeypatch.setitem(CONTENDERS, OURS, lambda *_: iter([Way("only", lambda: formula(case, *case.inputs()))]))

    class Peak:
        def measure(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare.measure(case, [OURS], Peak(), 1, 5, 1)


def test_ctrl_c_prints_and_writes_what_there_is(tmp_path):
    file = tmp_path / "x.json"
    command = ["benchmarks.compare", "--cases", "sentence", "least", "--rivals", "numpy", "--rounds", "300", "--seconds", "1.5",
               "--json", str(file)]
    # A shell has its background jobs ignore SIGINT, and what they start inherits that.
    program = ("import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
               f"sys.argv = {command}; runpy.run_module({command[0]!r}, run_name='__main__', alter_sys=True)")
    seen = []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes) as process:
        watch = threading.Timer(120, process.kill)
        watch.start()
        for line in process.stdout:
            seen.append(line)
            if line.startswith("sentence"):                 # the first case is over, the second has begun
                process.send_signal(signal.SIGINT)
        assert (process.wait(), process.stderr.read()) == (130, "")
        watch.cancel()
    found = json.loads(file.read_text())
    assert found["interrupted"] in ("sentence", "least")    # it comes between the two
    assert f"interrupted at {found['interrupted']}: nothing behind it was measured\n" in seen
    assert any("geometric mean" in line for line in seen)
    assert found["cases"][0]["name"] == "sentence"
    assert f"interrupted at {found['interrupted']}" in report.table(found)


# ---- the bar -----------------------------------------------------------------------------------------------------------
def test_a_bar_is_on_stderr_of_a_terminal_and_leaves_what_is_printed(tmp_path):
    pty = pytest.importorskip("pty", reason="there are terminals on POSIX only")
    main, terminal = pty.openpty()
    words = ["-m", "benchmarks.compare", "--cases", "least", "--rivals", "--rounds", "3", "--seconds", "0.1"]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=out, stderr=terminal,
                                   env={**os.environ, "TERM": "xterm"})
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(main, 4096):
                shown += piece
        except OSError:                                     # its end, on Linux
            pass
        os.close(main)
        assert process.wait() == 0
    assert b"least: round 3 of 3" in shown
    assert "\nleast " in (tmp_path / "out").read_text()
    assert "round" not in (tmp_path / "out").read_text().splitlines()[-1]


def test_nobody_sees_a_bar_that_is_not_on_a_terminal(capsys):
    with progress.bar(3) as advance:
        advance("one")
    assert advance is progress.silent
    assert capsys.readouterr() == ("", "")


# ---- memory and accuracy -----------------------------------------------------------------------------------------------
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone forgets a process's largest resident set")
def test_memory_is_the_result_for_us_and_all_scores_for_the_formula():
    S = 1024
    result, scores = 4 * S * memory.H * memory.D, 4 * S * S * memory.H
    ours, formula = (memory.measured(name, S, 1) for name in (OURS, "numpy"))
    # A thread's stack; and each CPU counts pages for itself and tells the process's number by the batch, of 32 pages or more.
    assert result - 2**19 <= ours <= result + 2**20
    assert scores + result - 2**19 <= formula <= scores + 2 * result + 2**20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone forgets a process's largest resident set")
def test_what_a_process_has_had_before_does_not_count():
    code = "import numpy; numpy.ones(2**25); from benchmarks import memory; print(memory.bytes_taken('fastattn', 64, 1))"
    assert int(run("-c", code).stdout) < 2**22              # there were 256 MiB


def test_what_would_not_fit_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2 * 4 * memory.H * 100 * 100 - 1)
    monkeypatch.setattr(memory, "measured", lambda name, S, threads: 7)
    found = {"left_out": {}, "results": []}
    for name in ("numpy", "torch", OURS):
        for S in (99, 100):
            memory.add(found, name, S, 1)
    assert found["left_out"] == {"numpy, 100 words": "0.0 GB of scores"}
    assert [(row["kind"], row["S"]) for row in found["results"]] == [
        ("numpy", 99), ("torch", 99), ("torch", 100), (OURS, 99), (OURS, 100)]


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):
        memory.measured("nobody", 8, 1)


def test_errors_are_measured_in_roundings_of_the_result(monkeypatch):
    case = accuracy.case(64)
    right = formula(case, *case.inputs())
    unit = accuracy.U * np.sqrt(np.mean(right**2))

    def give(o):
        monkeypatch.setitem(CONTENDERS, "torch", lambda *_: iter([Way("only", lambda: o)]))
        return accuracy.errors("torch", case, 1)

    assert give(right) == (0, 0)
    assert give(right - 3 * unit) == (pytest.approx(3), pytest.approx(3))
    usual, largest = give(right.astype(np.float32))
    # A rounding errs by at most half a ULP, 2^-24 of a number just above a power of two, and evenly up to that.
    assert 0.2 < usual < 1
    assert largest <= np.abs(right).max() / np.sqrt(np.mean(right**2))


def test_the_most_exact_way_counts(monkeypatch):
    case = accuracy.case(16)
    right = formula(case, *case.inputs())
    monkeypatch.setitem(CONTENDERS, "torch", lambda *_: iter([Way("bad", lambda: right + 1), Way("good", lambda: right)]))
    assert accuracy.errors("torch", case, 1) == (0, 0)
    monkeypatch.setitem(CONTENDERS, "torch", lambda *_: iter([]))
    with pytest.raises(RuntimeError, match="no way to ask"):
        accuracy.errors("torch", case, 1)


@pytest.mark.parametrize("words", [["memory", "--words", "64"], ["accuracy", "--keys", "16", "64"]])
def test_small_runs_print_and_write_their_curves(words, tmp_path):
    if words[0] == "memory" and not Path("/proc/self/clear_refs").exists():
        pytest.skip("Linux alone forgets a process's largest resident set")
    file = tmp_path / "x.json"
    done = run("-m", f"benchmarks.{words[0]}", *words[1:], "--rivals", "numpy", "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    found = report.read([file])
    assert report.usual_name(found) == words[0]
    assert done.stdout == report.text(found) + "\n"
    assert {row["kind"].split(",")[0] for row in found["results"]} >= {OURS, "numpy"}
    assert found["command"] == f"python -m benchmarks.{words[0]} {' '.join(words[1:])} --rivals numpy"


@pytest.mark.parametrize(("words", "says"), [
    (["compare", "--rounds", "0"], "must be at least 1; got 0"),
    (["compare", "--seconds", "nan"], "must be a positive number; got nan"),
    (["accuracy", "--keys", "0"], "must be at least 1; got 0"),
    (["memory", "--rivals", "nobody"], "no such rival: nobody; there are fastattn, numpy"),
])
def test_what_cannot_be_measured_is_refused(words, says):
    done = run("-m", f"benchmarks.{words[0]}", *words[1:])
    assert done.returncode
    assert says in done.stderr
