"""Attention, all words at once, one formula a line."""

from __future__ import annotations

import numpy as np

from .masks import seen_by
from .softmax import percentages


@np.errstate(all="ignore")                              # NaN and inf are numbers like others here
def attention(q, k, v, *, mask=None, bias=None, alibi=None, softcap=None, sink=None, scale=None, return_lse=False):
    """softmax(scale q kᵀ) v, of every query over the keys that it may see: o, or (o, lse), in float64.

    q (B, Hq, Sq, D), k (B, Hkv, Sk, D), v (B, Hkv, Sk, Dv), or all without B, or without B and H; o is as q with Dv
    channels, lse as q without channels.
    """
    shape = np.shape(q)[:-1]
    q, k, v = (np.array(x, float, ndmin=4) for x in (q, k, v))
    (B, Hq, Sq, D), (Hkv, Sk, Dv) = q.shape, v.shape[1:]

    scale = 1 / np.sqrt(max(D, 1)) if scale is None else scale
    slope = np.broadcast_to(0 if alibi is None else alibi, Hq)
    sink = np.broadcast_to(-np.inf if sink is None else sink, Hq)
    bias = np.broadcast_to(0 if bias is None else bias, (B, Hq, Sq, Sk))
    seen = seen_by(mask, (B, Hq, Sq, Sk)) & (bias != -np.inf)

    o, lse = np.empty((B, Hq, Sq, Dv)), np.empty((B, Hq, Sq))
    for b, h in np.ndindex(B, Hq):
        h_kv = h // (Hq // Hkv)                         # heads 0 0 1 1, not 0 1 0 1
        o[b, h], lse[b, h] = one_head(q[b, h], k[b, h_kv], v[b, h_kv], seen=seen[b, h], bias=bias[b, h], slope=slope[h],
                                      softcap=softcap, sink=sink[h], scale=scale)
    o, lse = o.reshape(*shape, Dv), lse.reshape(shape)
    return (o, lse) if return_lse else o


def one_head(q, k, v, *, seen, bias, slope, softcap, sink, scale):
    """The five steps: o (Sq, Dv) and lse (Sq,) of q (Sq, D), k (Sk, D), v (Sk, Dv); seen and bias are (Sq, Sk)."""
    (Sq, Sk), Dv = seen.shape, v.shape[1]
    position = np.arange(Sq)[:, None] + Sk - Sq         # the last query stands at the last key
    distance = np.abs(position - np.arange(Sk))

    # 1. embed: each word is a row of numbers, x
    # 2. q, k, v: q = x w_q, k = x w_k and v = x w_v are what we are given

    # 3. score: how similar is what one word asks to what each word can be compared to?
    s = scale * (q @ k.T)
    if softcap is not None:
        s = softcap * np.tanh(s / softcap)
    s = s - slope * distance
    s = s + bias
    s = np.where(seen, s, -np.inf)

    # A sink is one more key: every query sees it, and its v is 0. A sink of -inf is none.
    s = np.column_stack([s, np.full(Sq, sink)])
    v = np.vstack([v, np.zeros(Dv)])
    seen = np.column_stack([seen, np.full(Sq, sink != -np.inf)])

    # 4. softmax: scores become percentages
    p, lse = percentages(s, axis=1)

    # 5. mix: the new word is the percentages times the v of the words that it sees
    # That is o = p @ v, but for a NaN or inf in a hidden v: its percentage is 0, and 0 NaN would be NaN.
    o = np.empty((Sq, Dv))
    for i in range(Sq):
        o[i] = p[i, seen[i]] @ v[seen[i]]
    return o, lse


def attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, *, mask=None, alibi=None, softcap=None, sink=None,
                     scale=None, return_lse=False):
    """`attention` inside each of many sequences that lie one behind the other: o (Tq, Hq, Dv), or (o, lse).

    q (Tq, Hq, D), k (Tk, Hkv, D), v (Tk, Hkv, Dv). Sequence b has the queries cu_seqlens_q[b] to cu_seqlens_q[b + 1],
    and keys likewise. Queries behind the last sequence belong to none: their o is 0, their lse (Tq, Hq) -inf.
    """
    q, k, v = (np.swapaxes(x, 0, 1) for x in (q, k, v))                                 # (H, T, D)
    (Hq, Tq, _), Dv = q.shape, v.shape[2]
    Sq, Sk, B = np.diff(cu_seqlens_q), np.diff(cu_seqlens_k), len(cu_seqlens_q) - 1
    o, lse = np.zeros((Hq, Tq, Dv)), np.full((Hq, Tq), -np.inf)
    for b in range(B):
        i = slice(cu_seqlens_q[b], cu_seqlens_q[b + 1])
        j = slice(cu_seqlens_k[b], cu_seqlens_k[b + 1])
        seen = seen_by(mask, (B, 1, Sq[b], Sk[b]))[b]
        o[:, i], lse[:, i] = attention(q[:, i], k[:, j], v[:, j], mask=seen, alibi=alibi, softcap=softcap, sink=sink,
                                       scale=scale, return_lse=True)
    o, lse = o.swapaxes(0, 1), lse.T
    return (o, lse) if return_lse else o
