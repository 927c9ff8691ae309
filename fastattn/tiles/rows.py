"""Where things live: the rows of a tile of queries, and the keys that each of them sees.

A tile has W queries of the heads that share one kv head: row r of all is query r % Sq of head r // Sq, so that a group's
heads fill tiles together. Each row has its addresses and its run of keys, first <= j < last, in the tables of `WORK`.
"""

from __future__ import annotations

from numba import types

from ..jit import kernel
from ..simd.math import FORMATS, LOG2_E
from ..simd.vec import INF, WORDS, double_of, lanes_of, number, put_ladder, put_number, put_word, size_of, vecs_of, word

FAR = 1 << 62                   # behind every key
LARGEST_32, LARGEST_64 = (FORMATS[scalar].largest for scalar in (types.float32, types.float64))


@kernel
def ladder(table, rows, at, step):
    """table[r] = at + r step, and up to WORDS - 1 more."""
    for r in range(0, rows, WORDS):
        put_ladder(table + 8 * r, at + r * step, step)


@kernel
def copy_words(table, rows, source):
    """table[r] = source[r]."""
    for r in range(rows):
        put_word(table + 8 * r, word(source + 8 * r))


@kernel
def place_rows(full, job, work, b, h, row0, rows, q0, Sq, Sk):
    """Fill the tables for `rows` queries from row0 on of kv head h of item b.

    Rows beyond have an empty run; they read the first row's q, bias and mask, and write to their own row of o, in scratch.
    """
    W, item = vecs_of(full) * lanes_of(full), size_of(full)
    head, i, r = h * job.group + row0 // Sq, row0 % Sq, 0
    while r < rows:
        n, at = min(rows - r, Sq - i), 8 * r
        ladder(work.q_at + at, n, job.q + b * job.q_b + head * job.q_h + (q0 + i) * job.q_s, job.q_s)
        ladder(work.o_at + at, n, job.o + b * job.o_b + head * job.o_h + (q0 + i) * job.o_s, job.o_s)
        if job.lse != 0:
            ladder(work.lse_at + at, n, job.lse + b * job.lse_b + head * job.lse_h + (q0 + i) * job.lse_s, job.lse_s)
        if job.bias != 0:
            ladder(work.bias_at + at, n, job.bias + b * job.bias_b + head * job.bias_h + i * job.bias_s, job.bias_s)
        if job.seen != 0:
            ladder(work.seen_at + at, n, job.seen + b * job.seen_b + head * job.seen_h + i * job.seen_s, job.seen_s)
        if job.lo != 0:
            copy_words(work.first + at, n, job.lo + b * job.run_b + 8 * (q0 + i))
            copy_words(work.last + at, n, job.hi + b * job.run_b + 8 * (q0 + i))
        else:
            ladder(work.first + at, n, 0, 0)
            ladder(work.last + at, n, Sk, 0)
        if job.slopes != 0:
            ladder(work.where + at, n, i + Sk - Sq, 1)
            given = number(double_of(full), job.slopes + 8 * head)
            slope, rest = -LOG2_E * given, 0.0
            if abs(given) < INF:                # what overflows is the largest number, as infinity times distance 0 is NaN
                largest = LARGEST_32 if item == 4 else LARGEST_64
                slope = min(max(slope, -largest), largest)
                put_number(full, work.slope + r * item, slope)
                rest = slope - number(full, work.slope + r * item)
            for x in range(r, r + n):
                put_number(full, work.slope + x * item, slope)
                put_number(full, work.slope_rest + x * item, rest)
        r, i, head = r + n, 0, head + 1
    at, beyond = 8 * rows, W - rows
    ladder(work.q_at + at, beyond, word(work.q_at), 0)
    ladder(work.o_at + at, beyond, work.o + rows * work.o_row, work.o_row)
    if job.bias != 0:
        ladder(work.bias_at + at, beyond, word(work.bias_at), 0)
    if job.seen != 0:
        ladder(work.seen_at + at, beyond, word(work.seen_at), 0)
    if job.slopes != 0:
        ladder(work.where + at, beyond, 0, 0)
    ladder(work.first + at, beyond, 0, 0)
    ladder(work.last + at, beyond, 0, 0)


@kernel
def seen_by_any(work, row0, row1):
    """The keys that some of these rows see lie in [first, last); (FAR, 0) if there is none."""
    first, last = FAR, 0
    for r in range(row0, row1):
        lo, hi = word(work.first + 8 * r), word(work.last + 8 * r)
        if lo < hi:
            first, last = min(first, lo), max(last, hi)
    return first, last


@kernel
def seen_by_all(work, rows):
    """The keys that every one of the rows sees are [first, last)."""
    first, last = 0, FAR
    for r in range(rows):
        first, last = max(first, word(work.first + 8 * r)), min(last, word(work.last + 8 * r))
    return first, last
