"""From a job to its result: pick the compiled variant, share the tasks among threads.

What follows from how a call's arrays lie, and from nothing else, is worked out once and kept (`Forward`): a model's layers
call with the same shapes again and again.

A variant is a list of types: of a row of queries, of the mix tiles that v's channels need, of what is there or not.
`compile_forward` makes one ahead of its first use.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import types

from ..fpu import guarded, swapped_state
from ..jit import native
from ..machine import TARGET
from ..simd.vec import Shape, lanes
from ..tiles import pool
from ..tiles.job import JOB, WORK, Sizes, address, scratch
from ..tiles.sizes import FEW, ROWS, SPLIT, Channels, mix_shape, queries, queries_shape
from .decode import decode
from .forward import forward

SCALARS: dict[np.dtype, Any] = {np.dtype(np.float32): types.float32, np.dtype(np.float64): types.float64}

# What one native call may do before it returns to Python, which is when Ctrl-C gets through: about 20 ms at 50 GFLOP/s.
SLICE_FLOPS = 1e9
# Below so much work a second thread costs more than it gives: 300 us at 100 GFLOP/s.
SERIAL_FLOPS = 3e7

# result, unused, job, work; ctypes lets go of the GIL. The result goes to the first field of `work`. Addresses as c_int64
# would take twice the time.
_guard = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(WORK.memory), ctypes.c_void_p, ctypes.POINTER(JOB.memory),
                          ctypes.POINTER(WORK.memory))


@functools.cache
def _guarded():
    return _guard(native(guarded, (JOB, WORK)))


def compile_common() -> None:
    """What calls need besides their forward pass: the default floating-point state."""
    _guarded()
    swapped_state()


@functools.cache
def compile_forward(dtype: np.dtype, Dv: int, capped: bool, extra: bool) -> int:
    """The address of the forward pass for these types; any Dv with the same vectors and the same rest gives the same."""
    scalar = SCALARS[dtype]
    channels = Channels.of(scalar, Dv)
    wide = mix_shape(scalar, channels.wide) if Dv > channels.last * lanes(scalar) else types.none
    tail = types.int64 if Dv % lanes(scalar) or not Dv else types.none      # Dv = 0: a vector of which nothing is touched
    there = [types.int64 if given else types.none for given in (capped, extra)]
    return native(forward, (JOB, WORK, types.int64, queries_shape(scalar), wide, mix_shape(scalar, channels.last), tail,
                            *there))


@functools.cache
def compile_decode(dtype: np.dtype, rows: int, Dv: int) -> int:
    """The address of the pass for so few rows of queries; all from 2 on are one variant, as is any Dv with the same vectors."""
    scalar = SCALARS[dtype]
    together = 1 if rows == 1 else ROWS
    channels = Channels.of(scalar, Dv, FEW[together])
    wide = Shape(scalar, together, channels.wide) if Dv > channels.last * lanes(scalar) else types.none
    tail = types.int64 if Dv % lanes(scalar) or not Dv else types.none
    return native(decode, (JOB, WORK, types.int64, queries_shape(scalar), Shape(scalar, together, 1), wide,
                           Shape(scalar, together, channels.last), tail))


class _Scratch(threading.local):
    """Each thread's memory, one piece for each shape; none is used across two native calls."""

    def __init__(self) -> None:
        self.pieces: dict[tuple[np.dtype, int, int], Any] = {}

    def piece(self, shape: tuple[np.dtype, int, int]) -> Any:
        """WORK for this dtype, D and Dv."""
        found = self.pieces.get(shape)
        if found is None:
            if len(self.pieces) == 8:
                self.pieces.clear()
            dtype, D, Dv = shape
            found = self.pieces[shape] = scratch(SCALARS[dtype], D, Dv)
        return found


_scratch = _Scratch()


class Forward:
    """The forward pass over operands of known dtype, sizes and strides.

    It does not change, so that any number of calls may share it, one inside another too: each has a job of its own.
    """

    def __init__(self, dtype: np.dtype, sizes: Sizes, tasks: int, strides: Mapping[str, tuple[int, ...]], **more: float) -> None:
        """strides: bytes from item to item, head to head and row to row of q, k, v, o and lse; more: fields of the job."""
        scalar, (B, Hq, Hkv, Sq, Sk, D, Dv) = SCALARS[dtype], sizes
        steps = {f"{x}_{axis}": step for x, steps in strides.items() for axis, step in zip("bhs", steps)}
        self.dtype, self.sizes, self.piece = dtype, sizes, (dtype, D, Dv)
        self.keys: float = Sk                                       # of a task
        self.flops = 2 * queries(scalar) * (D + Dv)                 # of a task, for each key that its queries see
        more |= steps | {"tail": (Dv - 1) % lanes(scalar) + 1 if Dv else 0, "scale": math.nan, "cap": math.nan}
        self._job = bytes(JOB.memory(tasks=tasks, items=B, heads=Hkv, group=Hq // Hkv if Hkv else 0, Sq=Sq, Sk=Sk, D=D, Dv=Dv,
                                     **more))

    def job(self) -> Any:
        """A call's own record of itself; what is missing are addresses and options."""
        return JOB.memory.from_buffer_copy(self._job)

    def entry(self, job: Any, capped: bool, extra: bool) -> tuple[int, Any]:
        """The compiled pass for a job's options, and memory that must live as long as the job."""
        return compile_forward(self.dtype, self.sizes.Dv, capped, extra), None

    def run(self, job: Any, lo: np.ndarray | None, hi: np.ndarray | None, capped: bool, extra: bool, threads: int) -> None:
        """Run the job, whose runs are lo and hi if it has any. The caller keeps the arrays that it points to until this returns,
        which it does only when no thread works on them any more."""
        if not job.tasks:
            return
        (job.entry, memory), guard, keys = self.entry(job, capped, extra), _guarded(), self.keys
        # Only where it may matter is it worth 2 us to know how many keys a mask leaves.
        if hi is not None and job.tasks * self.flops * keys >= SERIAL_FLOPS:
            keys *= (hi - lo).sum() / (hi.size * max(1, self.sizes.Sk))
        flops = self.flops * keys
        job.budget = min(job.tasks, max(1, int(SLICE_FLOPS / (flops + 1))))      # which fits in 64 bits

        def step() -> bool:
            # On variables of this frame: at the interpreter's exit what belongs to a module is freed while a daemon thread is
            # still inside a kernel. A signal handler may call attention in between; nothing in `work` outlasts a native call.
            work = _scratch.piece(self.piece)
            guard(work, None, job, work)
            return job.taken < job.tasks

        def stop() -> None:
            job.taken = job.tasks

        pool.run(step, stop, 1 if job.tasks * flops < SERIAL_FLOPS else min(threads, job.tasks))
        del memory


class Decode(Forward):
    """The pass for few queries, over operands of known dtype, sizes and strides."""

    def __init__(self, dtype: np.dtype, sizes: Sizes, strides: Mapping[str, tuple[int, ...]]) -> None:
        scalar, (B, Hq, Hkv, Sq, Sk, D, Dv) = SCALARS[dtype], sizes
        width = -(-max(Dv, 1) // lanes(scalar)) * lanes(scalar)
        self.rows, self.heads, splits = Hq // Hkv * Sq, B * Hkv, max(1, -(-Sk // SPLIT))
        super().__init__(dtype, sizes, self.heads * splits, strides, splits=splits,
                         state_bytes=2 * TARGET.vector_bytes + self.rows * width * dtype.itemsize)
        self.keys = Sk / splits
        # A byte read takes as long as about 4 FLOPs: 25 GB/s, 100 GFLOP/s.
        self.flops = 4 * (D + Dv) * max(dtype.itemsize, self.rows)

    def entry(self, job: Any, capped: bool, extra: bool) -> tuple[int, Any]:
        memory = None
        if job.splits > 1 or job.sink:
            memory = np.zeros(self.heads, np.int64), np.empty(job.tasks * job.state_bytes, np.uint8)
            job.arrived, job.states = map(address, memory)
        return compile_decode(self.dtype, self.rows, self.sizes.Dv), memory


def is_decode(dtype: np.dtype, rows: int) -> bool:
    """Whether so few queries for each head of k and v leave the choice to `Decode`.

    A score there costs D / lanes products, and one query after the other takes its turn; in `Forward` D products make a register
    of scores, for as many queries as it has lanes. With half as many both take as long (8 of float32 with AVX-512, 64 channels).
    """
    return 0 < rows <= lanes(SCALARS[dtype]) // 2


def forward_tiles(dtype: np.dtype, rows):
    """How many tiles so many rows of queries take."""
    return -(-rows // queries(SCALARS[dtype]))
