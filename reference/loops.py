"""Attention word by word, in loops: a second opinion on all words at once."""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from .masks import seen_by


def attention_by_loops(q, k, v, *, mask=None, bias=None, alibi=None, softcap=None, sink=None, scale=None,
                       return_lse=False):
    """`attention` with nothing but Python's lists and numbers. For small inputs: B Hq Sq Sk (D + Dv) steps."""
    shape = np.shape(q)[:-1]
    q, k, v = (np.array(x, float, ndmin=4) for x in (q, k, v))
    (B, Hq, Sq, D), (Hkv, Sk, Dv) = q.shape, v.shape[1:]
    seen = seen_by(mask, (B, Hq, Sq, Sk))
    bias = np.broadcast_to(0.0 if bias is None else bias, (B, Hq, Sq, Sk))
    q, k, v, seen, bias = (x.tolist() for x in (q, k, v, seen, bias))
    if scale is None:
        scale = 1 / math.sqrt(D) if D else 1.0

    o, lse = np.empty((B, Hq, Sq, Dv)), np.empty((B, Hq, Sq))
    for b, h, i in product(range(B), range(Hq), range(Sq)):
        h_kv = h // (Hq // Hkv)
        words = []                                      # of every key that is seen: its score and its v
        for j in range(Sk):
            if not seen[b][h][i][j] or bias[b][h][i][j] == -math.inf:
                continue
            s = 0.0
            for d in range(D):
                s += q[b][h][i][d] * k[b][h_kv][j][d]
            s *= scale
            if softcap is not None:
                s = softcap * math.tanh(s / softcap)
            if alibi is not None:
                s -= float(alibi[h]) * abs(i + Sk - Sq - j)
            s += bias[b][h][i][j]
            words.append((s, v[b][h_kv][j]))
        if sink is not None and sink[h] != -math.inf:
            words.append((float(sink[h]), [0.0] * Dv))
        o[b, h, i], lse[b, h, i] = mixed(words, Dv)
    o, lse = o.reshape(*shape, Dv), lse.reshape(shape)
    return (o, lse) if return_lse else o


def mixed(words, Dv):
    """Softmax and mix of one query: o, a list of Dv numbers, and lse."""
    if not words:
        return [0.0] * Dv, -math.inf
    if all(s == -math.inf for s, _ in words):           # 0 / 0
        return [math.nan] * Dv, -math.inf
    m = max(s for s, _ in words)                        # max may miss a NaN; the sum does not
    l = sum(math.exp(s - m) for s, _ in words)
    o = [0.0] * Dv
    for s, v in words:
        p = math.exp(s - m) / l
        for d in range(Dv):
            o[d] += p * v[d]
    return o, m + math.log(l)
