"""The pass for few queries: the next word against a long memory, bound by reading k and v once.

    for each task (item, kv head, SPLIT keys counted from key 0):
        q scaled by scale log2 e, a row for each query of the group's heads
        for each block of 64 keys that any of the rows sees, ROWS rows at a time:
            dots      lane-wise products of a key and the rows, a key after the other
            weigh     a register of keys at a time: fold the lanes, score, p = 2^(s - kept)
            mix       o += p v
        kept, l and o / l: a state; whoever finishes the last state of a head joins them, in index order

                 lanes: channels                lanes: keys
    key j        k0 k1 k2 k3 ...      row 0     s s s s s s s s ...       of a row of scores the maximum, the sum, the ends
    key j + 1    k0 k1 k2 k3 ...      row 1     s s s s s s s s ...       of its run, bias and mask lie as they come

A tile of queries (`forward`) holds a score of 16 to 64 queries in each register, so a single one leaves it empty; here lanes
are channels, as k and v lie in memory. Keys are read in address order, one after the other: asked for in turns, as LLVM would
interleave a tile's rows, they come at half the speed, for the hardware then sees many short streams and not one long one.

Splits are as long whatever there is of threads, batch and keys, and states are joined in index order, so the bits depend on
none of them. They join without overflow.
Hidden values and overflow are treated as in `forward`.
"""

from __future__ import annotations

from ..jit import kernel
from ..machine import LINE
from ..micro.mix import mix
from ..micro.score import added, between, distance, sloped
from ..micro.softmax import LOST, MOVED, STAYS, inverse, moved_if_far
from ..simd.math import LOG2_E, exp2_less, exp2_of, rounded, tanh
from ..simd.vec import (
    INF,
    add,
    arrive,
    bytes_of,
    counted,
    dot,
    dot_part,
    double_of,
    fetch_far,
    fill,
    lane_of,
    lanes_of,
    lanewise,
    load,
    load_mask_table,
    load_part,
    max_across,
    number,
    put_number,
    rowmax,
    rows_of,
    rowsum,
    scale_rows,
    scaled,
    size_of,
    square_of,
    store,
    store_part,
    store_table,
    sum_across,
    take,
    vecs_of,
    word,
    zeros,
)
from ..tiles.rows import ladder, place_rows, seen_by_all, seen_by_any
from ..tiles.sizes import BLOCK, SPLIT, stretch_of
from .forward import (
    SHRINK,
    any_seen,
    clear,
    copy_rows,
    factor_of,
    in_log2,
    is_poisoned,
    mix_poison,
    shown,
    write_lse,
    write_row,
)

# Rows from the one in use to the one that is asked for, where several rows of q take so long that reading would wait for them:
# 32/8 heads of 128 channels go from 65 to 75 % of the read bandwidth (one core of an Intel Xeon); with one row of q, nothing.
AHEAD = 32

# Where a state has no weight, its kept says nothing.
kept_of = lanewise(lambda kept, l: kept.where(l.differs(0.0), -INF))
weight_of = lanewise(lambda l, kept, most: (l * exp2_of(kept - most)).where(l.differs(0.0), 0.0))
sink_weight = lanewise(lambda sink, most: exp2_of(sink - most).where(sink.differs(-INF), 0.0))
some_kept = lanewise(lambda most, total: most.where(total.differs(0.0), 0.0))
share_of = lanewise(lambda weight, total: (weight / total).where(total.differs(0.0), 1.0))


@kernel
def dots(shape, stretch, job, work, k, keys, q, q_row):
    """Lane-wise products of each key and the shape's rows of q, summed over vectors: a vector at sums[row][key].

    Relies on: k's channels adjacent; q in rows of q_row bytes, whole vectors, 0 beyond D. Registers: rows sums, a vector of k.
    """
    V, L = bytes_of(shape), lanes_of(shape)
    many, few, rest = job.D // (L * vecs_of(stretch)), job.D // L % vecs_of(stretch), job.D % L
    for j in range(keys):
        t, x, y = zeros(shape), k, q
        for _ in range(many):
            t = dot(t, stretch, x, y, q_row)
            x += bytes_of(stretch)
            y += bytes_of(stretch)
        for _ in range(few):
            t = dot(t, lane_of(shape), x, y, q_row)
            x += V
            y += V
        if rest != 0:
            t = dot_part(t, x, y, q_row, rest)
        if rows_of(shape) > 1:
            for c in range(0, job.D * size_of(shape), LINE):
                fetch_far(lane_of(shape), k + AHEAD * job.k_s + c, 0)
        store(t, work.sums + j * V, L * V)
        k += job.k_s


@kernel
def weigh(full, job, work, cap, r, x, j0, j, keys):
    """Scores and weights of row r for a register of keys from j0 + j on, of which the block has `keys`; x: the row of `sums`.

    Every key is compared with the ends of the row's run: a few instructions for a register of keys that took hundreds.
    """
    lane, V, L, item = lane_of(full), bytes_of(lane_of(full)), lanes_of(full), size_of(full)
    t = sum_across(load(square_of(full), work.sums + x * L * V, V))
    if cap == cap:
        t = scaled(tanh(t), cap)
    key, addend = counted(lane, j), zeros(lane)
    if job.slopes != 0:
        position = fill(lane, word(work.where + 8 * r) - j0)
        t = sloped(t, distance(key, position), fill(lane, number(full, work.slope + r * item)),
                   fill(lane, number(full, work.slope_rest + r * item)))
    if job.bias != 0:
        where, count = (j0 + j) * job.bias_j, keys - j if job.bias_j != 0 else L
        addend = in_log2(load_part(lane, word(work.bias_at + 8 * r) + where, 0, count))
    if job.seen != 0:
        where, count = (j0 + j) * job.seen_j, keys - j if job.seen_j != 0 else L
        addend = shown(addend, load_mask_table(lane, work.seen_at + 8 * r, where, count))
    lo, hi = word(work.first + 8 * r) - j0, min(word(work.last + 8 * r) - j0, keys)
    addend = between(addend, key, fill(lane, max(lo, -1)), fill(lane, max(hi, -1)))
    at = r * V
    store(rowmax(load(lane, work.lane_sees + at, 0), addend), work.lane_sees + at, 0)
    t = added(t, addend)
    store(rowmax(load(lane, work.lane_top + at, 0), t), work.lane_top + at, 0)
    t = exp2_less(t, fill(lane, number(full, work.kept + r * item)))
    store(rowsum(load(lane, work.lane_part + at, 0), t), work.lane_part + at, 0)
    store(t, work.s + (r * BLOCK + j) * item, 0)


@kernel
def weigh_block(full, shape, job, work, cap, rows, k, j0, keys):
    """Weights of a block for all rows, s[row][key]; the rows' largest scores."""
    lane, V, L, item = lane_of(full), bytes_of(lane_of(full)), lanes_of(full), size_of(full)
    for r in range(rows):
        store(zeros(lane), work.lane_part + r * V, 0)
    for j in range(0, keys, L):
        for r0 in range(0, rows, rows_of(shape)):
            dots(shape, stretch_of(shape), job, work, k + j * job.k_s, min(L, keys - j), work.qt + r0 * work.q_row, work.q_row)
            for r in range(r0, min(r0 + rows_of(shape), rows)):
                weigh(full, job, work, cap, r, r - r0, j0, j, keys)
    for r in range(rows):
        store_part(max_across(load(lane, work.lane_top + r * V, 0)), work.top + r * item, 0, 1)


@kernel
def mix_stretch(shape, work, rows, v, v_row, keys, count, channel, end):
    """o += p v for all rows, the block's keys and the channels `channel` to `end`, in bytes."""
    item = size_of(shape)
    if rows_of(shape) > 1:
        for j in range(keys):
            for c in range(channel, end, LINE):
                fetch_far(lane_of(shape), v + (j + AHEAD) * v_row + c, 0)
    for r in range(0, rows, rows_of(shape)):
        for c in range(channel, end, bytes_of(shape)):
            mix(shape, work.s + r * BLOCK * item, BLOCK * item, item, v + c, v_row, keys, count, work.o + r * work.o_row + c,
                work.o_row, False, False, 0, 0, 0)


@kernel
def mix_block(full, wide, last, tail, job, work, rows, v, v_row, keys):
    """The block into all channels: `wide` at a time, then `last`, whose last vector has `tail` (None: all) of them."""
    channel, end = 0, max(1, job.Dv * size_of(full))
    if wide is not None:
        step = bytes_of(wide)
        channel = (end - 1) // step * step
        mix_stretch(wide, work, rows, v, v_row, keys, None, 0, channel)
    mix_stretch(last, work, rows, v, v_row, keys, tail, channel, end)


@kernel
def rescale(full, work, rows, count, l, x, x_row):
    """Times the rows' factors: sums of weights, lane by lane, and `count` numbers of each row of x."""
    lane, V, item = lane_of(full), bytes_of(lane_of(full)), size_of(full)
    for r in range(rows):
        factor = work.factor + r * item
        store(scale_rows(load(lane, l + r * V, 0), factor, 0), l + r * V, 0)
        for c in range(0, count, lanes_of(full)):
            at = x + r * x_row + c * item
            store(scale_rows(load(lane, at, 0), factor, 0), at, 0)


@kernel
def start(full, shape, job, work, rows):
    """The state before the first key; rows beyond have weights 0 for good."""
    lane, V, item = lane_of(full), bytes_of(lane_of(full)), size_of(full)
    store(zeros(full), work.kept, 0)
    store(fill(full, -INF), work.top, 0)
    for r in range(-(-rows // rows_of(shape)) * rows_of(shape)):
        store(fill(lane, -INF), work.lane_top + r * V, 0)
        store(fill(lane, -INF), work.lane_sees + r * V, 0)
        store(zeros(lane), work.lane_l + r * V, 0)
        for j in range(0, BLOCK if r >= rows else 0, lanes_of(full)):
            store(zeros(lane), work.s + (r * BLOCK + j) * item, 0)
        for c in range(0, max(1, job.Dv), lanes_of(full)):
            store(zeros(lane), work.o + r * work.o_row + c * item, 0)


@kernel
def close(full, work, rows):
    """l of each row in full, and 1 / l in `part`."""
    lane, V, item = lane_of(full), bytes_of(lane_of(full)), size_of(full)
    store(zeros(full), work.l, 0)
    store(fill(full, -INF), work.sees, 0)
    for r in range(rows):
        store_part(sum_across(load(lane, work.lane_l + r * V, 0)), work.l + r * item, 0, 1)
        store_part(max_across(load(lane, work.lane_sees + r * V, 0)), work.sees + r * item, 0, 1)
    store(inverse(load(lane, work.l, 0), load(lane, work.sees, 0)), work.part, 0)


@kernel
def over_keys(full, shape, wide, last, tail, cap, job, work, rows, k, v, first, end, common, again):
    """The keys first to end of all rows; True if one came out NaN or inf. `again`: what came out so, once more, v shrunk."""
    lane, V, item = lane_of(full), bytes_of(lane_of(full)), size_of(full)
    all_first, all_last = common
    start(full, shape, job, work, rows)
    j0 = first // BLOCK * BLOCK
    while j0 < end:
        keys = min(BLOCK, end - j0)
        some, whole = True, job.bias == 0 and all_first <= j0 and j0 + keys <= all_last
        if job.seen != 0:
            some, all_ = any_seen(work, job, rows, j0, keys)
            whole = whole and all_
        if some:
            moved = LOST
            while moved == LOST:
                weigh_block(full, shape, job, work, cap, rows, k + j0 * job.k_s, j0, keys)
                moved = moved_if_far(lane, work.top, work.kept, work.factor)
                if moved != STAYS:
                    rescale(full, work, rows, job.Dv, work.lane_l, work.o, work.o_row)
            if moved == MOVED:
                rescale(full, work, rows, keys, work.lane_part, work.s, BLOCK * item)
            for r in range(rows):
                store(add(load(lane, work.lane_l + r * V, 0), load(lane, work.lane_part + r * V, 0)), work.lane_l + r * V, 0)
            at_v, v_row = v + j0 * job.v_s, job.v_s
            poison = not whole and is_poisoned(full, at_v, v_row, keys, job.Dv)
            if poison or again:
                copy_rows(full, at_v, v_row, keys, job.Dv, work.v, work.v_row, poison, SHRINK if again else 1.0)
                at_v, v_row = work.v, work.v_row
            mix_block(full, wide, last, tail, job, work, rows, at_v, v_row, keys)
            if poison:
                mix_poison(full, job, work, True, BLOCK * item, item, rows, v + j0 * job.v_s, j0, keys)
        j0 += BLOCK
    close(full, work, rows)
    broken = False
    for r in range(rows):
        broken = write_row(full, wide, last, tail, job, work, r, False, False, again) or broken
    return broken


# ---- states ------------------------------------------------------------------------------------------------------------
@kernel
def join(full, job, work, b, h, rows):
    """The states of a head's splits, and its sink, joined into o and lse.

    Each state is a row of kept, one of l, and o / l; beside others it weighs l 2^(kept - most). One without weight is not looked
    at, unless there is no other: its o is 0, or NaN if all its scores were -inf.
    """
    lane, V, item = lane_of(full), bytes_of(lane_of(full)), size_of(full)
    place_rows(full, job, work, b, h, 0, rows, 0, job.Sq, job.Sk)
    states = job.states + (b * job.heads + h) * job.splits * job.state_bytes
    end = states + job.splits * job.state_bytes
    store(fill(full, -INF), work.top, 0)
    if job.sink != 0:
        for r in range(rows):
            put_number(full, work.top + r * item, number(double_of(full), job.sink + 8 * (h * job.group + r // job.Sq)))
    sink = in_log2(load(lane, work.top, 0))
    most, total = rounded(sink), zeros(lane)
    for at in range(states, end, job.state_bytes):
        most = rowmax(most, kept_of(load(lane, at, 0), load(lane, at + V, 0)))
    for at in range(states, end, job.state_bytes):
        weight = weight_of(load(lane, at + V, 0), load(lane, at, 0), most)
        total = add(total, weight)
        store(weight, at, 0)
    total = add(total, sink_weight(sink, most))
    store(total, work.l, 0)
    store(some_kept(most, total), work.kept, 0)
    for at in range(states, end, job.state_bytes):
        store(share_of(load(lane, at, 0), total), at, 0)
    for r in range(rows):
        for c in range(0, job.Dv, lanes_of(full)):
            o = zeros(lane)
            for at in range(states, end, job.state_bytes):
                share = number(full, at + r * item)
                # A share may be 0 where l is not; NaN there is still seen.
                if share != 0 or number(full, at + V + r * item) != 0:
                    o = add(o, scaled(load(lane, at + 2 * V + r * work.o_row + c * item, 0), share))
            store_table(o, work.o_at + 8 * r, c * item, job.Dv - c)
    if job.lse != 0:
        write_lse(full, work, rows)


@kernel
def split(full, shape, wide, last, tail, cap, job, work, factor, task):
    """One task: SPLIT keys of one kv head of one item."""
    V = bytes_of(lane_of(full))
    n, head = task % job.splits, task // job.splits
    b, h, rows = head // job.heads, head % job.heads, job.group * job.Sq
    place_rows(full, job, work, b, h, 0, rows, 0, job.Sq, job.Sk)
    for r in range(-(-rows // rows_of(shape)) * rows_of(shape)):
        copy_rows(full, word(work.q_at + 8 * r), 0, 1, job.D, work.qt + r * work.q_row, 0, False, factor)
    state = job.states + task * job.state_bytes
    if job.states != 0:
        ladder(work.o_at, rows, state + 2 * V, work.o_row)
    (first, end), common = seen_by_any(work, 0, rows), seen_by_all(work, rows)
    first, end = max(first, n * SPLIT), min(end, (n + 1) * SPLIT)
    k, v = job.k + b * job.k_b + h * job.k_h, job.v + b * job.v_b + h * job.v_h
    turn, broken = 0, True
    while broken and turn < 2:
        broken = over_keys(full, shape, wide, last, tail, cap, job, work, rows, k, v, first, end, common, turn == 1)
        turn += 1
    if turn == 2:
        clear(full, work.s, BLOCK, 0, vecs_of(full))            # `forward` relies on what lies there being finite
    if job.states == 0:
        if job.lse != 0:
            write_lse(full, work, rows)
        return
    store(load(lane_of(full), work.kept, 0), state, 0)
    store(load(lane_of(full), work.l, 0), state + V, 0)
    if arrive(job.arrived + 8 * head) == job.splits - 1:
        join(full, job, work, b, h, rows)


def decode(job, work, budget, full, shape, wide, last, tail):
    """Take at most `budget` tasks from the counter; the number done, less than `budget` if none is left.

    Types alone: full: a row of a tile, a number for each query; shape: rows of q that are scored together; wide (or None), last:
    tiles of the mix of as many rows; tail: v's rows end inside a vector.
    """
    if tail is not None:
        tail = job.tail
    factor = factor_of(job)
    for done in range(budget):
        task = take(job)
        if task >= job.tasks:
            return done
        split(full, shape, wide, last, tail, job.cap * LOG2_E, job, work, factor, task)
    return budget
