"""The public functions: check, plan, run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import checks
from .machine import LINE
from .masks import runs, runs_packed
from .passes.launch import SCALARS, compile_forward, forward_tiles, run_forward
from .passes.merge import merged
from .simd.vec import lanes
from .tiles import pool
from .tiles.job import address
from .tiles.sizes import GRAIN, queries


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: Any = None,
    bias: ArrayLike | None = None,
    alibi: ArrayLike | None = None,
    softcap: float | None = None,
    sink: ArrayLike | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    out: NDArray | None = None,
    threads: int | None = None,
) -> Any:
    """Attention of every query over the keys that it may see: softmax(scale q kᵀ) v.

    q        (B, Hq, Sq, D)    any strides: pass (B, S, H, D) data as x.transpose(0, 2, 1, 3)
    k        (B, Hkv, Sk, D)   Hq is a multiple of Hkv; head h of q uses head h // (Hq / Hkv) of k and v
    v        (B, Hkv, Sk, Dv)
    mask     causal, window(left, right), ... joined by &, or bool that broadcasts to (B, Hq, Sq, Sk), True: may see;
             None: every key
    bias     added to the scores, in q's dtype; broadcasts to (B, Hq, Sq, Sk); -inf hides a key
    alibi    (Hq,) slopes: -slope |i + Sk - Sq - j| is added to the scores
    softcap  scores become softcap tanh(score / softcap) before alibi, bias and mask
    sink     (Hq,) a score that takes weight but has no value
    scale    1 / sqrt(D) if None; any number up to half the type's largest
    out      where to write o: o's shape, q's dtype, any strides; a copy is made if it may share memory with an input
    threads  how many to use; None: `with threads(n)`, else the machine's

    q, k and v are float32 or float64, all the same; leading B and H may be missing together, or B alone, in all three.

    Returns o (B, Hq, Sq, Dv), and with return_lse also lse (B, Hq, Sq), the natural logarithm of the sum of exp of the
    scores, both in q's dtype. A query that sees no key: zeros, lse = -inf (with a sink: the sink's score). Sk = 0: every
    query. What is hidden is never seen, NaN included; NaN in what a query sees makes its row NaN and no other.

    Under causal the last query stands at the last key:    Sq = 2, Sk = 5    # # # # .
                                                                             # # # # #
    Error: at most twice that of the same formula in NumPy at q's precision, and 2 ULP (tests/bounds.py).
    Bits: the same for any number of threads, batch, strides, and whatever hidden values there are.
    Memory besides the result: O(threads), and 16 bytes for each query under a mask; never O(Sq Sk). Copied: what has gaps
    along its last axis, o where `out` cannot be written directly, boolean masks that are joined.
    Scores must stay below 0.69 of the type's largest number, as they become powers of 2; a finite bias, sink or ALiBi
    beyond it counts as that.
    Raises TypeError for what is not such an array or number, ValueError for shapes and values that do not fit.

    >>> o = attention(q, k, v, mask=causal & lengths([7, 5]))

    Dao, FlashAttention-2, arXiv:2307.08691.
    """
    q, k, v, axes = checks.operands(q, k, v)
    (B, Hq, Sq, _), (Hkv, Sk), Dv, dtype = q.shape, k.shape[1:3], v.shape[3], q.dtype
    bias = checks.bias(bias, (B, Hq, Sq, Sk), dtype)
    lo, hi, seen = runs(mask, B, Sq, Sk)
    if seen is not None:
        seen = checks.broadcast("mask", seen, (B, Hq, Sq, Sk))
    slopes, sinks = checks.per_head("alibi", alibi, Hq, dtype), checks.per_head("sink", sink, Hq, dtype)
    shape = (B, Hq, Sq, Dv)
    o = _result(out, shape[4 - axes:], dtype, (q, k, v, bias, seen, slopes, sinks))
    o4 = o.reshape(shape) if o.flags.c_contiguous else o[(None,) * (4 - axes)]
    lse = np.empty(shape[:3], dtype) if return_lse else None
    _forward(q, k, v, o4, lse, None, B * Hkv * forward_tiles(dtype, Hq // Hkv * Sq) if Hkv else 0, (B, Hkv, Sq, Sk),
             lo, hi, seen, bias, slopes, softcap, sinks, scale, threads)
    o = _put(o, out)
    return o if lse is None else (o, lse.reshape(lse.shape[4 - axes:]))


def attention_varlen(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    mask: Any = None,
    alibi: ArrayLike | None = None,
    softcap: float | None = None,
    sink: ArrayLike | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    out: NDArray | None = None,
    threads: int | None = None,
) -> Any:
    """Attention inside each of many sequences that lie packed one behind the other.

    q             (Tq, Hq, D)   sequence b has the rows cu_seqlens_q[b] to cu_seqlens_q[b + 1]
    k, v          (Tk, Hkv, D), (Tk, Hkv, Dv)
    cu_seqlens_*  (B + 1,) integers: 0, then where each sequence ends; they never decrease and end within T
    mask          causal, causal_top_left, window, prefix, by each sequence's own lengths; None: every key of the sequence

    The other arguments, the formula and the promises are `attention`'s. Returns o (Tq, Hq, Dv) and lse (Tq, Hq); rows
    behind the last sequence are 0 and -inf. A sequence without keys gives the same.

    >>> o = attention_varlen(q, k, v, [0, 7, 12], [0, 7, 12], mask=causal)
    """
    q, k, v = checks.packed_operands(q, k, v)
    (Tq, Hq, _), (Tk, Hkv, Dv), dtype = q.shape, v.shape, q.dtype
    starts_q = checks.cumulative("cu_seqlens_q", cu_seqlens_q, Tq, "q")
    starts_k = checks.cumulative("cu_seqlens_k", cu_seqlens_k, Tk, "k and v")
    if starts_q.shape != starts_k.shape:
        raise ValueError(f"cu_seqlens_q and cu_seqlens_k must be as long; got {starts_q.shape} and {starts_k.shape}")
    Sq, Sk = np.diff(starts_q), np.diff(starts_k)
    lo, hi = runs_packed(mask, starts_q, Sk, Tq)
    tiles = forward_tiles(dtype, (Hq // Hkv if Hkv else 0) * Sq)
    # Heaviest sequences first: the last threads to finish then finish together.
    order = np.argsort(-Sq * Sk, kind="stable")
    ends = np.cumsum(Hkv * tiles[order])
    sequences = np.stack([starts_q[:-1][order], starts_k[:-1][order], Sq[order], Sk[order], ends - Hkv * tiles[order]], 1)
    slopes, sinks = checks.per_head("alibi", alibi, Hq, dtype), checks.per_head("sink", sink, Hq, dtype)
    o = _result(out, (Tq, Hq, Dv), dtype, (q, k, v, slopes, sinks))
    lse = np.empty((Tq, Hq), dtype) if return_lse else None
    o[starts_q[-1]:] = 0
    if lse is not None:
        lse[starts_q[-1]:] = -np.inf
    q4, k4, v4, o4 = (x.transpose(1, 0, 2)[None] for x in (q, k, v, o))
    longest = (len(Sq), Hkv, int(Sq.max(initial=0)), int(Sk.max(initial=0)))
    _forward(q4, k4, v4, o4, lse.T[None] if lse is not None else None, np.ascontiguousarray(sequences),
             int(ends[-1]) if len(ends) else 0, longest, lo, hi, None, None, slopes, softcap, sinks, scale, threads)
    o = _put(o, out)
    return o if lse is None else (o, lse)


def merge_states(outs: Sequence[ArrayLike], lses: Sequence[ArrayLike]) -> tuple[NDArray, NDArray]:
    """Join attention over disjoint sets of keys: o = sum exp(lse_n) o_n / sum exp(lse_n), lse = log sum exp(lse_n).

    outs     states' o, each (..., Dv), float32 or float64
    lses     their lse, each (...), natural logarithms

    Returns o (..., Dv) and lse (...) over all keys. A state with lse = -inf has seen no key and weighs nothing, whatever
    its o; where all are such, o = 0 and lse = -inf. A sink belongs to one of the states only.
    Raises ValueError if there is none or if shapes differ, TypeError if dtypes do.

    >>> a = attention(q, k[:, :, :9], v[:, :, :9], return_lse=True)
    >>> b = attention(q, k[:, :, 9:], v[:, :, 9:], return_lse=True)
    >>> o, lse = merge_states(*zip(a, b))

    Ye et al., FlashInfer, arXiv:2501.01005, section 2.
    """
    return merged(*checks.states(outs, lses))


def compile(*, dtypes: Sequence[DTypeLike] = ("float32",), channels: Sequence[int] = (64,)) -> None:
    """Compile ahead of the first call, for values of so many channels: a build step for images.

    Four variants for each dtype and number of channels, with and without softcap and what is added to scores, 3 to 4 s each.
    Raises TypeError for another dtype.

    Without it a call compiles what it needs, once, and leaves it in the cache (`cache_info`).
    """
    for dtype in dtypes:
        scalar = SCALARS[checks.dtype("dtypes", dtype)]
        for Dv in channels:
            for capped in (False, True):
                for extra in (False, True):
                    compile_forward(scalar, Dv, capped, extra)


# ---- what both have in common ------------------------------------------------------------------------------------------
def _forward(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    o: NDArray,
    lse: NDArray | None,
    sequences: NDArray | None,
    tasks: int,
    sizes: tuple[int, int, int, int],
    lo: NDArray | None,
    hi: NDArray | None,
    seen: NDArray | None,
    bias: NDArray | None,
    slopes: NDArray | None,
    softcap: float | None,
    sinks: NDArray | None,
    scale: float | None,
    threads: int | None,
) -> None:
    """Write o and lse; q, k, v and o have 4 axes; sizes: items, kv heads, and the queries and keys of one item."""
    (_, Hq, _, D), Hkv, Dv, dtype = q.shape, k.shape[1], v.shape[3], q.dtype
    scale, cap = checks.scale(scale, dtype), checks.softcap(softcap, dtype)
    threads = pool.thread_count(threads)
    if not tasks:
        return
    scalar, (items, _, Sq, Sk) = SCALARS[dtype], sizes
    seen, seen_steps = _rows_of_keys(seen)
    bias, bias_steps = _rows_of_keys(bias)
    fields = (
        items, Hkv, Hq // Hkv, Sq, Sk, D, Dv, address(sequences),
        address(q), *q.strides[:3], address(k), *k.strides[:3], address(v), *v.strides[:3], address(o), *o.strides[:3],
        address(lse), *((0, 0, 0) if lse is None else lse.strides),
        address(lo), address(hi), 0 if lo is None or len(lo) == 1 else lo.strides[0],
        address(seen), *seen_steps, address(bias), *bias_steps, address(slopes), address(sinks),
        (Dv - 1) % lanes(scalar) + 1 if Dv else 0, scale, cap or 0.0,
    )  # fmt: skip
    keys = Sk if hi is None else float(np.mean(hi - lo))
    extra = slopes is not None or bias is not None or seen is not None
    run_forward(scalar, fields, tasks, D, Dv, cap is not None, extra, 2 * queries(scalar) * keys * (D + Dv), threads)


def _result(out: NDArray | None, shape: tuple[int, ...], dtype: np.dtype, inputs: tuple) -> NDArray:
    """Where the kernels write: `out`, or memory of its own if there is none or it will not do."""
    if out is None:
        return _empty(shape, dtype)
    checks.out(out, shape, dtype)
    gaps = out.shape[-1] > 1 and out.strides[-1] != out.itemsize
    if gaps or not out.flags.aligned or any(x is not None and np.may_share_memory(out, x) for x in inputs):
        return _empty(shape, dtype)
    return out


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """An array that begins a cache line. NumPy's begin 16 bytes behind one, and every vector written costs two: 3 % at S 64."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + LINE, np.uint8)
    start = -address(memory) % LINE
    return memory[start:start + size].view(dtype).reshape(shape)


def _put(o: NDArray, out: NDArray | None) -> NDArray:
    """The result, in `out` if there is one."""
    if out is None or o is out:
        return o
    out[...] = o
    return out


def _rows_of_keys(x: NDArray | None) -> tuple[NDArray | None, tuple[int, ...]]:
    """x and its strides, with keys that have no gaps. One value for all keys is repeated for GRAIN of them, step 0."""
    if x is None:
        return None, (0, 0, 0, 0)
    one = x.shape[3] == 1
    if one or x.strides[3] != x.itemsize:
        # What is the same all along an axis is copied once.
        least = x[tuple(slice(1 if step == 0 else None) for step in x.strides[:3])]
        least = np.repeat(least, GRAIN, axis=3) if one else np.ascontiguousarray(least)
        x = np.broadcast_to(least, (*x.shape[:3], least.shape[3]))
    return x, (*x.strides[:3], 0 if one else x.itemsize)
