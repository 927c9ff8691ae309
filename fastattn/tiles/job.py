"""What a call is to the kernels (`JOB`), and the scratch memory of one thread (`WORK`).

All places and distances are bytes, all offsets int64: a row may lie more than 2^32 elements behind the first.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import numpy as np
from numba import types

from ..machine import LINE, TARGET
from ..simd.vec import lanes, size
from .record import Record
from .sizes import BLOCK, GRAIN, ROWS, VECS, queries


class Sizes(NamedTuple):
    """How much there is of everything; Sq and Sk are the longest where sequences differ."""

    B: int
    Hq: int
    Hkv: int
    Sq: int
    Sk: int
    D: int
    Dv: int


JOB = Record("Job", """
    taken tasks entry budget items heads group Sq Sk D Dv sequences
    q q_b q_h q_s  k k_b k_h k_s  v v_b v_h v_s  o o_b o_h o_s  lse lse_b lse_h lse_s
    lo hi run_b  seen seen_b seen_h seen_s seen_j  bias bias_b bias_h bias_s bias_j
    slopes sink tail scale:d cap:d
    splits states state_bytes arrived
""")
"""
    taken        the next task; first, as it is taken atomically through the job's address
    tasks        how many there are
    entry        the forward pass, by jit.native       budget     tasks that it takes before it returns to Python
    items        B        heads  Hkv        group  Hq / Hkv
    sequences    0, or five int64 for each b: first query row, first key row, Sq, Sk, first task
    lo hi        0, or int64 runs (B or 1, Sq)          run_b      0 or the bytes of a row of them
    seen bias    0, or a mask (bytes) and a bias; _j: bytes from key to key, 0 or one element
    slopes sink  0, or (Hq,) float64
    tail         numbers in the last vector of a row of v
    x_b x_h x_s  bytes from item to item, head to head, row to row of x
    scale cap    as they were given; NaN: 1 / sqrt(D), no softcap. What follows from them is computed in the kernel's rounding
                 mode

    for few queries
    splits       pieces of each head's keys             state_bytes  of what is known of one piece
    states       0, or a state for each piece: rows of kept, of l, of o / l for each query
    arrived      an int64 for each head: how many of its pieces are done
"""

_STATE = "kept top part l l_far sees lo hi position slope slope_rest factor"
_TABLE = "q_at o_at lse_at bias_at seen_at first last where"
_WORDS = "vec_first vec_last ahead ahead_bytes"
_LANES = "lane_top lane_part lane_l lane_sees"
WORK = Record("Work", f"done {_STATE} {_TABLE} {_WORDS} {_LANES} sums qt s addend tail o o_far v q_row o_row v_row")
"""
    done                what the last native call returned; nobody reads it

    a number for each query
    kept top            taken off scores; the largest score so far: micro/softmax.py
    part                the sum of this block's weights; after `close` 1 / l
    l l_far             sums of weights: of this group of blocks; of the groups before
    sees                -inf for a query that has seen no key
    lo hi position      first, last and where, counted from the block's first key
    slope slope_rest    -log2 e times ALiBi's slope, and what rounding has left of it
    factor              what moved weights are multiplied by

    an int64 for each query
    q_at ... seen_at    addresses of its rows      first last where    its run of keys, and its place among them

    an int64 for each vector of queries, or one
    vec_first vec_last  the keys that some query of the vector sees lie between
    ahead ahead_bytes   where the next task's queries are, and how much of each is to be fetched now

    blocks
    qt s addend tail    qᵀ (D, W), weights (BLOCK, W), what is added (GRAIN, W), the last keys, copied
    o o_far             sums of p v: of this group, of those before; rows of o_row bytes
    v                   a block's values, healed or shrunk; rows of v_row bytes

    for few queries, of which qt holds rows of q_row bytes, and s rows of weights (rows, BLOCK)
    lane_top ...        top, part, l and sees before their lanes are folded: a register for each query
    sums                products of a register of keys and ROWS queries, lane by lane
"""


def scratch(scalar: types.Type, D: int, Dv: int) -> Any:
    """The record, which keeps the memory behind it, for one thread: D = Dv = 64 in float32 takes 106 KB under AVX-512."""
    item, W = size(scalar), queries(scalar)
    width = -(-max(Dv, 1) // lanes(scalar)) * lanes(scalar)
    depth = -(-max(D, 1) // lanes(scalar)) * lanes(scalar)
    # A ladder ends with a whole register.
    sizes = dict.fromkeys(_STATE.split(), W * item) | dict.fromkeys(_TABLE.split(), W * 8 + LINE)
    sizes |= dict.fromkeys(_WORDS.split(), VECS * 8)
    sizes |= dict.fromkeys(_LANES.split(), lanes(scalar) * TARGET.vector_bytes)
    sizes |= {"sums": ROWS * lanes(scalar) * TARGET.vector_bytes}
    sizes |= {"qt": depth * W * item, "s": BLOCK * W * item, "addend": GRAIN * W * item, "tail": GRAIN * depth * item,
              "o": W * width * item, "o_far": W * width * item, "v": BLOCK * width * item}
    places, end = {}, 0
    for name, bytes_ in sizes.items():
        places[name] = end
        end += -(-bytes_ // LINE) * LINE
    memory = np.zeros(end + LINE, np.uint8)
    start = -(-memory.ctypes.data // LINE) * LINE               # whole vectors that do not cross a cache line
    places = {name: start + at for name, at in places.items()}
    work = WORK.memory(q_row=depth * item, o_row=width * item, v_row=width * item, **places)
    work.keeps = memory
    return work


# An array's first field behind what every Python object has: char *data of PyArrayObject, part of NumPy's binary interface.
_DATA = object.__basicsize__
_word = ctypes.c_size_t.from_address


def address(x: np.ndarray) -> int:
    """Where an array's data begins. x.ctypes.data says the same in six times the time, and a call needs five."""
    return _word(id(x) + _DATA).value


_probe = np.zeros(1)
if address(_probe) != _probe.ctypes.data:
    def address(x: np.ndarray) -> int:
        """Where an array's data begins."""
        return x.ctypes.data


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that begins a cache line. NumPy's begin 16 bytes behind one, and every vector written costs two: 3 % at S 64."""
    memory = np.empty(math.prod(shape) * dtype.itemsize + LINE, np.uint8)
    return np.ndarray(shape, dtype, memory, -address(memory) % LINE)
