"""The race itself: that its work is counted right, that it is fair, and that what it says follows from the figures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from . import racers, sequence
from .cases import CAUSAL, CELLS, D_MODEL, HEADS, KINDS, SIGHTS, TORCH, WINDOW, WORD_BY_WORD, Race, recurrent
from .rivals import Way
from .sequence import compared, verdicts


# ---- work --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("S", [1, 5, 300])
def test_work_is_products_with_weights_and_pairs_that_are_seen(S, batch):
    product, pair = 2 * D_MODEL * D_MODEL, 4 * D_MODEL           # a word times a matrix; a word looks at another, all heads
    pairs = {"attention": S * S, "causal": S * (S + 1) // 2, WORD_BY_WORD: S * (S + 1) // 2,
             "window 256": sum(min(i + 1, 256) for i in range(S))}
    matrices = {"elman": 2, "torch rnn": 2, "gru": 6, "torch gru": 6, "lstm": 8, "torch lstm": 8, "bidirectional lstm": 16,
                "torch bidirectional lstm": 16}
    assert {kind: Race(kind, S, batch).flops for kind in KINDS} == {
        kind: batch * (4 * S * product + pairs[kind] * pair if kind in pairs else S * matrices[kind] * product) for kind in KINDS}


def test_kinds_are_the_layers_that_they_say():
    assert {kind: recurrent(kind) for kind in (*CELLS, *TORCH)} == {
        "elman": ("elman", 1), "gru": ("gru", 1), "lstm": ("lstm", 1), "bidirectional lstm": ("lstm", 2),
        "torch rnn": ("elman", 1), "torch gru": ("gru", 1), "torch lstm": ("lstm", 1), "torch bidirectional lstm": ("lstm", 2)}
    assert SIGHTS["causal"] == CAUSAL
    assert SIGHTS["window 256"] == WINDOW
    assert [tuple(racers.mask("window 256").materialize(300, 300).sum(axis=1)[[0, 255, 299]])] == [(1, 256, 256)]
    assert D_MODEL % HEADS == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in TORCH])
def test_layers_see_what_they_say_in_long_texts(kind):
    # Longer than the window: with another one the answer would be another.
    race = Race(kind, 300, 1)
    x = race.words()
    racer = racers.way(race, x, 1)
    assert np.abs(racer.read(racer.run()) - racers.right(kind, x)).max() < racers.ERROR_LIMIT


# ---- the run -----------------------------------------------------------------------------------------------------------
class Track:
    """Layers that only pretend to work: {kind: seconds a FLOP}; and what they did."""

    def __init__(self, monkeypatch, speeds, wrong=(), stop=None):
        self.now, self.calls, self.stop = 0.0, [], stop
        monkeypatch.setattr("time.perf_counter", lambda: self.now)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.setattr(racers, "way", lambda race, x, threads: Way(race.kind, lambda: self.call(race), lambda y: y))
        monkeypatch.setattr(racers, "right", lambda kind, x: 1.0 if kind in wrong else 0.0)
        self.speeds = speeds

    def call(self, race):
        if len(self.calls) == self.stop:
            raise KeyboardInterrupt
        self.calls.append((race.kind, race.S))
        self.now += race.flops * self.speeds[race.kind]
        return np.zeros(1)

    def run(self, lengths=(16, 64), rounds=3, seconds=1.0, limit=10.0, threads=1):
        self.shown, self.lengths = [], lengths
        result = {"machine": {"threads": threads}, "rounds": rounds, "seconds": seconds, "limit": limit, "interrupted": None,
                  "left_out": {}, "results": []}
        sequence.race(result, list(self.speeds), list(lengths), [1], self.shown.append)
        return result


FAST, USUAL = 1e-12, 1e-11      # seconds a FLOP


def test_everybody_runs_every_length_and_results_are_what_was_timed(monkeypatch):
    track = Track(monkeypatch, {"attention": FAST, "elman": USUAL})
    result = track.run()
    assert [(row["kind"], row["S"]) for row in result["results"]] == [
        ("attention", 16), ("elman", 16), ("attention", 64), ("elman", 64)]
    for row in result["results"]:
        assert row["flops"] == Race(row["kind"], row["S"], 1).flops
        assert row["seconds_min"] == pytest.approx(row["flops"] * track.speeds[row["kind"]])
        assert row["seconds_median"] == pytest.approx(row["seconds_min"])
        assert (row["batch"], row["threads"]) == (1, 1)
    assert [row for new in track.shown for row in new] == result["results"]


def test_each_round_begins_with_another_one(monkeypatch):
    track = Track(monkeypatch, {"elman": 1e-8, "gru": 1e-8 / 3, "lstm": 1e-8 / 4})      # all take as long
    track.run(lengths=(16,), seconds=1.35)         # a call of 0.17 s is more than a turn of 0.15
    turns = [kind for kind, _ in track.calls[6:]]               # after one call to check and one to compile
    firsts = [turns[i] for i in range(len(turns)) if i == 0 or turns[i] != turns[i - 1]]
    assert firsts[:9] == ["elman", "gru", "lstm", "gru", "lstm", "elman", "lstm", "elman", "gru"]


def test_who_is_slow_has_fewer_turns_but_some(monkeypatch):
    # 64 words of these take 0.0007, 0.8 and 27 s.
    track = Track(monkeypatch, {"elman": 1e-11, "gru": 4e-9, "lstm": 1e-7})
    calls = {row["kind"]: row["calls"] for row in track.run(lengths=(64,), rounds=5, seconds=1.0, limit=100.0)["results"]}
    assert calls["lstm"] == 1
    assert calls["gru"] == 3
    assert calls["elman"] > 100


def test_what_would_take_too_long_is_left_out_and_said_to_be(monkeypatch):
    # 64 words take 0.067 s, 4096 words 4.3 s; and the estimate is by work: attention's grows with the square.
    track = Track(monkeypatch, {"elman": 1e-9, "attention": 1e-10})
    result = track.run(lengths=(64, 1024, 4096), limit=2.0)
    assert [row["S"] for row in result["results"] if row["kind"] == "elman"] == [64, 1024]
    assert result["left_out"] == {"elman, 4,096 words": "about 4 s a call, more than 2",
                                  "attention, 4,096 words": "about 4 s a call, more than 2"}
    assert ("elman", 4096) not in track.calls


def test_who_is_wrong_is_left_out_and_stops_nobody(monkeypatch):
    track = Track(monkeypatch, {"elman": FAST, "lstm": FAST}, wrong=("elman",))
    result = track.run()
    assert {row["kind"] for row in result["results"]} == {"lstm"}
    assert result["left_out"] == {"elman, 16 words": "wrong by 1.0e+00", "elman, 64 words": "wrong by 1.0e+00"}


def test_who_cannot_run_is_left_out_with_its_reason(monkeypatch):
    track = Track(monkeypatch, {"elman": FAST, "lstm": FAST})
    whole = racers.way

    def broken(race, x, threads):
        if race.kind == "elman":
            raise RuntimeError("no memory\nand more")
        return whole(race, x, threads)

    monkeypatch.setattr(racers, "way", broken)
    assert track.run(lengths=(16,))["left_out"] == {"elman, 16 words": "RuntimeError: no memory"}


@pytest.mark.parametrize("stop", range(1, 40, 3))
def test_ctrl_c_keeps_what_has_been_measured(monkeypatch, stop):
    track = Track(monkeypatch, {"elman": USUAL, "gru": USUAL}, stop=stop)
    result = track.run(seconds=1e-2)
    assert result["interrupted"] in ("16 words", "64 words")
    timed = track.calls[2:]                                     # after the check
    for row in result["results"]:
        assert 1 <= row["calls"] <= sum(call == (row["kind"], row["S"]) for call in timed)
    if result["interrupted"] == "64 words":
        assert {(row["kind"], row["S"]) for row in result["results"]} >= {("elman", 16), ("gru", 16)}


# ---- what it says ------------------------------------------------------------------------------------------------------
def test_wins_and_losses_are_both_said():
    assert compared({16: 1.0, 64: 1.0}, {16: 2.0, 64: 3.0}) == "2.00 to 3.00 times as fast, 16 to 64 words: ahead at every length"
    assert compared({16: 1.0, 64: 1.0}, {16: 0.5, 64: 3.0}) == "0.50 to 3.00 times as fast, 16 to 64 words: BEHIND at 16"
    assert "BEHIND at 64" in compared({16: 1.0, 64: 1.001}, {16: 2.0, 64: 1.0})        # however small


def test_verdicts_compare_only_what_ran_alike():
    rows = [{"kind": kind, "S": S, "batch": batch, "threads": 1, "seconds_min": t} for kind, S, batch, t in (
        ("attention", 16, 1, 1.0), ("lstm", 16, 1, 2.0), ("attention", 64, 1, 8.0), ("lstm", 64, 1, 4.0),
        ("attention", 16, 16, 1.0), ("lstm", 64, 16, 1.0))]
    said = list(verdicts(rows))
    assert said[0] == "batch 1, 1 core"
    assert "0.50 to 2.00 times as fast, 16 to 64 words: BEHIND at 64; as fast at about 32" in said[1]
    assert said[2:] == ["batch 16, 1 core"]


def test_times_are_shown_in_three_digits():
    assert [sequence._milliseconds(t) for t in (1.23456, 0.123456, 0.0123456, 0.00123456, 1.23456e-5)] == [
        "1235", "123", "12.3", "1.23", "0.0123"]


def test_the_race_runs_and_writes_what_the_report_reads(tmp_path):
    file, root = tmp_path / "race.json", Path(__file__).parent.parent
    run = [sys.executable, "-m", "benchmarks.sequence", "--kinds", "window 256", "elman", "--words", "16", "--batch", "1",
           "--rounds", "2", "--seconds", "0.02", "--json", str(file)]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, check=True)
    assert "times as fast" in done.stdout
    result = json.loads(file.read_text())
    assert [row["kind"] for row in result["results"]] == ["window 256", "elman"]
    assert result["command"] == ("python -m benchmarks.sequence --kinds 'window 256' elman --words 16 --batch 1 --rounds 2 "
                                 "--seconds 0.02")
    assert result["machine"]["threads"] == 1
    assert result["versions"].keys() == {"fastattn", "numpy", "torch"}


@pytest.mark.parametrize("wrong", [["--words", "0"], ["--threads", "0"], ["--limit", "0"], ["--kinds", "transformer"]])
def test_what_cannot_be_asked_is_refused(wrong):
    run, root = [sys.executable, "-m", "benchmarks.sequence", *wrong], Path(__file__).parent.parent
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "positive" in done.stderr or "no such layer here: transformer; there are attention, " in done.stderr
