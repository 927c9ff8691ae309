"""Turn pairs of channels by angles: one pass over x, in place or from x to y.

    pair (a, b) of a row    a cos - b sin, b cos + a sin

    halves        a = x[c], b = x[c + pairs]            table row: cos of all pairs, sin of all pairs
    neighbours    a = x[2 c], b = x[2 c + 1]            table row: cos cos of each pair, -sin sin of each pair

so that with neighbours a register is x cos + (x with neighbours swapped) sin. Rows of a table are padded to whole registers.
The channels behind the pairs are copied.

Rows of x are taken in blocks, head after head: what the table has for a block then comes from L1 for all heads but the first.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
from numba import types
from numpy.typing import NDArray

from ..fpu import guarded
from ..jit import kernel, native
from ..simd.vec import Shape, lanes, lanes_of, lanewise, load, load_part, size_of, store, store_part, swap_neighbours
from ..tiles.job import address
from ..tiles.record import Record
from .launch import SCALARS

# Rows of a block: with 64 channels their table takes 8 KB.
ROWS = 32
# What one native call may turn before it returns to Python, which is when Ctrl-C gets through: about 20 ms.
SLICE_BYTES = 1 << 27

TURN = Record("Turn", """
    done entry budget first
    heads rows blocks pairs rest
    x x_b x_h x_s  y y_b y_h y_s  table table_b table_s sin
""")
"""
    done         what the last native call returned; nobody reads it
    entry        the pass, by jit.native     first budget    which blocks of rows it takes, and how many
    heads rows   H and S of x (B, H, S, D)   blocks          blocks of rows of a head
    pairs rest   pairs of a row, channels behind them; 0 where they are in place already
    x_b x_h x_s  bytes from item to item, head to head, row to row of x; of tables likewise
    sin          bytes from a table row's first cos to its first sin
"""

_first = lanewise(lambda a, b, cos, sin: a * cos - b * sin)
_second = lanewise(lambda a, b, cos, sin: b * cos + a * sin)
_both = lanewise(lambda x, swapped, cos, sin: x * cos + swapped * sin)


@kernel
def turn_halves(full, x, y, table, sin, pairs):
    """A row whose pairs are (c, c + pairs)."""
    L, item = lanes_of(full), size_of(full)
    half, c = pairs * item, 0
    while c + L <= pairs:
        at = c * item
        u, v = load(full, table + at, 0), load(full, table + sin + at, 0)
        a, b = load(full, x + at, 0), load(full, x + half + at, 0)
        store(_first(a, b, u, v), y + at, 0)
        store(_second(a, b, u, v), y + half + at, 0)
        c += L
    if c < pairs:
        at, count = c * item, pairs - c
        u, v = load(full, table + at, 0), load(full, table + sin + at, 0)
        a, b = load_part(full, x + at, 0, count), load_part(full, x + half + at, 0, count)
        store_part(_first(a, b, u, v), y + at, 0, count)
        store_part(_second(a, b, u, v), y + half + at, 0, count)


@kernel
def turn_neighbours(full, x, y, table, sin, pairs):
    """A row whose pairs are (2 c, 2 c + 1). A register has an even number of channels, so no pair is cut."""
    L, item = lanes_of(full), size_of(full)
    c, end = 0, 2 * pairs
    while c + L <= end:
        at = c * item
        a = load(full, x + at, 0)
        store(_both(a, swap_neighbours(a), load(full, table + at, 0), load(full, table + sin + at, 0)), y + at, 0)
        c += L
    if c < end:
        at, count = c * item, end - c
        a = load_part(full, x + at, 0, count)
        store_part(_both(a, swap_neighbours(a), load(full, table + at, 0), load(full, table + sin + at, 0)), y + at, 0, count)


@kernel
def copy(full, x, y, count):
    """y[0:count] = x[0:count]."""
    L, item = lanes_of(full), size_of(full)
    c = 0
    while c < count:
        store_part(load_part(full, x + c * item, 0, count - c), y + c * item, 0, count - c)
        c += L


def turn(job, unused, budget, full, neighbours):
    """`budget` blocks of rows from job.first on. Types alone: full: a register; neighbours: int64 if they are the pairs."""
    # Once, not for each row: as far as LLVM knows, what is written to y may be the job.
    x_s, y_s, table_s, sin, pairs, rest = job.x_s, job.y_s, job.table_s, job.sin, job.pairs, job.rest
    for task in range(job.first, job.first + budget):
        b, s0 = task // job.blocks, task % job.blocks * ROWS
        rows = min(ROWS, job.rows - s0)
        for h in range(job.heads):
            x, y = job.x + b * job.x_b + h * job.x_h + s0 * x_s, job.y + b * job.y_b + h * job.y_h + s0 * y_s
            table = job.table + b * job.table_b + s0 * table_s
            for _ in range(rows):
                if neighbours is None:
                    turn_halves(full, x, y, table, sin, pairs)
                else:
                    turn_neighbours(full, x, y, table, sin, pairs)
                if rest > 0:
                    done = 2 * pairs * size_of(full)
                    copy(full, x + done, y + done, rest)
                x, y, table = x + x_s, y + y_s, table + table_s
    return budget


@functools.cache
def _guarded():
    kind = ctypes.POINTER(TURN.memory)
    return ctypes.CFUNCTYPE(ctypes.c_int32, kind, ctypes.c_void_p, kind, ctypes.c_void_p)(native(guarded, (TURN, types.int64)))


@functools.cache
def compile_turn(dtype: np.dtype, neighbours: bool) -> int:
    """The address of the pass for such numbers and pairs."""
    there = types.int64 if neighbours else types.none
    _guarded()
    return native(turn, (TURN, types.int64, types.int64, Shape(SCALARS[dtype], 1, 1), there))


def padded(count: int, dtype: np.dtype) -> int:
    """How long a row of `count` numbers of a table is: whole registers."""
    L = lanes(SCALARS[dtype])
    return -(-count // L) * L


def turned(x: NDArray, y: NDArray, table: NDArray, pairs: int, neighbours: bool) -> None:
    """Write x (B, H, S, D) to y, which is x or shares no memory with it, its first 2 pairs channels turned.

    table    (B or 1, S, 2, n): cos and sin, n >= pairs or 2 pairs numbers, padded

    The last axes have no gaps; everything has one dtype.
    """
    (B, H, S, D), blocks = x.shape, -(-x.shape[2] // ROWS)
    if not x.size:
        return
    there = address(x) == address(y)
    job = TURN.memory(entry=compile_turn(x.dtype, neighbours), heads=H, rows=S, blocks=blocks, pairs=pairs,
                      rest=0 if there else D - 2 * pairs, x=address(x), y=address(y), table=address(table),
                      table_b=table.strides[0] if len(table) > 1 else 0, table_s=table.strides[1], sin=table.strides[2])
    job.x_b, job.x_h, job.x_s, _ = x.strides
    job.y_b, job.y_h, job.y_s, _ = y.strides
    step = max(1, SLICE_BYTES // (ROWS * H * D * x.itemsize))
    for job.first in range(0, B * blocks, step):
        job.budget = min(step, B * blocks - job.first)
        _guarded()(job, None, job, None)
