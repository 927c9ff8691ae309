"""Which keys a query may see: one rule a mask, and & says that all of them must hold.

A rule is about i, a query; j, a key; and p, where the query stands among the keys. The last query stands at the last
key, p = i + Sk - Sq; with lengths, that of each sequence b at its own, p = i + k_lengths[b] - q_lengths[b].
"""

from __future__ import annotations

import math

import numpy as np


class Mask:
    """rule(i, j, p): whether query i, which stands at p, may see key j. k_lengths, q_lengths: inf if not limited."""

    __array_ufunc__ = None                              # array & mask: NumPy leaves it to __rand__

    def __init__(self, rule, k_lengths=math.inf, q_lengths=math.inf):
        self.rule, self.k_lengths, self.q_lengths = rule, k_lengths, q_lengths

    def __and__(self, other):
        other = other if isinstance(other, Mask) else boolean(other)
        return Mask(lambda i, j, p: self.rule(i, j, p) & other.rule(i, j, p),
                    np.minimum(self.k_lengths, other.k_lengths), np.minimum(self.q_lengths, other.q_lengths))

    __rand__ = __and__

    def materialize(self, Sq, Sk):
        """True where query i may see key j; (Sq, Sk), or more axes that broadcast to (B, Hq, Sq, Sk)."""
        i, j = np.arange(Sq)[:, None], np.arange(Sk)
        k_length, q_length = each(np.minimum(self.k_lengths, Sk)), each(np.minimum(self.q_lengths, Sq))
        p = i + k_length - q_length
        return self.rule(i, j, p) & np.ones((Sq, Sk), bool)


def each(n):
    """A number for all sequences, or (B,) one for each, as it stands beside i (Sq, 1) and j (Sk,)."""
    return n if np.ndim(n) == 0 else np.reshape(n, (-1, 1, 1, 1))


causal = Mask(lambda i, j, p: j <= p)
causal_top_left = Mask(lambda i, j, p: j <= i)


def window(left, right=None):
    """Besides the query's own key, `left` keys before it and `right` behind it; None or -1: all on that side."""
    left, right = (math.inf if n is None or n == -1 else n for n in (left, right))
    return Mask(lambda i, j, p: (p - left <= j) & (j <= p + right))


def lengths(k_lengths, q_lengths=None):
    """Sequence b has its first k_lengths[b] keys and its first q_lengths[b] queries, None: all; the rest is padding."""
    q_lengths = math.inf if q_lengths is None else q_lengths
    return Mask(lambda i, j, p: (j < each(k_lengths)) & (i < each(q_lengths)), k_lengths, q_lengths)


def packed(segment_ids):
    """Sequences one behind the other: a place sees the places with its own number. segment_ids: (S,) or (B, S)."""
    ids = np.atleast_2d(segment_ids)[:, None]
    return Mask(lambda i, j, p: ids[..., :, None] == ids[..., None, :])


def prefix(n):
    """Causal, but every query sees the first n keys, too. n: one number, or (B,) one for each sequence."""
    return Mask(lambda i, j, p: (j < each(n)) | (j <= p))


def boolean(seen):
    """A boolean array that broadcasts to (B, Hq, Sq, Sk): True is seen."""
    return Mask(lambda i, j, p: seen)


def seen_by(mask, shape):
    """Which query may see which key, in full, (B, Hq, Sq, Sk). mask: None, a boolean array, or what materializes."""
    if mask is None:
        mask = True
    elif hasattr(mask, "materialize"):
        mask = mask.materialize(*shape[2:])
    return np.broadcast_to(mask, shape)


def picture(mask, Sq, Sk):
    """A row for every query and a column for every key: # seen, . not seen; of the first sequence and head."""
    seen = np.array(mask.materialize(Sq, Sk), ndmin=4)[0, 0]
    return "\n".join(" ".join("#" if see else "." for see in row) for row in seen)
