"""Attention, all words at once, one formula a line; and the same word by word, in loops."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp, softmax

from .scores import scores, visible


def attention(q, k, v, *, mask=None, bias=None, alibi=None, softcap=None, sink=None, scale=None, return_lse=False):
    """softmax(scale q kᵀ) v, every query over the keys that it may see: o, or (o, lse), in float64."""
    # 1. embeddings x, and 2. q = x w_q, k = x w_k, v = x w_v, are what we are given.
    axes = np.ndim(q)
    q, k, v = (np.asarray(x, float)[(None,) * (4 - axes)] for x in (q, k, v))
    group = q.shape[1] // max(k.shape[1], 1)
    k = np.repeat(k, group, axis=1)                     # heads 0 0 1 1, and not 0 1 0 1
    v = np.repeat(v, group, axis=1)

    with np.errstate(all="ignore"):                     # NaN and inf are numbers like others here
        # 3. score
        s, seen = scores(q, k, mask=mask, bias=bias, alibi=alibi, softcap=softcap, scale=scale)
        # 4. softmax. The sink is one more key, without a value; no sink is a sink of -inf, which weighs nothing.
        s = np.concatenate([_column(sink, s.shape), s], axis=3)
        p = softmax(s, axis=3)[..., 1:]
        p = np.where(seen, p, 0)                        # where all scores are hidden, too
        lse = logsumexp(s, axis=3)
        lse = np.where(lse == np.inf, np.nan, lse)      # inf / inf: the row is NaN, all of it
        # 5. mix
        o = mix(p, v, seen)
    o, lse = o.reshape(o.shape[4 - axes:]), lse.reshape(lse.shape[4 - axes:])
    return (o, lse) if return_lse else o


def mix(p, v, seen):
    """o = p v, over the keys that are seen. A NaN or inf among the others is left out, as 0 NaN is NaN and not 0."""
    number = np.isfinite(v)
    o = p @ np.where(number, v, 0)
    rest = np.where(number, 0, v)
    for j in np.flatnonzero(rest.any(axis=(0, 1, 3))):
        o += np.where(seen[..., j, None], p[..., j, None] * rest[:, :, None, j], 0)
    return o


def _column(sink, shape):
    """The sink's score for every query: a column beside scores of this shape."""
    sink = -np.inf if sink is None else np.asarray(sink, float)[:, None, None]
    return np.broadcast_to(sink, (*shape[:3], 1))


def attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, *, mask=None, alibi=None, softcap=None, sink=None, scale=None,
                     return_lse=False):
    """`attention` inside each of many sequences packed one behind the other, q (Tq, Hq, D), k and v (Tk, Hkv, D or Dv).

    Sequence b has the queries cu_seqlens_q[b] to cu_seqlens_q[b + 1], and keys likewise. Queries behind the last sequence
    see nothing: o (Tq, Hq, Dv) is 0 there, lse (Tq, Hq) is -inf.
    """
    q, k, v = (np.asarray(x, float) for x in (q, k, v))
    o, lse = np.zeros((*q.shape[:2], v.shape[2])), np.full(q.shape[:2], -np.inf)
    for b in range(len(cu_seqlens_q) - 1):
        i, j = slice(*cu_seqlens_q[b:b + 2]), slice(*cu_seqlens_k[b:b + 2])
        qb, kb, vb = (x.swapaxes(0, 1) for x in (q[i], k[j], v[j]))                     # (H, S, D)
        ob, lb = attention(qb, kb, vb, mask=_of_sequence(mask, b, qb.shape[1], kb.shape[1]), alibi=alibi, softcap=softcap,
                           sink=sink, scale=scale, return_lse=True)
        o[i], lse[i] = ob.swapaxes(0, 1), lb.swapaxes(0, 1)
    return (o, lse) if return_lse else o


def _of_sequence(mask, b, Sq, Sk):
    """What a mask says about sequence b, which has Sq queries and Sk keys."""
    if mask is None:
        return None
    seen = mask.materialize(Sq, Sk)
    return seen[b] if seen.ndim == 4 and len(seen) > 1 else seen


def attention_by_loops(q, k, v, *, mask=None, bias=None, alibi=None, softcap=None, sink=None, scale=None,
                       return_lse=False):
    """The same, word by word, with nothing but Python's numbers: a second opinion, for small inputs."""
    axes = np.ndim(q)
    q, k, v = (np.asarray(x, float)[(None,) * (4 - axes)] for x in (q, k, v))
    (B, Hq, Sq, D), (Hkv, Sk), Dv = q.shape, k.shape[1:3], v.shape[3]
    seen = visible(mask, (B, Hq, Sq, Sk))
    added = np.broadcast_to(0.0 if bias is None else bias, (B, Hq, Sq, Sk))
    if scale is None:
        scale = 1 / math.sqrt(D) if D else 1.0

    o, lse = np.empty((B, Hq, Sq, Dv)), np.empty((B, Hq, Sq))
    for b in range(B):
        for h in range(Hq):
            h_kv = h // (Hq // Hkv)
            for i in range(Sq):
                s = {}                                                      # key j: its score
                for j in range(Sk):
                    if not seen[b, h, i, j] or added[b, h, i, j] == -math.inf:
                        continue
                    s[j] = 0.0
                    for d in range(D):
                        s[j] += float(q[b, h, i, d]) * float(k[b, h_kv, j, d])
                    s[j] *= scale
                    if softcap is not None:
                        s[j] = softcap * math.tanh(s[j] / softcap)
                    if alibi is not None:
                        s[j] -= float(alibi[h]) * abs(i + Sk - Sq - j)
                    s[j] += float(added[b, h, i, j])

                everything = list(s.values()) if sink is None else [float(sink[h]), *s.values()]
                o[b, h, i], lse[b, h, i] = 0, -math.inf
                if everything:
                    m = max(everything)                                     # if this misses a NaN, l does not
                    l = sum(math.exp(x - m) for x in everything)
                    if any(x != -math.inf for x in everything):
                        lse[b, h, i] = m + math.log(l)
                    for d in range(Dv):
                        for j in s:
                            o[b, h, i, d] += math.exp(s[j] - m) / l * float(v[b, h_kv, j, d])
    o, lse = o.reshape(o.shape[4 - axes:]), lse.reshape(lse.shape[4 - axes:])
    return (o, lse) if return_lse else o
