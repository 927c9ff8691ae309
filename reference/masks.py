"""Which keys a query may see: one rule a mask, and & says that all of them must hold.

A rule is about i, a query; j, a key; and p, where the query stands among the keys. Without lengths p = i + Sk - Sq: the last
query stands at the last key. With lengths each sequence b has its own, p = i + k_lengths[b] - q_lengths[b].
"""

from __future__ import annotations

import math

import numpy as np


class Mask:
    """rule(i, j, p): whether query i, which stands at p, may see key j; (k_lengths, q_lengths): None where not given."""

    __array_ufunc__ = None                              # array & mask: NumPy leaves it to __rand__

    def __init__(self, rule, lengths=(None, None)):
        self.rule, self.lengths = rule, lengths

    def __and__(self, other):
        if not isinstance(other, Mask):
            other = Mask(lambda i, j, p, seen=other: seen)
        return Mask(lambda i, j, p: self.rule(i, j, p) & other.rule(i, j, p),
                    tuple(map(_shorter, self.lengths, other.lengths)))

    __rand__ = __and__

    def materialize(self, Sq, Sk):
        """True where query i may see key j; (Sq, Sk), or more axes that broadcast to (B, Hq, Sq, Sk)."""
        i, j = np.arange(Sq)[:, None], np.arange(Sk)
        k_length, q_length = (S if n is None else _each(n) for n, S in zip(self.lengths, (Sk, Sq), strict=True))
        p = i + k_length - q_length
        return self.rule(i, j, p) & np.ones((Sq, Sk), bool)


def _each(n):
    """One number a sequence, (B,), where i and j are (Sq, 1) and (Sk,)."""
    return np.asarray(n)[:, None, None, None]


def _shorter(a, b):
    """Of two lengths of a sequence the shorter one; None is no limit."""
    return a if b is None else b if a is None else np.minimum(a, b)


causal = Mask(lambda i, j, p: j <= p)
causal_top_left = Mask(lambda i, j, p: j <= i)


def window(left, right=None):
    """Keys from `left` before the query's own to `right` behind it; None or -1: all on that side."""
    left, right = (math.inf if n is None or n == -1 else n for n in (left, right))
    return Mask(lambda i, j, p: (p - j <= left) & (j - p <= right))


def lengths(k_lengths, q_lengths=None):
    """Sequence b has its first k_lengths[b] keys and its first q_lengths[b] queries; the rest is padding."""
    if q_lengths is None:
        return Mask(lambda i, j, p: j < _each(k_lengths), (k_lengths, None))
    return Mask(lambda i, j, p: (j < _each(k_lengths)) & (i < _each(q_lengths)), (k_lengths, q_lengths))


def packed(segment_ids):
    """Sequences one behind the other: a place sees the places with its own number. segment_ids: (S,) or (B, S)."""
    ids = np.atleast_2d(segment_ids)[:, None]
    return Mask(lambda i, j, p: ids[..., :, None] == ids[..., None, :])


def prefix(n):
    """Causal, but every query sees the first n keys, too. n: one number, or (B,) one for each sequence."""
    first = n if np.ndim(n) == 0 else _each(n)
    return Mask(lambda i, j, p: (j < first) | (j <= p))


def picture(mask, Sq, Sk):
    """A row for every query and a column for every key: # seen, . not seen; of the first sequence and head."""
    seen = np.broadcast_to(mask.materialize(Sq, Sk), (1, 1, Sq, Sk))[0, 0]
    return "\n".join(" ".join(".#"[see] for see in row) for row in seen.astype(int))
