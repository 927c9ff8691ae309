"""Recurrent networks as fast as they can honestly be made on a CPU: what attention is raced against.

    h_t = f(x_t w_x + h_{t-1} w_h + b)          Elman, GRU, LSTM, and a bidirectional LSTM; the formulas: reference/rnn.py

What does not wait for anything, x w_x of all words, is one product of matrices (BLAS, through NumPy). What is left for each
word is h w_h, which waits for the word before. At batch 1 that is a matrix times a vector: w_h is read once a word, 1 MiB at
512 units and as many again for each gate, and this reading is what a word costs. At batch 16 it is a small product of matrices.

How it is read
    Units stand in the lanes. A block of units, its gates one behind the other, is one piece of memory that is read in order, and
    its sums stay in registers for all of h: at batch 1 eight vectors of units, at batch 16 three vectors for eight sequences.

         w_h (H, G H)                 packed: blocks x gates x H x width, each gate's part in order
         gate 0    gate 1
         u u u u | u u u u            block 0, gate 0: H rows of a block's width | block 0, gate 1 | block 1, gate 0 ...

    Every second word reads the blocks last to first: what the word before has read last is still in the L2 cache, and a w_h that
    is somewhat larger than that (GRU 3 MiB, LSTM 4 MiB, where L2 has 2) comes from farther away only in part.
Threads share the units, never the words: each reads its part of w_h and makes its part of h, and they meet once a word, in a
    loop that spins. The two directions of a bidirectional LSTM do not wait for each other: a thread each.

Compiled with Numba's own njit and not fastattn.jit, whose cache knows the package's files, and not this one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from fastattn.machine import LINE, TARGET
from fastattn.simd.math import LOG2_E, exp2_of, tanh, tanh_of
from fastattn.simd.vec import (
    Shape,
    add,
    arrive,
    lanes,
    lanewise,
    load,
    number,
    put_number,
    rank1,
    store,
    store_part,
    transpose,
    zeros,
)

from .cases import GATES
from .peak import aligned

F32 = types.float32
LANES = lanes(F32)
# 8 sums in flight: an FMA takes 4 cycles, and two begin in each.
MOST_VECS = 8
# A thread that waits for so many looks gives the processor away: where threads share one, the other could not go on.
PATIENCE = 10_000


class Weights(NamedTuple):
    """One direction's numbers: w_x (d, G H), w_h (H, G H), b_x and b_h (G H,)."""

    w_x: NDArray
    w_h: NDArray
    b_x: NDArray
    b_h: NDArray

    @classmethod
    def random(cls, kind: str, d: int, H: int, seed: int = 0) -> Weights:
        """Uniform within 1 / sqrt(H), as torch begins."""
        rng, n = np.random.default_rng(seed), GATES[kind] * H
        return cls(*(rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(H)) for shape in ((d, n), (H, n), n, n)))


# ---- kernels -----------------------------------------------------------------------------------------------------------
def _sigmoid_of(x):
    """1 / (1 + 2^(-x log2 e)); exp2 ends at 127.5, and 1 / 2^126 is as good as 0."""
    power = x * -LOG2_E
    power = exp2_of(power.like(126.0).where(power > 126.0, power))
    return x.like(1.0) / (power + 1.0)


sigmoid = lanewise(_sigmoid_of)
# n = tanh(x_n + r h_n);  h = n + z (h - n), which is (1 - z) n + z h
gru_new = lanewise(lambda x, r, h: tanh_of(r.fma(h, x)))
gru_mixed = lanewise(lambda n, z, h: z.fma(h - n, n))
# c = f c + i g;  h = o tanh(c)
lstm_memory = lanewise(lambda f, c, i, g: f.fma(c, i * g))
lstm_shown = lanewise(lambda o, c: o * tanh_of(c))


def _shape(rows: int, vecs: int) -> Any:
    """A block of registers as a value for kernels."""
    @intrinsic
    def shape(typingctx):
        return Shape(F32, rows, vecs)(), lambda context, *_: context.get_dummy_value()

    return shape


_row, _square = _shape(1, 1), _shape(LANES, 1)


@njit(nogil=True)
def _at(address):
    return load(_row(), address, 0)


# A cell makes one vector of units of one sequence: of x w_x (x, gates x_gate bytes apart), of h w_h (z, z_gate apart), of the
# biases (b, as x; those of h, which only the GRU keeps apart, behind those of x), of h before, and c, which it changes.
@njit(nogil=True)
def _elman(x, x_gate, z, z_gate, b, h, c):
    return tanh(add(add(_at(x), _at(b)), _at(z)))


@njit(nogil=True)
def _gru(x, x_gate, z, z_gate, b, h, c):
    r = sigmoid(add(add(_at(x), _at(b)), _at(z)))
    update = sigmoid(add(add(_at(x + x_gate), _at(b + x_gate)), _at(z + z_gate)))
    h_n = add(_at(z + 2 * z_gate), _at(b + 3 * x_gate))
    n = gru_new(add(_at(x + 2 * x_gate), _at(b + 2 * x_gate)), r, h_n)
    return gru_mixed(n, update, _at(h))


@njit(nogil=True)
def _lstm(x, x_gate, z, z_gate, b, h, c):
    i = sigmoid(add(add(_at(x), _at(b)), _at(z)))
    f = sigmoid(add(add(_at(x + x_gate), _at(b + x_gate)), _at(z + z_gate)))
    g = tanh(add(add(_at(x + 2 * x_gate), _at(b + 2 * x_gate)), _at(z + 2 * z_gate)))
    o = sigmoid(add(add(_at(x + 3 * x_gate), _at(b + 3 * x_gate)), _at(z + 3 * z_gate)))
    memory = lstm_memory(f, _at(c), i, g)
    store(memory, c, 0)
    return lstm_shown(o, memory)


CELLS = {"elman": _elman, "gru": _gru, "lstm": _lstm}

_yield_processor = types.ExternalFunction("sched_yield", types.int32())


@intrinsic
def _arrived(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), "seq_cst", 8)

    return types.int64(address), codegen


@njit(nogil=True)
def _meet(place, count):
    """Go on when `count` have arrived."""
    arrive(place)
    looks = 0
    while _arrived(place) < count:
        looks += 1
        if looks > PATIENCE:
            _yield_processor()


@njit(nogil=True)
def _turn(h, h_row, columns, B, block):
    """h (B, units) as columns (units, B), for `block` bytes of units."""
    if B == 1:
        for unit in range(0, block, LANES * 4):
            store(_at(h + unit), columns + unit, 0)
    elif B % LANES == 0:
        for r in range(0, B, LANES):
            for unit in range(0, block, LANES * 4):
                square = transpose(load(_square(), h + r * h_row + unit, h_row))
                store(square, columns + unit * B + r * 4, B * 4)
    else:
        for r in range(B):
            for unit in range(0, block, 4):
                put_number(_row(), columns + unit * B + r * 4, number(_row(), h + r * h_row + unit))


@functools.cache
def _recurrence(kind: str, rows: int, vecs: int) -> Callable:
    """The loop over words, for batches that are a multiple of `rows` and blocks of `vecs` vectors."""
    cell, gates, shape = CELLS[kind], GATES[kind], _shape(rows, vecs)
    block, vector = vecs * LANES * 4, LANES * 4             # bytes

    @njit(nogil=True)
    def product(h, h_step, w, H, z):
        """z[r, :] = sum over k of h[k, r] w[k, :]."""
        t = zeros(shape())
        for _ in range(H):
            t = rank1(t, h, 4, w)
            h += h_step
            w += block
        store(t, z, block)

    @njit(nogil=True)
    def run(x, x_item, x_word, x_gate, w, b, y, y_item, y_word, h, h_row, columns, next_columns, c, z, B, S, H, first, last,
            backwards, meet, threads):
        """Units of the blocks first <= u < last of all words, from the state h (B, H) = columns (H, B) before the first."""
        z_gate, part, column = B * block, H * block, B * 4
        for n in range(S):
            word = S - 1 - n if backwards else n
            for m in range(last - first):
                u = last - 1 - m if n & 1 else first + m
                for g in range(gates):
                    for r in range(0, B, rows):
                        product(columns + r * 4, column, w + (u * gates + g) * part, H, z + g * z_gate + r * block)
                for r in range(B):
                    for offset in range(0, block, vector):
                        unit = u * block + offset
                        new = cell(x + r * x_item + word * x_word + unit, x_gate, z + r * block + offset, z_gate, b + unit,
                                   h + r * h_row + unit, c + r * h_row + unit)
                        store(new, h + r * h_row + unit, 0)
                        store_part(new, y + r * y_item + word * y_word + unit, 0, H - unit // 4)
                _turn(h + u * block, h_row, next_columns + u * block * B, B, block)
            if threads > 1:
                _meet(meet, threads * (n + 1))
            columns, next_columns = next_columns, columns

    return run


# ---- layers ------------------------------------------------------------------------------------------------------------
def blocking(batch: int) -> tuple[int, int]:
    """(rows, vecs) of the sums that stay in registers: rows x vecs of them, a row of w_h and one number of h.

    8 x 3 ran at 197 GFLOP/s, 16 x 1 at 160, 4 x 4 at 166 (16 x 512 times 512 x 512, one core of an Intel Xeon, peak 230).
    """
    rows = max(n for n in range(1, TARGET.registers // 4 + 1) if batch % n == 0)
    return rows, max(1, min(MOST_VECS, (TARGET.registers - 1) // (rows + 1)))


class _Direction:
    """One recurrence, its weights packed for a batch."""

    def __init__(self, kind: str, weights: Weights, batch: int, backwards: bool) -> None:
        self.kind, self.batch, self.backwards = kind, batch, backwards
        self.H, gates = len(weights.w_h), GATES[kind]
        rows, vecs = blocking(batch)
        self.width = vecs * LANES
        self.blocks = -(-self.H // self.width)
        self.units = self.blocks * self.width               # H, and units whose weights, and so states, are 0
        self.run = _recurrence(kind, rows, vecs)

        def padded(x):
            x = x.reshape(*x.shape[:-1], gates, self.H)
            return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, self.units - self.H)])

        self.w_x = padded(weights.w_x).reshape(-1, gates * self.units)
        w_h = padded(weights.w_h).reshape(self.H, gates, self.blocks, self.width)
        self.w = aligned((self.blocks, gates, self.H, self.width), "float32")
        self.w[...] = w_h.transpose(2, 1, 0, 3)
        b_x, b_h = padded(weights.b_x), padded(weights.b_h)
        kept_apart = b_h[2:].copy() if kind == "gru" else b_h[:0]
        b_h = b_h if kind != "gru" else np.concatenate([b_h[:2], 0 * b_h[2:]])
        self.b = np.concatenate([b_x + b_h, kept_apart])
        # Rows a line more than a multiple of 4 KiB apart: those of 16 sequences would share two sets of the cache.
        self.state = aligned((4, batch, self.units + LINE // 4), "float32")
        self.meet = aligned((LINE // 4,), "float32")

    def go(self, x: NDArray, y: NDArray, thread: int, threads: int, z: NDArray) -> None:
        """x (B, S, gates, units) is x w_x; y (B, S, H) becomes h, in this thread's blocks."""
        h, columns, next_columns, c = (part.ctypes.data for part in self.state)
        first, last = (self.blocks * n // threads for n in (thread, thread + 1))
        self.run(x.ctypes.data, *x.strides[:3], self.w.ctypes.data, self.b.ctypes.data, y.ctypes.data, *y.strides[:2],
                 h, self.state.strides[1], columns, next_columns, c, z.ctypes.data, self.batch, x.shape[1], self.H,
                 first, last, self.backwards, self.meet.ctypes.data, threads)

    def begin(self) -> None:
        self.state[...], self.meet[...] = 0, 0


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


class Recurrent:
    """A recurrent layer: layer(x) of x (S, d) or (B, S, d), float32, gives every word's h, (S, H) or (B, S, H).

    kind      elman, gru or lstm
    weights   of one direction; with those of a second, which reads last to first: (..., S, 2 H)
    """

    def __init__(self, kind: str, *weights: Weights) -> None:
        self.kind, self.weights, self.H = kind, weights, len(weights[0].w_h)
        self._batch = 0
        self._memory = np.empty(0, np.float32)

    @classmethod
    def random(cls, kind: str, d_model: int, directions: int = 1, seed: int = 0) -> Recurrent:
        return cls(kind, *(Weights.random(kind, d_model, d_model, seed + n) for n in range(directions)))

    def __call__(self, x: NDArray, threads: int = 1) -> NDArray:
        if x.ndim == 2:
            return self(x[None], threads)[0]
        B, S, _ = x.shape
        if self._batch != B:                                # packed anew for another batch; a model has one
            self._directions = [_Direction(self.kind, w, B, backwards=n == 1) for n, w in enumerate(self.weights)]
            self._w_x = np.concatenate([direction.w_x for direction in self._directions], axis=1)
            self._batch = B
        units, count, gates = self._directions[0].units, len(self._directions), GATES[self.kind]
        every = self._projections(x.reshape(B * S, x.shape[2])).reshape(B, S, count, gates, units)
        y = np.empty((B, S, count, self.H), np.float32)
        for direction in self._directions:
            direction.begin()
        each = max(1, threads // count)

        def run(n: int, thread: int) -> None:
            direction = self._directions[n]
            z = aligned((gates, B, direction.width), "float32")
            direction.go(every[:, :, n], y[:, :, n], thread, each, z)

        jobs = [(n, thread) for n in range(count) for thread in range(each)]
        if threads == 1:
            for job in jobs:
                run(*job)
        else:
            # A thread for each, as they wait for each other. The caller is one: two that wake up may share a core for 1 ms.
            others = [_pool(len(jobs)).submit(run, *job) for job in jobs[1:]]
            run(*jobs[0])
            for other in others:
                other.result()
        return y.reshape(B, S, count * self.H)

    def _projections(self, words: NDArray) -> NDArray:
        """words w_x, of all gates and directions, in memory kept between calls: new memory costs a page fault every 4 KiB."""
        shape = len(words), self._w_x.shape[1]
        if self._memory.size < shape[0] * shape[1]:
            self._memory = np.empty(shape[0] * shape[1], np.float32)
        return np.matmul(words, self._w_x, out=self._memory[:shape[0] * shape[1]].reshape(shape))
