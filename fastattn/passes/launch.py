"""From the fields of a job to its result: pick the compiled variant, share the tasks among threads.

A variant is a list of types: of the score tile, of the mix tiles that v's channels need, of what is there or not.
`compile_forward` makes one ahead of its first use.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types

from ..fpu import guarded
from ..jit import native
from ..simd.vec import lanes
from ..tiles import pool
from ..tiles.job import JOB, WORK, address, scratch
from ..tiles.sizes import Channels, mix_shape, queries, queries_shape
from .forward import forward

SCALARS: dict[np.dtype, Any] = {np.dtype(np.float32): types.float32, np.dtype(np.float64): types.float64}

# What one native call may do before it returns to Python, which is when Ctrl-C gets through: about 20 ms at 50 GFLOP/s.
SLICE_FLOPS = 1e9
# Below so much work a second thread costs more than it gives: 300 us at 100 GFLOP/s.
SERIAL_FLOPS = 3e7

# result, unused, address, job, work, budget; ctypes lets go of the GIL
_guard = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 6)


@functools.cache
def _guarded():
    return _guard(native(guarded, (types.int64,) * 4))


@functools.cache
def compile_forward(scalar: types.Type, Dv: int, capped: bool, extra: bool) -> int:
    """The address of the forward pass for these types; any Dv with the same vectors and the same rest gives the same."""
    channels = Channels.of(scalar, Dv)
    wide = mix_shape(scalar, channels.wide) if Dv > channels.last * lanes(scalar) else types.none
    tail = types.int64 if Dv % lanes(scalar) or not Dv else types.none      # Dv = 0: a vector of which nothing is touched
    there = [types.int64 if given else types.none for given in (capped, extra)]
    return native(forward, (JOB, WORK, types.int64, queries_shape(scalar), wide, mix_shape(scalar, channels.last), tail,
                            *there))


class _Scratch(threading.local):
    """Each thread's memory, one piece for each shape; none is used across two native calls."""

    def __init__(self) -> None:
        self.pieces: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    def piece(self, *shape: Any) -> tuple[np.ndarray, np.ndarray]:
        found = self.pieces.get(shape)
        if found is None:
            if len(self.pieces) == 8:
                self.pieces.clear()
            found = self.pieces[shape] = scratch(*shape)
        return found


_scratch = _Scratch()


def run_forward(scalar: types.Type, fields: Sequence, tasks: int, D: int, Dv: int, capped: bool, extra: bool,
                flops: float, threads: int) -> None:
    """Run `tasks` tasks of about `flops` each. fields: those of JOB after counter and tasks; the caller keeps the arrays
    they point to until this returns, which it does only when no thread works on the job any more."""
    entry, guard = compile_forward(scalar, Dv, capped, extra), _guarded()
    counter = np.zeros(1, np.int64)
    job = JOB.pack((address(counter), tasks, *fields))
    at_job = address(job)
    budget = max(1, int(SLICE_FLOPS / (flops + 1)))

    def step() -> bool:
        # Both belong to this call: a signal handler may call attention in between, and at the interpreter's exit what
        # belongs to a module is freed while a daemon thread is still inside a kernel.
        memory, result = _scratch.piece(scalar, D, Dv), ctypes.c_int64()
        guard(ctypes.addressof(result), 0, entry, at_job, address(memory[0]), budget)
        return result.value == budget

    def stop() -> None:
        counter[0] = tasks

    pool.run(step, stop, 1 if tasks * flops < SERIAL_FLOPS else min(threads, tasks))


def forward_tiles(dtype: np.dtype, rows):
    """How many tiles so many rows of queries take."""
    return -(-rows // queries(SCALARS[dtype]))
