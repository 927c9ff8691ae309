"""What the FMA units can do: a block of sums that stays in registers, its operands in L1, at addresses of 64-byte lines.

    sums[r, :] += a[r, d] b[d, :]       d = 0, 1 ... DEPTH - 1, over and over

                     f32                    sums + vectors of b + 1 broadcast
    32 registers     6 x 4 vectors          24 + 4 + 1 = 29
    16 registers     6 x 2 vectors          12 + 2 + 1 = 15

At least 8 sums are in flight (4 cycles for an FMA, two started in each), and 6 + 4 loads feed 24 FMAs where two loads start
in a cycle. Off a 64-byte line each load of b takes two: 228 GFLOP/s instead of 240 on an Intel Xeon with two 512-bit units.
The vectors are those of Numba's target, which may be narrower than the machine's.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from fastattn.machine import LINE, TARGET
from fastattn.simd.vec import Shape, lanes, rank1, store, zeros

ROWS, VECS = 6, 4 if TARGET.registers == 32 else 2
DEPTH = 64                      # b takes 16 KiB, a 1.5 KiB, at 512 bits: in L1
CHUNK = 0.002                   # seconds of one measured piece: short, so that an interruption spoils only one


def _tile(scalar):
    """The block of registers as a value for kernels."""
    @intrinsic
    def tile(typingctx):
        def codegen(context, builder, signature, args):
            return context.get_dummy_value()

        return Shape(scalar, ROWS, VECS)(), codegen

    return tile


def _kernel(scalar):
    tile, size, row = _tile(scalar), scalar.bitwidth // 8, VECS * TARGET.vector_bytes

    @njit(nogil=True)
    def multiply(a, b, sums, times):
        """sums[r, :] = times * sum over d of a[r, d] b[d, :]."""
        t = zeros(tile())
        for _ in range(times):
            for d in range(DEPTH):
                t = rank1(t, a + d * size, DEPTH * size, b + d * row)
        store(t, sums, row)

    return multiply


def aligned(shape: tuple[int, ...], dtype: str) -> NDArray:
    """Zeros that begin at a 64-byte line."""
    count, size = int(np.prod(shape)), np.dtype(dtype).itemsize
    memory = np.zeros(count * size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start:start + count * size].view(dtype).reshape(shape)


class Peak:
    """The FMA peak of `threads` cores in a dtype: one `measure()` now and then, the best of all counts."""

    def __init__(self, dtype: str, threads: int = 1) -> None:
        scalar = types.float32 if dtype == "float32" else types.float64
        width = VECS * lanes(scalar)
        self.multiply, self.threads, self.best = _kernel(scalar), threads, 0.0
        self.flops = 2 * ROWS * width * DEPTH
        self.operands = [(aligned((ROWS, DEPTH), dtype), aligned((DEPTH, width), dtype), aligned((ROWS, width), dtype))
                         for _ in range(threads)]
        for a, b, _ in self.operands:           # 1/64 * 1: no overflow, no denormals
            a[:], b[:] = 1 / DEPTH, 1
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._run(0, 1)
        assumed = 50e9                          # FLOP/s; any rough number makes a first piece
        self.times = max(1, int(assumed * CHUNK / self.flops))
        self.times = max(1, int(self.times * CHUNK / min(self._seconds() for _ in range(5))))

    def _run(self, thread: int, times: int) -> None:
        self.multiply(*(x.ctypes.data for x in self.operands[thread]), times)

    def _seconds(self) -> float:
        start = time.perf_counter()
        if self.pool is None:
            self._run(0, self.times)
        else:
            list(self.pool.map(self._run, range(self.threads), [self.times] * self.threads))
        return time.perf_counter() - start

    def measure(self, pieces: int = 5) -> float:
        """GFLOP/s of the best piece of these; `best` keeps the best of all."""
        now = max(self.flops * self.times * self.threads / self._seconds() for _ in range(pieces)) / 1e9
        self.best = max(self.best, now)
        return now
