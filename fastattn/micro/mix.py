"""Mix: the new word is the weights times the v of all words, o += p v."""

from __future__ import annotations

from ..jit import kernel
from ..simd.vec import add, load, rank1, rank1_part, size_of, store, zeros


@kernel
def mix(shape, p, W, v, v_row, keys, count, o, o_row, fresh):
    """o[i, c] += sum over j of p[j, i] v[j, c] for the tile's queries and channels; with `fresh`, = instead of +=.

    The sum over these keys is made in registers of its own and added once: a block's 64 terms, then one for the block.

    Relies on: p (keys, W), W in bytes; v's channels adjacent, rows of v_row bytes, of the last vector only `count` elements
    are read (None: all); o in rows of o_row bytes, whole vectors.
    Registers: rows x vecs sums, vecs of v, 1 broadcast: 29 of 32 for 6 x 4.
    """
    t = zeros(shape)
    for _ in range(keys):
        if count is None:
            t = rank1(t, p, size_of(shape), v)              # t += p[j, 0:rows] v[j, :]
        else:
            t = rank1_part(t, p, size_of(shape), v, count)
        p += W
        v += v_row
    if not fresh:
        t = add(t, load(shape, o, o_row))
    store(t, o, o_row)
