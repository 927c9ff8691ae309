"""Who runs in the race: attention layers, recurrent networks, ours and torch's, each as one call on the words of a `Race`.

Layers of a sort have the same weights, so that one reference in float64 says what is right for all of them. What is not timed:
making weights, packing them, handing over arrays. What is timed: one call, its result in memory of its own.

    attention, causal, window 256      fastattn.SelfAttention
    word by word                       what "causal" computes, in a loop of NumPy calls: word_by_word.py
    elman, gru, lstm, bidirectional    rnn.py
    torch ...                          nn.RNN, nn.GRU, nn.LSTM, batch_first, eval, inference_mode
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import reference
from fastattn import SelfAttention
from reference import rnn as formulas

from .cases import D_MODEL, HEADS, KINDS, SIGHTS, TORCH, WORD_BY_WORD, Race, recurrent
from .rivals import Way
from .rnn import Recurrent, Weights
from .word_by_word import WordByWord


@functools.cache
def projections() -> tuple[NDArray, ...]:
    """w_q, w_k, w_v, w_o, normal, of variance 1 / D_MODEL."""
    rng = np.random.default_rng(1)
    return tuple(rng.standard_normal((D_MODEL, D_MODEL), dtype=np.float32) / np.float32(np.sqrt(D_MODEL)) for _ in range(4))


@functools.cache
def weights(cell: str, directions: int) -> tuple[Weights, ...]:
    return tuple(Weights.random(cell, D_MODEL, D_MODEL, seed) for seed in range(directions))


# ---- one of each -------------------------------------------------------------------------------------------------------
@functools.cache
def layer(kind: str, threads: int) -> Callable[[NDArray], Any]:
    """What is called with x (B, S, D_MODEL). The very same for every length, as it keeps memory between calls."""
    if kind in SIGHTS:
        return functools.partial(SelfAttention(*projections(), heads=HEADS), mask=mask(kind), threads=threads)
    if kind == WORD_BY_WORD:
        return WordByWord(*projections(), heads=HEADS)
    cell, directions = recurrent(kind)
    if kind in TORCH:
        return torch_module(cell, weights(cell, directions))
    return functools.partial(Recurrent(cell, *weights(cell, directions)), threads=threads)


def mask(kind: str) -> Any:
    """What each word sees, in fastattn's words."""
    from fastattn import causal, window

    sight = SIGHTS[kind]
    return causal & window(sight.before) if sight.before is not None else causal if sight.causal else None


def torch_module(cell: str, directions: tuple[Weights, ...]) -> Any:
    """torch's layer with these weights: transposed, and those of the second direction called _reverse."""
    import torch

    kind = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    d, H = len(directions[0].w_x), len(directions[0].w_h)
    module = kind(d, H, batch_first=True, bidirectional=len(directions) == 2).eval()
    with torch.no_grad():
        for w, suffix in zip(directions, ("_l0", "_l0_reverse"), strict=False):
            for name, x in (("weight_ih", w.w_x.T), ("weight_hh", w.w_h.T), ("bias_ih", w.b_x), ("bias_hh", w.b_h)):
                getattr(module, name + suffix).copy_(torch.from_numpy(np.ascontiguousarray(x)))
    return module


def way(race: Race, x: NDArray, threads: int) -> Way:
    """The layer on these words."""
    run = layer(race.kind, threads)
    if race.kind not in TORCH:
        return Way(race.kind, lambda: run(x))
    import torch

    torch.set_num_threads(threads)
    text = torch.from_numpy(x)

    def inferred():
        with torch.inference_mode():
            return run(text)[0]

    return Way(race.kind, inferred, lambda y: y.numpy())


# ---- what is right -----------------------------------------------------------------------------------------------------
# Of 512 products of numbers of about 1, summed up in float32, and states passed on: 1e-6 to 1e-5. In bfloat16 it is 1e-2.
ERROR_LIMIT = 1e-4


def right(kind: str, x: NDArray) -> NDArray[np.float64]:
    """The reference's answer. It takes seconds for a thousand words."""
    if kind in (*SIGHTS, WORD_BY_WORD):
        seen = mask("causal" if kind == WORD_BY_WORD else kind)
        return reference.SelfAttention(*projections(), heads=HEADS)(
            x, mask=None if seen is None else seen.materialize(x.shape[1], x.shape[1]))
    cell, directions = recurrent(kind)
    made = weights(cell, directions)
    return formulas.bidirectional_lstm(x, *made) if directions == 2 else getattr(formulas, cell)(x, *made[0])


def installed() -> tuple[str, ...]:
    """The kinds that can run here."""
    return tuple(kind for kind in KINDS if kind not in TORCH or importlib.util.find_spec("torch"))
