"""How a word gets to know of another, measured: python -m benchmarks.information

    steps         One word of the text is changed. After how many steps that must wait for each other, from the one that reads it
                  on, has the state of another word changed? Asked of the layers that run in the race, with random weights.
    sensitivity   How much does the last word's state change with a word so many words before it? Root mean square of the
                  derivatives of all its numbers by all numbers of that word, from finite differences of the references in
                  float64.

A step is what cannot be done before another is: a recurrent network's next word, one layer of attention. What is known after n
steps of a network is found by letting it read n words and no more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

import reference
from fastattn import SelfAttention, causal
from reference import rnn as formulas

from .rnn import Recurrent, Weights

TEXT = ("I", "love", "Apple", "phones")
D_MODEL, HEADS = 64, 4
DISTANCES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
# Of central differences in float64: rounding 1e-16 / STEP, and the third derivative times STEP² beside the first.
STEP, FLOOR = 1e-4, 1e-11

Layer = Callable[[NDArray], NDArray]                # x (S, D_MODEL) -> the words' states (S, n)


# ---- steps -------------------------------------------------------------------------------------------------------------
def at_once(layer: Layer, x: NDArray) -> Iterator[NDArray]:
    """What is known after each step: everything after the first."""
    yield layer(x)


def one_by_one(layer: Layer, x: NDArray) -> Iterator[NDArray]:
    """... after n steps the states of the first n words; NaN: not known yet."""
    for n in range(1, len(x) + 1):
        y = layer(x[:n])
        yield np.pad(y, [(0, len(x) - n), (0, 0)], constant_values=np.nan)


def from_both_ends(layer: Layer, x: NDArray) -> Iterator[NDArray]:
    """... half the states of the first n words, the other half of the last n."""
    for n in range(1, len(x) + 1):
        y = np.full((len(x), 2 * D_MODEL), np.nan)
        y[:n, :D_MODEL] = layer(x[:n])[:, :D_MODEL]
        y[-n:, D_MODEL:] = layer(x[-n:])[:, D_MODEL:]
        yield y


Way = tuple[Callable[[Layer, NDArray], Iterator[NDArray]], Layer]


def ways(seed: int = 0) -> dict[str, Way]:
    """How each layer comes to know what it knows."""
    attention = SelfAttention.random(D_MODEL, HEADS, seed)
    found: dict[str, Way] = {"attention": (at_once, attention), "causal": (at_once, functools.partial(attention, mask=causal))}
    for kind in ("elman", "gru", "lstm"):
        found[kind] = one_by_one, Recurrent.random(kind, D_MODEL, seed=seed)
    return found | {"bidirectional lstm": (from_both_ends, Recurrent.random("lstm", D_MODEL, 2, seed))}


def steps(way: Way, S: int, source: int, target: int, seed: int = 0) -> int | None:
    """From the step that reads word `source` on, that one included, until word `target` has changed with it; None: never."""
    known, layer = way
    x = np.random.default_rng(seed).standard_normal((S, D_MODEL), dtype=np.float32)
    other = x.copy()
    other[source] = np.random.default_rng(seed + 1).standard_normal(D_MODEL, dtype=np.float32)
    read = None
    for n, (y, z) in enumerate(zip(known(layer, x), known(layer, other), strict=True)):
        changed = np.any((y != z) & ~np.isnan(y), axis=1)
        if read is None and changed.any():
            read = n
        if changed[target]:
            return n - read + 1
    return None


# ---- sensitivity -------------------------------------------------------------------------------------------------------
def keeping(weights: Weights, bias: float) -> Weights:
    """An LSTM whose forget gates are open: this is added to what they are made of."""
    b_x = weights.b_x.copy()
    H = len(weights.w_h)
    b_x[H:2 * H] += bias
    return weights._replace(b_x=b_x)


def formulas_of(seed: int = 0) -> dict[str, Layer]:
    """Layers in float64."""
    elman, gru, lstm = (Weights.random(kind, D_MODEL, D_MODEL, seed) for kind in ("elman", "gru", "lstm"))
    return {
        "attention": reference.SelfAttention.random(D_MODEL, HEADS, seed),
        "elman": lambda x: formulas.elman(x, *elman),
        "gru": lambda x: formulas.gru(x, *gru),
        "lstm": lambda x: formulas.lstm(x, *lstm),
        "lstm that keeps": lambda x: formulas.lstm(x, *keeping(lstm, 3.0)),
    }


def sensitivity(layer: Layer, x: NDArray, distance: int, directions: int = 8, seed: int = 0) -> float:
    """RMS over the last word's numbers and random directions of the derivative by the word `distance` before it."""
    rng, squares = np.random.default_rng(seed), []
    for _ in range(directions):
        change = np.zeros_like(x)
        direction = rng.standard_normal(x.shape[1])
        change[-1 - distance] = STEP * direction / np.linalg.norm(direction)
        squares.append(np.mean(((layer(x + change)[-1] - layer(x - change)[-1]) / (2 * STEP)) ** 2))
    return float(np.sqrt(np.mean(squares)))


# ---- as tables ---------------------------------------------------------------------------------------------------------
def steps_table() -> Iterator[str]:
    questions = [("phones -> Apple", 4, 3, 2), ("Apple -> phones", 4, 2, 3), ("last -> first of 32", 32, 31, 0),
                 ("first -> last of 32", 32, 0, 31)]
    yield "steps until it has arrived".ljust(26) + "".join(f"{name:>21}" for name, *_ in questions)
    for kind, way in ways().items():
        found = [steps(way, S, source, target) for _, S, source, target in questions]
        yield f"{kind:<26}" + "".join(f"{'never' if n is None else n:>21}" for n in found)


def sensitivity_table() -> Iterator[str]:
    x = np.random.default_rng(0).standard_normal((DISTANCES[-1] + 1, D_MODEL))
    yield "sensitivity, words before".ljust(26) + "".join(f"{n:>9}" for n in DISTANCES)
    for kind, layer in formulas_of().items():
        found = [sensitivity(layer, x, n) for n in DISTANCES]
        yield f"{kind:<26}" + "".join(f"{f'{s:.1e}' if s > FLOOR else '< 1e-11':>9}" for s in found)


def main() -> None:
    for line in (*steps_table(), "", *sensitivity_table()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
