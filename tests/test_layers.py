"""Layers are the reference's five steps with weights, wherever the numbers lie."""


import numpy as np
import numpy.testing as npt
import pytest

import reference
from fastattn import SelfAttention

EPS = {"f4": 2.0**-24, "f8": 2.0**-53}
# Sums of d_model products of numbers near 1 / sqrt(d_model) four times in a row: each errs by some units of the largest term.
UNITS = 64


def numbers(shape, dtype="f4", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(ours, theirs, dtype="f4"):
    npt.assert_allclose(ours, theirs, rtol=0, atol=UNITS * EPS[dtype] * np.abs(theirs).max(initial=1))


def weights(d_model=24, heads=4, kv_heads=4, D=6, Dv=6, d_out=20, n=None, dtype="f4"):
    """Arguments of a layer, with biases; n: numbers of a word that keys and values come from."""
    n = d_model if n is None else n
    sizes = {"q": (d_model, heads * D), "k": (n, kv_heads * D), "v": (n, kv_heads * Dv), "o": (heads * Dv, d_out)}
    found = {}
    for seed, (x, size) in enumerate(sizes.items()):
        found[f"w_{x}"] = numbers(size, dtype, seed) / np.sqrt(np.array(size[0], dtype))
        found[f"b_{x}"] = numbers(size[1], dtype, seed + 10)
    return found | {"heads": heads, "kv_heads": kv_heads}


SHAPES = [
    {},
    {"kv_heads": 1},
    {"kv_heads": 2, "Dv": 5},
    {"heads": 1, "kv_heads": 1, "D": 1, "Dv": 1},
    {"heads": 2, "kv_heads": 2, "D": 64, "Dv": 64, "d_model": 128, "d_out": 128},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("words", [(7, ), (3, 7), (1, 1), (2, 0), (0, 3)])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_self_attention_is_the_references(shape, words, dtype):
    w = weights(**shape, dtype=dtype)
    x = numbers((*words, len(w["w_q"])), dtype, 5)
    ours, theirs = SelfAttention(**w), reference.SelfAttention(**w)
    for mine, wanted in zip(ours.project(x), theirs.project(x), strict=True):
        assert mine.shape == wanted.shape
        close(mine, wanted, dtype)
    y = ours(x)
    assert y.dtype == dtype
    assert y.shape == (*words, w["w_o"].shape[1])
    close(y, theirs(x), dtype)
