"""How far a right result may lie from the exact one: a bound for every number of o and lse, without a tuned tolerance.

Exact is the formula in float64 for float32, and in long double (64 bits of fraction on x86) for float64, where that is more
than float64; `sharp` says for which dtypes. u is half the distance from 1 to the next number: 2^-24, 2^-53.

The bound, for one query. In units of u, to first order, the numbers below may be off by

    x_j = scale q k_j        (D + 5) X_j                X_j = |scale| sum |q_i k_ji|;  D roundings of the sum, 5 of q scale log2 e
    softcap tanh(x / cap)    9 |s_j|                    3 ULP of tanh are 6 u, and cap log2 e; the slope of tanh is at most 1
    ALiBi, bias              7 |a_j| + 5 |b_j|          products with log2 e, and their sums with the rest
    s_j - kept               min(m - s_j, range) + 29   the exponent is rounded; kept lies at most 30 / log2 e off m
    p_j = exp(s_j - kept)    4                          2 ULP of exp2
    sums over keys           64 + 32 + groups + 4       a block's keys, a group's blocks, groups; nothing for rescaling: factors
                                                        are powers of 2
    o / l                    3                          l, its inverse, the product

So with e_j the sum of the first five for key j, L the last two, p_j the exact weights, which sum to 1 (with a sink, a key
whose v is 0), and c = max e_j + L:

    |o - o*|     <= u / (1 - c u) (sum p_j e_j |v_j| + (sum p_j e_j + L) sum p_j |v_j|)  +  lost sum |v_j|  +  (N + 8) tiny
    |lse - lse*| <= u / (1 - c u) (sum p_j e_j + L) + 4 u (|lse| + 22)

The last two terms of the first line are underflow. exp2 may flush what is below the smallest normal number, 2^-126, and a
factor 2^(old - new) too, of weights up to 2^30: so any weight may be off by lost = 2^-95 of the largest, which matters only
where v is huge at a key of no weight (the sum runs over those with p_j < 150 lost). Products and sums of tiny v are
rounded to multiples of 2^-149, tiny. Rows with a v so large that weights of 2^30 could overflow may be done again
with v 2^80 times smaller, so there tiny is 2^80 times larger.

The bound is for finite inputs whose scores do not overflow. It finds wrong code, not poor summation: one float32 chain of
65,536 sums keeps within it. That is what `units` is for: the largest error of a whole array, to be compared with that of
`naive`, the plain formula at q's precision: at most twice that and 4 u. Over an array of thousands of numbers, as the
largest of a few is a matter of luck: NumPy gives the mean of two numbers without any error. `usual_units` is the same for
random problems, where luck would be a matter of how many there are.

After Blanchard, D. Higham, N. Higham, Accurately computing the log-sum-exp and softmax functions, IMA J. Numer. Anal. 41
(2021), and Dao, FlashAttention-2, arXiv:2307.08691, for the second criterion.
"""

from typing import NamedTuple

import numpy as np

BLOCK, GROUP = 64, 32                   # keys a block, blocks a group: part of the library's contract on bits
WIDER = {np.dtype(np.float32): np.float64, np.dtype(np.float64): np.longdouble}


def u(dtype):
    """Half the distance from 1 to the next number."""
    return float(np.finfo(dtype).eps) / 2


def sharp(dtype):
    """Whether there is a type in which the formula is exact beside numbers of this one."""
    return np.finfo(WIDER[np.dtype(dtype)]).eps < np.finfo(dtype).eps / 1000


class Terms(NamedTuple):
    """The pieces of the formula, all (B, Hq, Sq, Sk) but the last."""

    s: np.ndarray                       # scores, -inf where hidden
    size: np.ndarray                    # what their rounding errors are measured by, in units of u
    p: np.ndarray                       # weights, not normalised
    m: np.ndarray                       # (B, Hq, Sq, 1) the largest score, the sink included; 0 if there is none
    l: np.ndarray                       # (B, Hq, Sq, 1) the sum of weights, the sink included
    sink: np.ndarray | None             # (1, Hq, 1, 1)


def _terms(q, k, dtype, seen, bias, alibi, softcap, sink, scale):
    (Sq, D), Sk, group = q.shape[2:], k.shape[2], q.shape[1] // max(k.shape[1], 1)
    scale = dtype(1 / np.sqrt(dtype(max(D, 1))) if scale is None else scale)
    q, k = q.astype(dtype), np.repeat(k.astype(dtype), group, axis=1).swapaxes(2, 3)
    s, size = q @ k * scale, np.abs(q) @ np.abs(k) * abs(scale) * (D + 5)
    if softcap is not None:
        s = dtype(softcap) * np.tanh(s / dtype(softcap))
        size += 9 * np.abs(s)
    if alibi is not None:
        # Distances as dtype: a float32 times an int64 is a float64.
        distance = np.abs(np.arange(Sq)[:, None] + Sk - Sq - np.arange(Sk)).astype(dtype)
        a = -np.asarray(alibi, dtype)[:, None, None] * distance
        s, size = s + a, size + 7 * np.abs(a)
    if bias is not None:
        b = np.asarray(bias, dtype)
        s, size = s + b, size + 5 * np.abs(np.where(b == -np.inf, 0, b))
        s = np.where(b == -np.inf, -np.inf, s)
    if seen is not None:
        s = np.where(seen, s, -np.inf)
    if sink is not None:
        sink = np.asarray(sink, dtype)[None, :, None, None]
    m = np.max(s, axis=3, keepdims=True, initial=-np.inf)
    m = m if sink is None else np.maximum(m, sink)
    m = np.where(m == -np.inf, 0, m)
    p = np.exp(s - m)
    l = p.sum(3, keepdims=True) + (0 if sink is None else np.exp(sink - m))
    return Terms(s, size, p, m, l, sink)


def _heads(v, Hq):
    return np.repeat(v, Hq // max(v.shape[1], 1), axis=1)


class Exact(NamedTuple):
    """The exact result, and how far from it a right one may be."""

    o: np.ndarray
    lse: np.ndarray
    o_bound: np.ndarray
    lse_bound: np.ndarray
    unit: np.ndarray                    # u sum p |v|, what an error of o is measured by


def exact(q, k, v, *, seen=None, bias=None, alibi=None, softcap=None, sink=None, scale=None):
    """Exact attention of arrays (B, H, S, D), and the bound. seen: None, or booleans that broadcast to (B, Hq, Sq, Sk)."""
    dtype, wide, N = q.dtype, WIDER[q.dtype], k.shape[2]
    finite, half = np.finfo(dtype), u(dtype)
    with np.errstate(all="ignore"):
        t = _terms(q, k, wide, seen, bias, alibi, softcap, sink, scale)
        v = _heads(v.astype(wide), q.shape[1])
        some = t.l > 0
        l = np.where(some, t.l, 1)
        p, sizes = t.p / l, np.abs(v)
        o, lse = p @ v, np.where(some, t.m + np.log(l), -np.inf)[..., 0]

        drop = np.where(t.p > 0, t.m - t.s, np.inf)
        reach = -np.log(float(finite.tiny))
        e = np.where(np.isfinite(drop), t.size + np.minimum(drop, reach) + 33, 0)
        chain = min(N, BLOCK) + min(-(-N // BLOCK), GROUP) + -(-N // (BLOCK * GROUP)) + 7
        pe = (p * e).sum(3, keepdims=True)
        most = e.max(3, keepdims=True, initial=0)
        if t.sink is not None:
            off = 3 * np.abs(t.sink) + np.minimum(t.m - t.sink, reach) + 33
            pe, most = pe + np.exp(t.sink - t.m) / l * off, np.maximum(most, off)
        room = 1 - half * (most + chain)
        grow = np.where(room > 0, half / np.where(room > 0, room, 1), np.inf)
        mean = p @ sizes
        unit = half * mean
        o_bound = np.where(mean > 0, grow * ((p * e) @ sizes + (pe + chain) * mean), 0)

        shown = t.s > -np.inf
        largest = np.max(np.where(shown, sizes.max(3, initial=0)[:, :, None], 0), axis=3, keepdims=True, initial=0)
        again = largest * 2.0**31 * max(N, 1) >= float(finite.max)
        lost = float(finite.tiny) * 2.0**31
        tiny = float(finite.smallest_subnormal) * np.where(again, 2.0**80, 1)
        o_bound += lost * (np.where(shown & (t.p < 150 * lost), 1, 0) @ sizes) + np.where(some, (N + 8) * tiny, 0)
        lse_bound = np.where(some, grow * (pe + chain) + 4 * half * (np.abs(t.m) + np.abs(np.log(l)) + 22), 0)[..., 0]
    return Exact(o, lse, o_bound, lse_bound, unit)


def naive(q, k, v, *, seen=None, bias=None, alibi=None, softcap=None, sink=None, scale=None):
    """The same formula in plain NumPy, at q's precision."""
    with np.errstate(all="ignore"):
        t = _terms(q, k, q.dtype.type, seen, bias, alibi, softcap, sink, scale)
        return np.where(t.l > 0, t.p @ _heads(v, q.shape[1]) / t.l, 0)


def ratio(o, lse, wanted):
    """The largest error as a share of its bound: above 1, something is wrong. lse may be None."""
    with np.errstate(invalid="ignore"):
        worst = _ratio(o, wanted.o, wanted.o_bound)
        return worst if lse is None else max(worst, _ratio(lse, wanted.lse, wanted.lse_bound))


def _ratio(x, want, bound):
    error = np.where(x == want, 0, np.abs(x - want))            # -inf and -inf are no distance apart
    error = np.where(np.isnan(error), np.inf, error)            # a NaN for a number is as wrong as can be
    share = np.where(error == 0, 0, error / np.where(bound > 0, bound, np.finfo(np.float64).tiny))
    return float(share.max(initial=0))


def units(o, wanted):
    """The largest error of o in units of u sum p |v|."""
    return float(np.max(np.abs(o - wanted.o) / wanted.unit))


def usual_units(o, wanted):
    """The root mean square of the errors in the same units, of rows that see a key."""
    some = wanted.unit > 0
    return float(np.sqrt(np.mean(((o - wanted.o)[some] / wanted.unit[some]) ** 2))) if some.any() else 0.0
