"""How far a word's influence reaches, and what the measurement itself is worth."""

import itertools

import numpy as np
import numpy.testing as npt
import pytest

from . import information
from .information import D_MODEL, FLOOR, formulas_of, sensitivity, steps, ways

S = 5
PAIRS = list(itertools.product(range(S), repeat=2))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_steps_from_each_word_to_each_other(source, target):
    found = {kind: steps(way, S, source, target) for kind, way in ways().items()}
    forward = target - source + 1 if target >= source else None
    # Each direction reads a word in its own step, and the first of the two counts.
    arrivals = [target] * (target >= source) + [S - 1 - target] * (target <= source)
    both = min(arrivals) - min(source, S - 1 - source) + 1
    assert found == {"attention": 1, "causal": 1 if target >= source else None, "elman": forward, "gru": forward,
                     "lstm": forward, "bidirectional lstm": both}


def test_nothing_comes_from_a_later_word_to_an_earlier_one_but_through_attention_or_the_second_direction():
    phones, apple = 3, 2
    found = {kind: steps(way, 4, phones, apple) for kind, way in ways().items()}
    assert {kind for kind, n in found.items() if n is None} == {"causal", "elman", "gru", "lstm"}
    assert found["attention"] == 1
    assert found["bidirectional lstm"] == 2


def test_sensitivity_of_a_matrix_is_its_size():
    x = np.zeros((3, 8))
    assert sensitivity(lambda x: 5 * x, x, 0) == pytest.approx(5 / np.sqrt(8), rel=1e-9)
    assert sensitivity(lambda x: 5 * x, x, 1) == 0
    assert sensitivity(lambda x: np.roll(5 * x, 2, axis=0), x, 2) == pytest.approx(5 / np.sqrt(8), rel=1e-9)


def test_attention_feels_the_first_word_as_the_last_and_a_network_that_starts_at_random_does_not():
    x = np.random.default_rng(0).standard_normal((65, D_MODEL))
    near, far = ({kind: sensitivity(layer, x, n) for kind, layer in formulas_of().items()} for n in (1, 64))
    # The average word has a share of 1 / 65 in the mix, at any distance; one word's may be several times that, or a fraction.
    assert 0.1 < far["attention"] / near["attention"] < 10
    for kind in ("elman", "gru", "lstm"):
        assert far[kind] < FLOOR < 1e-3 * near[kind]
    # It is not that an LSTM cannot: with open forget gates it keeps what it has read.
    assert far["lstm that keeps"] > 0.1 * near["lstm that keeps"]


def test_the_tables_say_what_was_found(capsys, monkeypatch):
    monkeypatch.setattr(information, "DISTANCES", (0, 1))
    information.main()
    lines = {line[:26].strip(): line[26:].split() for line in capsys.readouterr().out.splitlines() if line}
    assert lines["bidirectional lstm"] == ["2", "3", "32", "32"]
    assert lines["lstm"][-1] != "never"                     # its second line, of sensitivities
    assert "never" not in lines["attention"]
    npt.assert_array_less(0, [float(x) for x in lines["lstm that keeps"]])
