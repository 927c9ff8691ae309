"""Mix: the new word is the weights times the v of all words, o += p v."""

from __future__ import annotations

from ..jit import inlined
from ..simd.vec import (
    add,
    any_lane,
    load,
    rank1,
    rank1_part,
    row_of,
    rowsum,
    scale_rows,
    size_of,
    store,
    store_table,
    zeros,
)

is_broken = any_lane(lambda x: x.broken())


@inlined
def mix(shape, p, p_row, p_key, v, v_row, keys, count, o, o_row, fresh, over, factor, table, channel):
    """o[i, c] += sum over j of p[j, i] v[j, c] for the tile's queries and channels; with `fresh`, = instead of +=.

    The sum over these keys is made in registers of its own and added once: a block's 64 terms, then one for the block.
    `over`: no key follows; o[i, c] factor[i] goes to table[i] + channel. True if NaN or inf is among it, or nearly so.
    keys < 1: no address is read, and the sum is 0.

    Relies on: p[j, i] at p + j p_key + i p_row; v's channels adjacent, rows of v_row bytes, of the last vector only `count`
    elements are read, and written to the table's rows (None: all); o in rows of o_row bytes, whole vectors; a factor and an
    address for each query; channel in bytes.
    Registers: rows x vecs sums, vecs of v, 1 broadcast: 29 of 32 for 6 x 4, 15 of 16 for 6 x 2; with `count` a mask besides,
    which AVX2 holds in a 16th and AVX-512 in a register of its own kind.
    """
    t = zeros(shape)
    for _ in range(keys):
        if count is None:
            t = rank1(t, p, p_row, v)                       # t += p[j, 0:rows] v[j, :]
        else:
            t = rank1_part(t, p, p_row, v, count)
        p += p_key
        v += v_row
    if not fresh:
        t = add(t, load(shape, o, o_row))
    if not over:
        store(t, o, o_row)
        return False
    t = scale_rows(t, factor, size_of(shape))
    store_table(t, table, channel, count)
    return is_broken(rowsum(zeros(row_of(shape)), t))
