"""The public functions: check, plan, run."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import checks
from .masks import runs, runs_packed
from .passes.launch import Decode, Forward, compile_common, compile_decode, compile_forward, forward_tiles, is_decode
from .passes.merge import merged
from .tiles import pool
from .tiles.job import Sizes, address, empty
from .tiles.sizes import FEW, GRAIN

# Layouts whose `Forward` is kept, each about 3 KB. A decoder's keys get one more with every step, each layer asks for the same.
LAYOUTS = 256


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
    Error: within the bound of tests/bounds.py; its root mean square at most twice that of the same formula in NumPy at q's
    precision, and 2 ULP, where nothing is added to the scores.
    Bits: the same for any number of threads, batch, strides, and whatever hidden values there are.
    Memory besides the result: O(threads), and 16 bytes for each query under a mask; never O(Sq Sk). Few queries: a row of o for
    each 2048 keys that one looks at. Copied: what has gaps along its last axis, o where `out` cannot be written directly,
    boolean masks that are joined.
    Scores, and with softcap scores / softcap, must stay below 0.69 of the type's largest number, as they become powers of 2;
    a finite bias, sink or ALiBi beyond it counts as that.
    Raises TypeError for what is not such an array or number, ValueError for shapes and values that do not fit.

    >>> o = attention(q, k, v, mask=causal & lengths([7, 5]))

    Dao, FlashAttention-2, arXiv:2307.08691.
    """
    q, k, v = checks.floats("q", q), checks.floats("k", k), checks.floats("v", v)
    forward = _forward((q.dtype, k.dtype, v.dtype), (q.shape, k.shape, v.shape), (q.strides, k.strides, v.strides))
    (B, Hq, _, Sq, Sk, _, Dv), dtype = forward.sizes, q.dtype
    bias = checks.bias(bias, (B, Hq, Sq, Sk), dtype)
    lo, hi, seen = runs(mask, B, Sq, Sk)
    if seen is not None:
        seen = checks.broadcast("mask", seen, (B, Hq, Sq, Sk))
    slopes, sinks = checks.per_head("alibi", alibi, Hq, dtype), checks.per_head("sink", sink, Hq, dtype)
    shape = (B, Hq, Sq, Dv)[4 - q.ndim:]
    o = _result(out, shape, dtype, (q, k, v, bias, seen, slopes, sinks))
    lse = np.empty(shape[:-1], dtype) if return_lse else None
    job = forward.job()
    if o is out:
        job.o_b, job.o_h, job.o_s = _steps(o.strides)
    _run(forward, job, q, k, v, o, lse, lo, hi, seen, bias, slopes, softcap, sinks, scale, threads)
    o = _put(o, out)
    return o if lse is None else (o, lse)


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

    The other arguments, the formula and the promises are `attention`'s; there is no bias. Returns o (Tq, Hq, Dv) and lse
    (Tq, Hq); rows behind the last sequence are 0 and -inf. A sequence without keys gives the same.

    >>> o = attention_varlen(q, k, v, [0, 7, 12], [0, 7, 12], mask=causal)
    """
    q, k, v = checks.packed_operands(q, k, v)
    (Tq, Hq, D), (Tk, Hkv, Dv), dtype = q.shape, v.shape, q.dtype
    starts_q = checks.cumulative("cu_seqlens_q", cu_seqlens_q, Tq, "q")
    starts_k = checks.cumulative("cu_seqlens_k", cu_seqlens_k, Tk, "k and v")
    if starts_q.shape != starts_k.shape:
        raise ValueError(f"cu_seqlens_q and cu_seqlens_k must be equally long; got {starts_q.shape} and {starts_k.shape}")
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
    longest = Sizes(len(Sq), Hq, Hkv, int(Sq.max(initial=0)), int(Sk.max(initial=0)), D, Dv)
    lines = {"q": q.strides, "k": k.strides, "v": v.strides, "o": o.strides, "lse": (Hq * dtype.itemsize, dtype.itemsize)}
    steps = {name: (0, head, row) for name, (row, head, *_) in lines.items()}
    forward = Forward(dtype, longest, int(ends[-1]) if len(ends) else 0, steps)
    job, sequences = forward.job(), np.ascontiguousarray(sequences)
    job.sequences = address(sequences)
    _run(forward, job, q, k, v, o, lse, lo, hi, None, None, slopes, softcap, sinks, scale, threads)
    o[starts_q[-1]:] = 0                        # after _run: what it refuses must leave `out` alone
    if lse is not None:
        lse[starts_q[-1]:] = -np.inf
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


def compile(*, dtypes: DTypeLike | Iterable[DTypeLike] = "float32", channels: int | Iterable[int] = 64) -> None:
    """Compile ahead of the first call, for values of so many channels: a build step for images.

    Six variants for each dtype and number of channels, some seconds each: with and without softcap and what is added to scores,
    and two for few queries.
    Numbers of channels that are cut into registers alike share them: float32 with 64 serves 32, 80 and 128, too.
    Raises TypeError for another dtype and for channels that are no integers, ValueError for negative ones.

    Without it a call compiles what it needs, once, and leaves it in the cache (`cache_info`).
    """
    compile_common()
    for dtype in _each(dtypes):
        checked = checks.dtype("dtypes", dtype)
        for Dv in [checks.integer("channels", n, 0) for n in _each(channels)]:
            for rows in FEW:
                compile_decode(checked, rows, Dv)
            for capped in (False, True):
                for extra in (False, True):
                    compile_forward(checked, Dv, capped, extra)


def _each(x: Any) -> list:
    """One, or what there is of them."""
    return list(x) if isinstance(x, Iterable) and not isinstance(x, (str, type)) else [x]


# ---- what both have in common ------------------------------------------------------------------------------------------
@functools.lru_cache(LAYOUTS)
def _forward(dtypes: tuple[np.dtype, ...], shapes: tuple[checks.Shape, ...], strides: tuple[checks.Shape, ...]) -> Forward:
    """The forward pass over q, k and v that lie so, with o and lse without gaps. Raises if they do not fit."""
    sizes, dtype = checks.operands(dtypes, shapes), dtypes[0]
    B, Hq, Hkv, Sq, _, _, Dv = sizes
    q, k, v = map(_steps, strides)
    lse = (Hq * Sq * dtype.itemsize, Sq * dtype.itemsize, dtype.itemsize)
    steps = {"q": q, "k": k, "v": v, "o": tuple(Dv * step for step in lse), "lse": lse}
    if Hkv and is_decode(dtype, Hq // Hkv * Sq):
        return Decode(dtype, sizes, steps)
    return Forward(dtype, sizes, B * Hkv * forward_tiles(dtype, Hq // Hkv * Sq) if Hkv else 0, steps)


def _steps(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Bytes from item to item, head to head and row to row; axes that are missing have one place."""
    return (0,) * (4 - len(strides)) + strides[:-1]


def _run(
    forward: Forward,
    job: Any,
    q: NDArray,
    k: NDArray,
    v: NDArray,
    o: NDArray,
    lse: NDArray | None,
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
    """Fill in a job what the layout does not say, and write o and lse. All arrays live until it is done."""
    threads = pool.thread_count(threads)
    job.q, job.k, job.v, job.o = address(q), address(k), address(v), address(o)
    if lse is not None:
        job.lse = address(lse)
    if lo is not None and hi is not None:
        job.lo, job.hi, job.run_b = address(lo), address(hi), 0 if len(lo) == 1 else lo.strides[0]
    if seen is not None:
        seen, (job.seen_b, job.seen_h, job.seen_s, job.seen_j) = _rows_of_keys(seen)
        job.seen = address(seen)
    if bias is not None:
        bias, (job.bias_b, job.bias_h, job.bias_s, job.bias_j) = _rows_of_keys(bias)
        job.bias = address(bias)
    if slopes is not None:
        job.slopes = address(slopes)
    if sinks is not None:
        job.sink = address(sinks)
    if scale is not None:
        job.scale = checks.scale(scale, forward.dtype)
    if softcap is not None:
        job.cap = checks.softcap(softcap, forward.dtype)
    extra = slopes is not None or bias is not None or seen is not None
    forward.run(job, lo, hi, softcap is not None, extra, threads)


def _result(out: NDArray | None, shape: tuple[int, ...], dtype: np.dtype, inputs: tuple) -> NDArray:
    """Where the kernels write: `out`, or memory of its own if there is none or it will not do."""
    if out is None:
        return empty(shape, dtype)
    checks.out(out, shape, dtype)
    gaps = out.shape[-1] > 1 and out.strides[-1] != out.itemsize
    if gaps or not out.flags.aligned or any(x is not None and np.may_share_memory(out, x) for x in inputs):
        return empty(shape, dtype)
    return out


def _put(o: NDArray, out: NDArray | None) -> NDArray:
    """The result, in `out` if there is one."""
    if out is None or o is out:
        return o
    out[...] = o
    return out


def _rows_of_keys(x: NDArray) -> tuple[NDArray, tuple[int, ...]]:
    """x and its strides, with keys that have no gaps. One value for all keys is repeated for GRAIN of them, step 0."""
    one = x.shape[3] == 1
    if one or x.strides[3] != x.itemsize:
        # What is the same all along an axis is copied once.
        least = x[tuple(slice(1 if step == 0 else None) for step in x.strides[:3])]
        least = np.repeat(least, GRAIN, axis=3) if one else np.ascontiguousarray(least)
        x = np.broadcast_to(least, (*x.shape[:3], least.shape[3]))
    return x, (*x.strides[:3], 0 if one else x.itemsize)
