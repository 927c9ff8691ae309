"""Recurrent networks, one word after the other, one formula a line: what "all words at once" is compared with.

The state h of each word is made from the word and from the state of the word before it, so S words take S steps:

    elman    h = tanh(x w_x + b_x + h w_h + b_h)                        Elman, Finding structure in time, 1990
    gru      a reset gate r, an update gate z, a new state n            Cho et al., arXiv:1406.1078
    lstm     gates i, f, o, a candidate g, a memory c                   Hochreiter and Schmidhuber, 1997; forget gate 1999

Shapes: x (..., S, d); w_x (d, G H), w_h (H, G H), b_x and b_h (G H,), G = 1, 3, 4 gates one beside the other: r z n, i f g o.
Each gives every word's h, (..., S, H). The first word finds h = 0 and c = 0. S = 0: no states.
These are torch's formulas, gate orders and two biases; its weights are (G H, d) and (G H, H), ours transposed.
"""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    return (1 + np.tanh(x / 2)) / 2                     # 1 / (1 + exp(-x)), which overflows nowhere


def words(x):
    """The words of x (..., S, d), first to last."""
    return np.moveaxis(np.asarray(x, float), -2, 0)


def states(rows, x, H):
    """Every word's state, (..., S, H)."""
    return np.stack(rows, axis=-2) if rows else np.zeros((*np.shape(x)[:-1], H))


def elman(x, w_x, w_h, b_x, b_h):
    H, rows = len(w_h), []
    h = np.zeros(H)
    for word in words(x):
        h = np.tanh(word @ w_x + b_x + h @ w_h + b_h)
        rows.append(h)
    return states(rows, x, H)


def gru(x, w_x, w_h, b_x, b_h):
    H, rows = len(w_h), []
    h = np.zeros(H)
    for word in words(x):
        x_r, x_z, x_n = np.split(word @ w_x + b_x, 3, axis=-1)
        h_r, h_z, h_n = np.split(h @ w_h + b_h, 3, axis=-1)
        r = sigmoid(x_r + h_r)
        z = sigmoid(x_z + h_z)
        n = np.tanh(x_n + r * h_n)
        h = (1 - z) * n + z * h
        rows.append(h)
    return states(rows, x, H)


def lstm(x, w_x, w_h, b_x, b_h):
    H, rows = len(w_h), []
    h, c = np.zeros(H), np.zeros(H)
    for word in words(x):
        i, f, g, o = np.split(word @ w_x + b_x + h @ w_h + b_h, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        rows.append(h)
    return states(rows, x, H)


def bidirectional_lstm(x, forwards, backwards):
    """One LSTM reads first to last, another last to first: (..., S, 2 H). Each is (w_x, w_h, b_x, b_h)."""
    there = lstm(x, *forwards)
    back = lstm(np.flip(x, axis=-2), *backwards)
    return np.concatenate([there, np.flip(back, axis=-2)], axis=-1)
