"""A real model on fastattn's layers gives the states that it has in torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest

from benchmarks import minilm

pytestmark = pytest.mark.skipif(minilm.missing() is not None, reason=f"needs more: {minilm.missing()}")

# What the layers may differ by in float32, from torch too, on states of size 1; measured 2e-6.
LIMIT = 5e-6
TEXTS = [*minilm.STORY, "x", "a longer text, " * 40]


@pytest.fixture(scope="module")
def encoders():
    return minilm.encoders()


@pytest.fixture(scope="module")
def batch():
    return minilm.Batch(TEXTS)


@pytest.fixture(scope="module")
def states(encoders, batch):
    return encoders["fastattn"].states(batch)


def test_the_batch_is_padded(batch):
    assert len(set(batch.counts)) > 3
    assert batch.counts.max() == batch.real.shape[1]
    assert (batch.ids[~batch.real] == 0).all()


def test_states_are_torchs(encoders, batch, states):
    if "torch" not in encoders:
        pytest.skip("needs torch and transformers")
    assert np.abs(states - encoders["torch"].states(batch))[batch.real].max() <= LIMIT


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_layers_alone_are_the_others_too(encoders, batch, states, name):
    if name not in encoders:
        pytest.skip("needs torch and transformers")
    ours, theirs = (encoders[way].attention(batch, states) for way in ("fastattn", name))
    assert len(ours) == len(theirs) == 6
    for mine, wanted in zip(ours, theirs, strict=True):
        assert np.abs(mine - wanted)[batch.real].max() <= LIMIT
        assert np.abs(mine).max() > 0.5


def test_plain_numpy_gives_the_same_states(encoders, batch, states):
    assert np.abs(states - encoders["numpy"].states(batch))[batch.real].max() <= LIMIT


def test_padding_changes_nothing(encoders, states):
    for n, text in enumerate(TEXTS):
        alone = encoders["fastattn"].states(minilm.Batch([text]))[0]
        npt.assert_allclose(states[n, :len(alone)], alone, rtol=0, atol=LIMIT)


def test_what_is_alike_in_meaning_is_close(encoders):
    batch = minilm.Batch(list(minilm.STORY))
    vectors = batch.vectors(encoders["fastattn"].states(batch))
    npt.assert_allclose((vectors**2).sum(1), 1, rtol=1e-6)
    similar = vectors @ vectors.T
    assert similar[0].argsort()[-2] == 1                # phones are close to phones
    assert similar[2].argsort()[-2] == 3                # what is eaten to fruit
    assert similar[4].argsort()[-2] == 5                # and banks share a word


def test_a_quick_run_says_what_took_how_long():
    command = ["-W", "error", "-m", "benchmarks.minilm", "--seconds", "0.01", "--longest", "16", "one text", "another"]
    run = subprocess.run([sys.executable, *command], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "one text" in run.stdout
    assert run.stdout.count("fastattn ") == 6
