"""The reference has the library's names and arguments, so that either can be put where the other is."""

import inspect

import numpy as np
import numpy.testing as npt
import pytest

import fastattn
import reference

# They say how, where and with how many hands, not what: a formula has no such thing.
HOW = {"__version__", "cache_info", "compile", "threads"}
HOW_ARGUMENTS = ("out", "threads")

MEANING = sorted(set(fastattn.__all__) - HOW)
FUNCTIONS = [name for name in MEANING if callable(getattr(fastattn, name))]
MASKS = [name for name in MEANING if name not in FUNCTIONS]


def arguments(function):
    """Name, kind and default of each argument that says what is computed."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters if p.name not in HOW_ARGUMENTS]


def test_the_reference_has_every_name_and_two_of_its_own():
    assert set(reference.__all__) == {*MEANING, "attention_by_loops", "picture"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_reference_takes_the_same_arguments(name):
    assert arguments(getattr(reference, name)) == arguments(getattr(fastattn, name))


METHODS = [(kind, method) for kind in ("SelfAttention", "CrossAttention") for method in ("__init__", "__call__", "project", "random")]
METHODS += [("rope", "__init__"), ("rope", "__call__")]


@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_methods_of_the_references_classes_do_too(kind, method):
    ours, theirs = (getattr(getattr(module, kind), method) for module in (fastattn, reference))
    assert arguments(theirs) == arguments(ours)


def test_loops_take_the_same_arguments_too():
    assert arguments(reference.attention_by_loops) == arguments(fastattn.attention)


def test_other_arguments_are_not_the_same():
    def renamed(q, k, values, *, mask=None): ...
    def by_place(q, k, v, mask=None): ...
    def by_default(q, k, v, *, mask=True): ...
    def longer(q, k, v, *, mask=None, bias=None): ...
    def threaded(q, k, v, *, mask=None, out=None, threads=None): ...
    def plain(q, k, v, *, mask=None): ...

    for other in (renamed, by_place, by_default, longer):
        assert arguments(other) != arguments(plain)
    assert arguments(threaded) == arguments(plain)


def test_results_come_in_the_same_form():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 4, 3))
    for module in (fastattn, reference):
        o = module.attention(q, k, v)
        states = module.attention(q, k, v, return_lse=True)
        assert type(states) is tuple
        merged = module.merge_states(*zip(states, states, strict=True))
        packed = module.attention_varlen(q, k, v, [0, 2], [0, 2], return_lse=True)
        assert o.shape == states[0].shape == merged[0].shape == packed[0].shape == q.shape
        assert states[1].shape == merged[1].shape == packed[1].shape == q.shape[:2]


@pytest.mark.parametrize("name", MASKS)
def test_masks_join_and_materialize_in_both(name):
    some = np.random.default_rng(0).random((3, 4)) < 0.5
    ours, theirs = ((getattr(module, name) & some & module.window(1)).materialize(3, 4)
                    for module in (fastattn, reference))
    assert ours.dtype == theirs.dtype == bool
    npt.assert_array_equal(ours, theirs)
