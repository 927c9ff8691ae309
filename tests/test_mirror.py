"""The reference has the library's names and arguments, so that either can be put where the other is."""

import inspect

import pytest

import fastattn
import reference

FUNCTIONS = ["attention", "attention_varlen", "merge_states", "lengths", "packed", "prefix", "window"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_reference_takes_the_same_arguments(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (fastattn, reference))
    # out and threads say where and with how many hands, not what: a formula has no such thing.
    wanted = [(p.name, p.default) for p in ours.values() if p.name not in ("out", "threads")]
    assert [(p.name, p.default) for p in theirs.values()] == wanted


def test_every_mask_is_in_both():
    for name in ("causal", "causal_top_left"):
        assert hasattr(getattr(fastattn, name), "materialize")
        assert hasattr(getattr(reference, name), "materialize")
