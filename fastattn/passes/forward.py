"""The forward pass: one tile of queries over its keys, block by block: score, softmax, mix.

    for each task (item, kv head, tile of W queries), heaviest first within a head:
        qᵀ packed, scaled by scale log2 e
        for each block of 64 keys, counted from key 0, that any of the queries sees:
            score and weigh it, 16 keys (more where all is seen) and 1, 2 or WIDEST vectors of queries at a time:
                                                     all queries see all 16   no mask code
                                                     some do                  runs: keys are compared with their ends
                                                                              extra: the bias, -inf where hidden, is
                                                                              laid out first and added, as is ALiBi
                                                     none                     zeros
            if a largest score moved too far: move `kept`, and the weights with it (or weigh the block again)
            mix the block into o; the last one: o / l to where it belongs
        lse

    While a block is scored its v comes into the cache, and while the last one is, the next task's queries.

Hidden values are never seen. A hidden score is replaced, whatever it is; a hidden v is multiplied by 0, so where a block was
scored with mask code its v is searched for NaN and inf, and where there are any they are mixed by hand into the rows that see
them.

Weights are not divided by their sum before they are mixed, so a sum may overflow where the result does not. What came out
NaN or inf is made again, with v a 2^80th of itself.
"""

from __future__ import annotations

import math

import numpy as np

from ..jit import kernel
from ..machine import LINE
from ..micro.mix import is_broken, mix
from ..micro.score import between, score
from ..micro.softmax import LOST, MOVED, STAYS, inverse, moved_if_far
from ..simd.math import LOG2_E, exp2, kept_finite
from ..simd.vec import (
    INF,
    add,
    any_lane,
    byte,
    bytes_of,
    column_of,
    double_of,
    fetch,
    fetch_to_write,
    fill,
    lane_of,
    lanes_of,
    lanewise,
    load,
    load_mask_table,
    load_offsets,
    load_part,
    load_table,
    multiply,
    number,
    numbered,
    put_number,
    put_word,
    row_of,
    rowmax,
    rows_of,
    scale_rows,
    scaled,
    size_of,
    square_of,
    store,
    store_table,
    subtract,
    take,
    transpose,
    vecs_of,
    word,
    zeros,
)
from ..tiles.rows import FAR, place_rows, seen_by_all, seen_by_any
from ..tiles.sizes import BLOCK, GRAIN, GROUP, RUN, WIDEST, rest_of, score_one, score_two, score_widest

LN_2 = math.log(2)
SHRINK = 2.0**-80

# A run held between -1 and BLOCK + 1 is empty if it was, or lies apart from the block; one that touches it sees keys next door.
sees_some = lanewise(lambda sees, lo, hi: sees.like(0.0).where(lo < hi, sees))
# Not their sum: a hidden bias may be NaN.
shown = lanewise(lambda a, mask: a.where(mask.differs(-INF), -INF))
# What is made again goes where what was there is NaN or inf: the other channels of the row have nothing to mend.
mended = lanewise(lambda new, old: new.where(old.broken(), old))
# What overflows to -inf would hide the key.
in_log2 = lanewise(lambda bias: kept_finite(bias * LOG2_E, bias.magnitude().differs(INF)))
# 0 x is NaN where x is NaN or inf, and 0 elsewhere.
poisoned = lanewise(lambda x, y: y.fma(0.0, x))
is_nan = any_lane(lambda x: x.differs(x))
healed = lanewise(lambda x: x.like(0.0).where(x.broken(), x))


# ---- queries ---------------------------------------------------------------------------------------------------------
@kernel
def pack(full, job, work, factor, rows):
    """qᵀ (D, W) times the factor, a square of lanes at a time.

    Rows beyond repeat the tile's first query (`place_rows`); vectors of which no row is there are not written.
    """
    square, L = square_of(full), lanes_of(full)
    W = bytes_of(full)
    for v in range(-(-rows // L)):
        for d in range(0, job.D, L):
            t = load_table(square, work.q_at + 8 * v * L, d * size_of(full), job.D - d)
            store(scaled(transpose(t), factor), work.qt + d * W + v * bytes_of(square), W)


# ---- what is added to scores -------------------------------------------------------------------------------------------
@kernel
def place_edges(full, work, extra, j0, vecs):
    """lo, hi and position of every query relative to key j0, as numbers; without `extra` also who sees a key at all."""
    lane, L, V = lane_of(full), lanes_of(full), bytes_of(lane_of(full))
    for v in range(vecs):
        table = 8 * v * L
        lo = load_offsets(lane, work.first + table, j0, -1, BLOCK + 1)
        hi = load_offsets(lane, work.last + table, j0, -1, BLOCK + 1)
        store(lo, work.lo + v * V, 0)
        store(hi, work.hi + v * V, 0)
        if extra is not None:
            store(load_offsets(lane, work.where + table, j0, -FAR, FAR), work.position + v * V, 0)
        else:
            store(sees_some(load(lane, work.sees + v * V, 0), lo, hi), work.sees + v * V, 0)


@kernel
def place_addend(full, job, work, j0, j, n, v0, v1):
    """addend (GRAIN, W) for keys j0 + j and on, vectors v0 to v1 of queries: the bias, -inf where a key is hidden."""
    lane, square, L, V = lane_of(full), square_of(full), lanes_of(full), bytes_of(lane_of(full))
    W = bytes_of(full)
    for v in range(v0, v1):
        lo, hi, sees = load(lane, work.lo + v * V, 0), load(lane, work.hi + v * V, 0), load(lane, work.sees + v * V, 0)
        for g in range(0, GRAIN, L):
            t = zeros(square)
            if job.bias != 0:
                where, count = (j0 + j + g) * job.bias_j, n - g if job.bias_j != 0 else L
                t = in_log2(transpose(load_table(square, work.bias_at + 8 * v * L, where, count)))
            if job.seen != 0:
                where, count = (j0 + j + g) * job.seen_j, n - g if job.seen_j != 0 else L
                t = shown(t, transpose(load_mask_table(square, work.seen_at + 8 * v * L, where, count)))
            t = between(t, numbered(square, j + g), lo, hi)
            sees = rowmax(sees, t)
            store(t, work.addend + g * W + v * V, W)
        store(sees, work.sees + v * V, 0)


# ---- score -------------------------------------------------------------------------------------------------------------
@kernel
def score_vectors(full, job, work, cap, extra, partly, k, k_row, j, keys, v0, v1, v):
    """The keys j .. j + keys of a block for the vectors v0 to v1 of queries; partly: None, or True where each may be hidden."""
    v_bytes, q_bytes = job.Dv * size_of(full), word(work.ahead_bytes)
    while v0 < v1:
        left, x = v1 - v0, v0 * bytes_of(lane_of(full))
        # The widest where they come out even, two before: of 3, 6 = 3 + 3, 5 = 2 + 3, 4 = 2 + 2; of 4, 3 = 2 + 1.
        if left % WIDEST == 0:
            score_keys(full, score_widest(full), job, work, cap, extra, partly, k, k_row, j, keys, x, v, v_bytes, q_bytes)
            v0 += WIDEST
        elif left > 1:
            score_keys(full, score_two(full), job, work, cap, extra, partly, k, k_row, j, keys, x, v, v_bytes, q_bytes)
            v0 += 2
        else:
            score_keys(full, score_one(full), job, work, cap, extra, partly, k, k_row, j, keys, x, v, v_bytes, q_bytes)
            v0 += 1
        v_bytes, q_bytes = 0, 0             # what has been fetched once


@kernel
def score_keys(full, shape, job, work, cap, extra, partly, k, k_row, j, keys, x, v, v_bytes, q_bytes):
    """The keys j .. j + keys of a block for the vectors of the shape, from byte x of a row on."""
    W = bytes_of(full)
    addend, position, lo, hi = None, None, None, None
    if partly is not None:
        if extra is not None:
            addend = work.addend + x
            position = work.position + x if job.slopes != 0 else 0
        else:
            lo, hi = work.lo + x, work.hi + x
    score(shape, k, k_row, keys, work.qt + x, work.s + j * W + x, W, job.D, work.kept + x, work.top + x,
          work.part + x, cap, addend, position, work.slope + x, work.slope_rest + x, lo, hi, j,
          v, job.v_s, v_bytes, word(work.ahead) + j * job.q_s, job.q_s, q_bytes)


@kernel
def copy_rows(full, source, source_row, rows, count, target, target_row, heal, factor):
    """`rows` rows of `count` numbers times a factor, whole vectors written; heal: NaN and inf become 0."""
    lane, L = lane_of(full), lanes_of(full)
    for r in range(rows):
        for c in range(0, count, L):
            x = load_part(lane, source + r * source_row + c * size_of(full), 0, count - c)
            store(scaled(healed(x) if heal else x, factor), target + r * target_row + c * size_of(full), 0)


@kernel
def clear(full, s, keys, v0, v1):
    """No weights for so many keys and the vectors v0 to v1 of queries."""
    V = bytes_of(lane_of(full))
    for v in range(v0, v1):
        for r in range(keys):
            store(zeros(lane_of(full)), s + (r * vecs_of(full) + v) * V, 0)


@kernel
def score_block(full, job, work, cap, extra, plain, k, j0, keys, all_first, all_last, vecs, v):
    """Weigh a block. True if every query sees every key of it."""
    V, W = bytes_of(lane_of(full)), bytes_of(full)
    j, whole, edges = 0, True, False
    while j < keys:
        a, n = j0 + j, min(GRAIN, keys - j)
        full_view = plain and a >= all_first and a + n <= all_last
        if full_view and n == GRAIN:
            run = GRAIN
            while run < RUN and j + run + GRAIN <= keys and a + run + GRAIN <= all_last:
                run += GRAIN
            score_vectors(full, job, work, cap, extra, None, k + j * job.k_s, job.k_s, j, run, 0, vecs, v + j * job.v_s)
            for x in range(0, vecs * V, V):
                store(zeros(lane_of(full)), work.sees + x, 0)
            j += run
            continue
        whole = whole and full_view
        if not edges:
            place_edges(full, work, extra, j0, vecs)
            edges = True
        v0, v1 = 0, vecs
        while v0 < v1 and not (word(work.vec_first + 8 * v0) < a + n and a < word(work.vec_last + 8 * v0)):
            v0 += 1
        while v0 < v1 and not (word(work.vec_first + 8 * v1 - 8) < a + n and a < word(work.vec_last + 8 * v1 - 8)):
            v1 -= 1
        clear(full, work.s + j * W, GRAIN, 0, v0)
        clear(full, work.s + j * W, GRAIN, max(v0, v1), vecs)
        if v0 < v1:
            if extra is not None:
                place_addend(full, job, work, j0, j, n, v0, v1)
            at_k, k_row = k + j * job.k_s, job.k_s
            if n < GRAIN:
                k_row = -(-job.D // lanes_of(full)) * V
                copy_rows(full, at_k, job.k_s, n, job.D, work.tail, k_row, False, 1.0)
                at_k = work.tail
            score_vectors(full, job, work, cap, extra, True, at_k, k_row, j, GRAIN, v0, v1, v + j * job.v_s)
        j += GRAIN
    return whole


# ---- mix ---------------------------------------------------------------------------------------------------------------
@kernel
def mix_rows(shape, work, W, v, v_row, count, channel, end, j0, keys, whole, fresh, over, i):
    """Tiles of the mix: rows i and on, channels (in bytes) up to `end`, over the keys of the block that any row sees."""
    first, last, broken, item = 0, keys, False, size_of(shape)
    if not whole:
        lo, hi = seen_by_any(work, i, i + rows_of(shape))
        first, last = max(0, lo - j0), min(keys, hi - j0)
    while channel < end:
        broken = mix(shape, work.s + first * W + i * item, item, W, v + first * v_row + channel, v_row, last - first, count,
                     work.o + i * work.o_row + channel, work.o_row, fresh, over, work.part + i * item, work.o_at + 8 * i,
                     channel) or broken
        channel += bytes_of(shape)
    return broken


@kernel
def mix_channels(shape, full, work, rows, v, v_row, count, channel, end, j0, keys, whole, fresh, over):
    """The block into the channels (in bytes) up to `end` of every row."""
    queries = vecs_of(full) * lanes_of(full)
    W, i, broken = bytes_of(full), 0, False
    while i < rows and i + rows_of(shape) <= queries:
        broken = mix_rows(shape, work, W, v, v_row, count, channel, end, j0, keys, whole, fresh, over, i) or broken
        i += rows_of(shape)
    while i < rows:
        broken = mix_rows(rest_of(shape), work, W, v, v_row, count, channel, end, j0, keys, whole, fresh, over, i) or broken
        i += rows_of(rest_of(shape))
    return broken


@kernel
def mix_block(full, wide, last, tail, job, work, rows, v, v_row, j0, keys, whole, fresh, over):
    """The block into all channels: `wide` at a time, then `last`, whose last vector has `tail` (None: all) of them.

    over: it is the last block, and o / l is written where it belongs. True then if that may have a NaN or an inf in it.
    """
    channel, end, broken = 0, max(1, job.Dv * size_of(full)), False
    if wide is not None:
        step = bytes_of(wide)
        channel = (end - 1) // step * step
        broken = mix_channels(wide, full, work, rows, v, v_row, None, 0, channel, j0, keys, whole, fresh, over)
    return mix_channels(last, full, work, rows, v, v_row, tail, channel, end, j0, keys, whole, fresh, over) or broken


@kernel
def is_poisoned(full, v, v_row, keys, Dv):
    """Whether there is a NaN or an inf among the values of these keys. Eight rows at a time, as an FMA takes four cycles."""
    column, lane, L = column_of(full), lane_of(full), lanes_of(full)
    x, y = zeros(column), zeros(lane)
    for c in range(0, Dv, L):
        at, count, j = v + c * size_of(full), Dv - c, 0
        while j + rows_of(column) <= keys:
            if count >= L:
                x = poisoned(x, load(column, at + j * v_row, v_row))
            else:
                x = poisoned(x, load_part(column, at + j * v_row, v_row, count))
            j += rows_of(column)
        while j < keys:
            y = poisoned(y, load_part(lane, at + j * v_row, 0, count))
            j += 1
    return is_nan(x) or is_nan(y)


@kernel
def mix_poison(full, job, work, extra, p_row, p_key, rows, v, j0, keys):
    """o[i, c] += p[j, i] v[j, c] for the v that are NaN or inf, and for the queries that see their keys alone."""
    item = size_of(full)
    for j in range(keys):
        for c in range(job.Dv):
            x = number(full, v + j * job.v_s + c * item)
            if x - x == 0:
                continue
            for i in range(rows):
                sees = word(work.first + 8 * i) <= j0 + j and j0 + j < word(work.last + 8 * i)
                if extra is not None:
                    if sees and job.seen != 0:
                        sees = byte(word(work.seen_at + 8 * i) + (j0 + j) * job.seen_j) != 0
                    if sees and job.bias != 0:
                        sees = number(full, word(work.bias_at + 8 * i) + (j0 + j) * job.bias_j) != -INF
                if sees:
                    o = work.o + i * work.o_row + c * item
                    put_number(full, o, number(full, o) + number(full, work.s + j * p_key + i * p_row) * x)


# ---- a tile --------------------------------------------------------------------------------------------------------------
@kernel
def start(full, job, work, h, row0, rows, Sq):
    """The state before the first key. A sink is a starting state: top = its score, l = its weight, o = 0."""
    store(zeros(full), work.kept, 0)
    store(fill(full, -INF), work.top, 0)
    store(fill(full, -INF), work.sees, 0)
    if job.sink != 0:
        for r in range(rows):
            head = h * job.group + (row0 + r) // Sq
            put_number(full, work.top + r * size_of(full), number(double_of(full), job.sink + 8 * head))
        store(in_log2(load(full, work.top, 0)), work.top, 0)
        # Until nothing is lost: the sink of another head in the tile must change no bit of this one.
        while moved_if_far(full, work.top, work.kept, work.factor) == LOST:
            pass
    store(exp2(subtract(load(full, work.top, 0), load(full, work.kept, 0))), work.l, 0)
    store(zeros(full), work.l_far, 0)


@kernel
def rescale(full, work, rows, count, o, l):
    """o and l times the factors."""
    store(multiply(load(full, l, 0), load(full, work.factor, 0)), l, 0)
    for r in range(rows):
        for c in range(0, count, lanes_of(full)):
            at = o + r * work.o_row + c * size_of(full)
            store(scale_rows(load(lane_of(full), at, 0), work.factor + r * size_of(full), 0), at, 0)


@kernel
def rescale_block(full, work, keys):
    """The weights of the block, and their sum, times the factors. What is left of other blocks would grow call by call to inf."""
    W = bytes_of(full)
    factor = load(full, work.factor, 0)
    store(multiply(load(full, work.part, 0), factor), work.part, 0)
    for j in range(-(-keys // GRAIN) * GRAIN):
        store(multiply(load(full, work.s + j * W, 0), factor), work.s + j * W, 0)


@kernel
def put_by(full, work, rows, count, fresh):
    """Add o and l to the third level of sums; fresh: they are the first."""
    lane = lane_of(full)
    store(add(load(full, work.l_far, 0), load(full, work.l, 0)), work.l_far, 0)
    store(zeros(full), work.l, 0)
    for r in range(rows):
        for c in range(0, count, lanes_of(full)):
            at = r * work.o_row + c * size_of(full)
            x = load(lane, work.o + at, 0)
            store(x if fresh else add(x, load(lane, work.o_far + at, 0)), work.o_far + at, 0)


@kernel
def write_part(shape, work, r, channel, count, empty, far, again):
    """A stretch of channels of row r, o / l, to where it belongs; True if there is a NaN or an inf in it."""
    at, table = r * work.o_row + channel, work.o_at + 8 * r
    y = zeros(shape)
    if not empty:
        y = load(shape, work.o + at, 0)
    if far:
        y = add(y, load(shape, work.o_far + at, 0))
    y = scale_rows(y, work.part + r * size_of(shape), 0)
    if again:
        target = word(table) + channel
        y = scaled(y, 1 / SHRINK)
        y = mended(y, load(shape, target, 0) if count is None else load_part(shape, target, 0, count))
    store_table(y, table, channel, count)
    return is_broken(y)


@kernel
def write_row(full, wide, last, tail, job, work, r, empty, far, again):
    """o / l of row r to where it belongs; True if there is a NaN or an inf in it."""
    channel, broken = 0, False
    if wide is not None:
        step, end = bytes_of(wide), job.Dv * size_of(full)
        while channel + step < end:
            broken = write_part(row_of(wide), work, r, channel, None, empty, far, again) or broken
            channel += step
    return write_part(row_of(last), work, r, channel, tail, empty, far, again) or broken


@kernel
def close(full, work):
    """l in full, and 1 / l in `part`."""
    l = add(load(full, work.l, 0), load(full, work.l_far, 0))
    store(l, work.l, 0)
    store(inverse(l, load(full, work.sees, 0)), work.part, 0)


@kernel
def write_rows(full, wide, last, tail, job, work, rows, empty, far, again):
    """o / l to where it belongs. True if something came out NaN or inf."""
    broken = False
    for r in range(rows):
        broken = write_row(full, wide, last, tail, job, work, r, empty, far, again) or broken
    return broken


@kernel
def write_lse(full, work, rows):
    """lse = (kept + log2 l) ln 2."""
    item = size_of(full)
    for r in range(rows):
        put_number(full, word(work.lse_at + 8 * r),
                   LN_2 * (number(full, work.kept + r * item) + math.log2(np.float64(number(full, work.l + r * item)))))


@kernel
def fetch_others(full, job, work, rows, keys):
    """Ask for the lines that the result will be written to, which are at hand nowhere, 3 to 10 % where heads are short; and for
    what `score` leaves of the next task's queries, of which it fetches one with each of the last block's keys."""
    for r in range(rows):
        for c in range(0, job.Dv * size_of(full), LINE):
            fetch_to_write(lane_of(full), word(work.o_at + 8 * r) + c, 0)
    for r in range(keys, vecs_of(full) * lanes_of(full)):
        for c in range(0, job.D * size_of(full), LINE):
            fetch(lane_of(full), word(work.ahead) + r * job.q_s + c, 0)


@kernel
def any_seen(work, job, rows, j0, keys):
    """Whether the mask shows any of these keys to any row, and whether it shows all of them to all."""
    some, all_ = False, True
    for r in range(rows):
        at = word(work.seen_at + 8 * r) + j0 * job.seen_j
        for j in range(keys):
            if byte(at + j * job.seen_j) != 0:
                some = True
            else:
                all_ = False
        if some and not all_:
            break
    return some, all_


@kernel
def over_keys(full, wide, last, tail, cap, extra, job, work, h, row0, rows, k, v, Sq, Sk, hull, common, again):
    """All keys of a tile of queries; True if a row came out NaN or inf. `again`: what came out so, once more, v shrunk."""
    start(full, job, work, h, row0, rows, Sq)
    (first, end), (all_first, all_last) = hull, common
    vecs = -(-rows // lanes_of(full))
    fresh, fresh_far, over, broken = True, True, False, False
    j0 = first // BLOCK * BLOCK
    while j0 < end:
        keys = min(BLOCK, Sk - j0)
        plain, some = True, True
        if extra is not None:
            plain = job.bias == 0 and job.slopes == 0
            if job.seen != 0:
                some, all_ = any_seen(work, job, rows, j0, keys)
                plain = plain and all_
        if some:
            at_k, at_v, v_row = k + j0 * job.k_s, v + j0 * job.v_s, job.v_s
            put_word(work.ahead_bytes, 0)
            if j0 + BLOCK >= end:
                put_word(work.ahead_bytes, job.D * size_of(full))
                fetch_others(full, job, work, rows, keys)
            moved, whole, poison = LOST, True, False
            while moved == LOST:
                store(zeros(full), work.part, 0)
                whole = score_block(full, job, work, cap, extra, plain, at_k, j0, keys, all_first, all_last, vecs, at_v)
                moved = moved_if_far(full, work.top, work.kept, work.factor)
                if moved != STAYS:
                    rescale(full, work, 0 if fresh else rows, job.Dv, work.o, work.l)
                    rescale(full, work, 0 if fresh_far else rows, job.Dv, work.o_far, work.l_far)
            if moved == MOVED:
                rescale_block(full, work, keys)
            store(add(load(full, work.l, 0), load(full, work.part, 0)), work.l, 0)
            if not whole:
                poison = is_poisoned(full, at_v, v_row, keys, job.Dv)
            if poison or again:
                copy_rows(full, at_v, v_row, keys, job.Dv, work.v, work.v_row, poison, SHRINK if again else 1.0)
                at_v, v_row = work.v, work.v_row
            over = j0 + BLOCK >= end and fresh_far and not poison and not again
            if over:
                close(full, work)
            broken = mix_block(full, wide, last, tail, job, work, rows, at_v, v_row, j0, keys, whole, fresh, over)
            if over:
                break
            if poison:
                mix_poison(full, job, work, extra, size_of(full), bytes_of(full), rows, v + j0 * job.v_s, j0, keys)
            fresh = False
        if j0 // BLOCK % GROUP == GROUP - 1 and not fresh:
            put_by(full, work, rows, job.Dv, fresh_far)
            fresh, fresh_far = True, False
        j0 += BLOCK
    if not over:
        close(full, work)
        broken = write_rows(full, wide, last, tail, job, work, rows, fresh, not fresh_far, again)
    if job.lse != 0:
        write_lse(full, work, rows)
    return broken


@kernel
def item_of(job, task):
    """Which item a task belongs to, where items have sequences of their own: the last whose first task is not past it."""
    lo, hi = 0, job.items
    while hi - lo > 1:
        middle = (lo + hi) // 2
        if word(job.sequences + 40 * middle + 32) <= task:
            lo = middle
        else:
            hi = middle
    return lo


@kernel
def queries_after(job, work, b, h, row0, tiles, W):
    """Where the queries of the next task begin, which are asked for in advance.

    Where heads share keys, sequences differ or other threads take tasks, that is elsewhere; the wrong lines cost little.
    """
    if row0 != 0:
        return word(work.q_at) - W * job.q_s
    b, h = b + (h + 1) // job.heads, (h + 1) % job.heads
    return job.q + b * job.q_b + h * job.q_h + (tiles - 1) * W * job.q_s


@kernel
def tile(full, wide, last, tail, cap, extra, job, work, factor, task):
    """One task: a tile of queries of one kv head of one item."""
    W = vecs_of(full) * lanes_of(full)
    b, q0, k0, Sq, Sk = 0, 0, 0, job.Sq, job.Sk
    if job.sequences != 0:
        b = item_of(job, task)
        at = job.sequences + 40 * b
        q0, k0, Sq, Sk = word(at), word(at + 8), word(at + 16), word(at + 24)
        task -= word(at + 32)
    tiles = -(-job.group * Sq // W)
    h = task // tiles
    if job.sequences == 0:
        b, h = h // job.heads, h % job.heads
    row0 = (tiles - 1 - task % tiles) * W
    rows = min(W, job.group * Sq - row0)
    item = 0 if job.sequences != 0 else b
    place_rows(full, job, work, item, h, row0, rows, q0, Sq, Sk)
    first, end = FAR, 0
    for v in range(-(-rows // lanes_of(full))):
        lo, hi = 0, Sk
        if job.lo != 0:
            lo, hi = seen_by_any(work, v * lanes_of(full), min(rows, (v + 1) * lanes_of(full)))
        put_word(work.vec_first + 8 * v, lo)
        put_word(work.vec_last + 8 * v, hi)
        first, end = min(first, lo), max(end, hi)
    common = (0, Sk) if job.lo == 0 else seen_by_all(work, rows)
    pack(full, job, work, factor, rows)
    put_word(work.ahead, queries_after(job, work, b, h, row0, tiles, W))
    k = job.k + item * job.k_b + h * job.k_h + k0 * job.k_s
    v = job.v + item * job.v_b + h * job.v_h + k0 * job.v_s
    turn, broken = 0, True
    while broken and turn < 2:
        broken = over_keys(full, wide, last, tail, cap, extra, job, work, h, row0, rows, k, v, Sq, Sk, (first, end), common,
                           turn == 1)
        turn += 1
    if turn == 2:
        # The mix of a tile with fewer rows looks at what lies beside them, which must be finite.
        clear(full, work.s, BLOCK, 0, vecs_of(full))


@kernel
def factor_of(job):
    """What q is multiplied by, so that scores come out as logarithms to base 2: scale log2 e; with a softcap, scale / cap."""
    scale = job.scale
    if scale != scale:
        scale = 1 / math.sqrt(max(job.D, 1))
    return scale / job.cap if job.cap == job.cap else scale * LOG2_E


def forward(job, work, budget, full, wide, last, tail, cap, extra):
    """Take at most `budget` tasks from the counter; the number done, less than `budget` if none is left.

    Types alone: full: a row of a tile, a number for each query; wide (or None), last: tiles of the mix; tail: v's rows end
    inside a vector; cap: there is a softcap; extra: there is a bias, ALiBi or a mask that is not a run.
    """
    if tail is not None:
        tail = job.tail
    if cap is not None:
        cap = job.cap * LOG2_E
    factor = factor_of(job)
    for done in range(budget):
        task = take(job)
        if task >= job.tasks:
            return done
        tile(full, wide, last, tail, cap, extra, job, work, factor, task)
    return budget
