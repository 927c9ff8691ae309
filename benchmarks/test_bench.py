"""`fastattn bench`: what it says of figures, that it ends in time, and that a wheel has all that it needs."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib

import pytest

from fastattn import cli

from . import bench, report
from .cases import named
from .test_compare import made
from .test_compare import result as compared
from .test_report import ROOT

# The program on the smallest case and text, in place of those that take two minutes.
SMALL = "from benchmarks import bench; bench.CASES, bench.WORDS = ['least', 'sentence'], [16]; bench.main()"


# ---- in words ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("rivals", "said"), [
    ({"torch": 0.0021, "numpy": 0.0034, "onnxruntime": 0.0009}, "3.40x numpy, 2.10x torch; lost to onnxruntime 0.90x"),
    ({"torch": 0.034}, "34x torch"),
    ({"torch": 0.0009999}, "lost to torch 1.000x"),         # a loss however small is one
    ({"torch": 0.001}, "1.00x torch"),
    ({}, "nobody to compare with"),
])
def test_a_verdict_names_wins_and_losses(rivals, said):
    assert bench.verdict(made(0.001, rivals)) == said


def test_who_gave_no_result_is_said():
    row = made(0.001, {"jax": 0.003})
    row["contenders"]["torch"] = {"failed": "wrong by 1"}
    assert bench.verdict(row) == "3.00x jax"
    assert "s512: torch gave no result: wrong by 1" in list(bench.summary(compared(row)))
    row["contenders"][report.OURS] = {"failed": "wrong by 2"}
    assert bench.verdict(row) == "no result: wrong by 2"
    assert "no result" in bench.line(row)


def test_the_summary_counts_every_loss_and_names_who_was_not_there():
    rows = made(0.001, {"torch": 0.002, "jax": 0.008}), made(0.001, {"torch": 0.0005, "jax": 0.002}, name="lost")
    says = list(bench.summary(compared(*rows)))
    assert says == ["Geometric mean of 2 cases: 1.00x the fastest rival of each; 1.00x torch, 4.00x jax.",
                    "Lost to the fastest rival: 1 of 2: lost.",
                    "Not installed, so not compared: openvino. For all of them: pip install torch 'fastattn[bench]'"]


def test_cases_and_kinds_are_there():
    from .racers import installed

    assert len(named(bench.CASES)) == len(bench.CASES) == 10
    assert set(bench.RACERS) - {"torch lstm"} <= set(installed())


# ---- in time -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ready", [0.0, 1.0, 5.0])
def test_all_cases_end_in_time(monkeypatch, ready):
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    budget = bench.Budget(100)
    for left in range(10, 0, -1):
        now[0] += budget(left) + ready
    # What the first case takes to get ready is a guess; all is made good by those behind it.
    assert now[0] == pytest.approx(100, rel=0.06)


def test_who_is_late_still_measures(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    budget = bench.Budget(10)
    now[0] = 1000.0
    assert [budget(1), budget(1)] == [bench.LEAST] * 2


# ---- the command -------------------------------------------------------------------------------------------------------
def needed(name, found):
    """The files of benchmarks/ that one imports, and those that they do."""
    if name not in found:
        found.add(name)
        for node in ast.walk(ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                for inner in [node.module] if node.module else [alias.name for alias in node.names]:
                    needed(inner, found)
    return found


def forced():
    """What pyproject.toml puts into a wheel besides the package: {from: to}."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]


def test_a_wheel_has_what_bench_imports():
    # Charts are drawn by report, which bench asks for words alone.
    wanted = {f"benchmarks/{name}.py" for name in needed("bench", {"__init__"}) - {"charts"}}
    assert set(forced()) == {*wanted, "reference"}
    assert all(to == f"fastattn/bench/{came}" for came, to in forced().items())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A directory with fastattn as a wheel installs it, and nothing else."""
    place = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastattn", place / "fastattn", ignore=ignored)
    for came, to in forced().items():
        (place / to).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / came).is_dir():
            shutil.copytree(ROOT / came, place / to, ignore=ignored)
        else:
            shutil.copy(ROOT / came, place / to)
    return place


def asked(place, *words, cwd, **options):
    """`fastattn ...` of the package in that place, asked from a directory in which another thing is called benchmarks."""
    (cwd / "benchmarks.py").write_text("raise RuntimeError('not this one')")
    return subprocess.run([sys.executable, "-P", "-m", "fastattn", *words], cwd=cwd, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(place)}, **options)


@pytest.mark.parametrize("installed", [True, False])
def test_the_command_finds_the_program_in_a_wheel_and_in_a_checkout(installed, request, tmp_path):
    place = request.getfixturevalue("wheel") if installed else ROOT
    done = asked(place, "bench", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: fastattn bench")
    assert "--seconds" in done.stdout
    refused = asked(place, "bench", "--seconds", "0", cwd=tmp_path)
    assert refused.returncode == 2
    assert "must be a positive number; got 0" in refused.stderr


def test_a_wheel_measures_and_writes_what_report_reads(wheel, tmp_path):
    file = tmp_path / "x.json"
    done = subprocess.run([sys.executable, "-P", "-c", SMALL, "--seconds", "2", "--json", str(file)], cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": f"{wheel / 'fastattn' / 'bench'}{os.pathsep}{wheel}"},
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for said in ("least       1, 1, 8, 64", "x numpy", "Geometric mean of 2 cases", "Lost to the fastest rival", "attention ",
                 "16 words", "x lstm"):
        assert said in done.stdout
    found = json.loads(file.read_text())
    assert [row["name"] for row in found["cases"]] == ["sentence", "least"]
    assert {row["kind"] for row in found["results"]} >= {"attention", "window 256", "lstm"}
    assert "| 1, 1, 8, 64 | none |" in report.table(report.read([file]))


def test_without_the_program_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "fastattn" / "cli.py"))
    assert cli.main(["bench"]) == 2
    assert "fastattn bench: benchmarks/bench.py is neither in" in capsys.readouterr().err


def test_ctrl_c_is_the_programs_to_answer(monkeypatch):
    """The command waits for what the program prints then, and ends with its code."""
    ended = []

    class Program:
        def __init__(self, command, env):
            assert command[:4] == [sys.executable, "-P", "-m", "benchmarks.bench"]
            assert command[4:] == ["--seconds", "9"]

        def wait(self):
            os.kill(os.getpid(), signal.SIGINT)
            ended.append(130)                           # nothing is raised here
            return 130

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(cli.subprocess, "Popen", Program)
    assert [cli.main(["bench", "--seconds", "9"])] == ended == [130]
    assert signal.getsignal(signal.SIGINT) is before


def test_other_commands_take_no_other_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["info", "--seconds", "9"])
    assert "unrecognized arguments: --seconds 9" in capsys.readouterr().err
