"""Score: how similar is each word to every other word, sᵀ = k qᵀ, and its weight at once, p = 2^(s - kept).

                 queries ->                    A register holds one key's score for as many queries as it has lanes, so
    key j        s s s s | s s s s | ...       the largest score and the sum of weights run down the registers, and an
    key j + 1    s s s s | s s s s | ...       edge of a mask is a lane compare.

q comes scaled by scale log2 e (with softcap: by scale / cap), so scores are the log2 of unnormalised weights.
The weights are taken before the largest score is known, from a guess of it that is checked afterwards: `softmax.py`.
"""

from __future__ import annotations

from ..jit import inlined
from ..machine import LINE
from ..simd.math import exp2_less, kept_finite, tanh
from ..simd.vec import INF, fetch, lanewise, load, numbered, rank1, row_of, rowmax, rows_of, rowsum, scaled, size_of, store, zeros

# Of the keys j, those with lo <= j < hi.
between = lanewise(lambda t, j, lo, hi: t.where(t.builder.and_(j.at_least(lo), j < hi), -INF))
distance = lanewise(lambda j, position: (position - j).magnitude())
# The slope's rounding error times the distance would be one of the score, so there are two pieces of it. What overflows to
# -inf would hide the key.
sloped = lanewise(lambda t, d, slope, rest: kept_finite(d.fma(slope, d.fma(rest, t)), t.magnitude().differs(INF)))
# What is added to a score: ALiBi, bias, and -inf where a key is hidden, whatever the score there is, NaN included.
added = lanewise(lambda t, a: (t + a).where(a.differs(-INF), -INF))


@inlined
def score(shape, k, k_row, keys, qt, s, W, D, kept, top, part, cap, addend, position, slope, rest, lo, hi, first,
          v, v_row, v_bytes, q, q_row, q_bytes):
    """Score and weigh `keys` keys, a multiple of the tile's rows, for the tile's queries.

    s[j, i] = 2^(k[j] qᵀ[:, i] - kept[i]); top[i] becomes the largest score of query i, part[i] grows by its weights.
    Types alone decide what is done besides: cap (None: no softcap); addend (None, or what is added to the scores, -inf where
    a key is hidden) and, unless position is 0, ALiBi: (slope[i] + rest[i]) |position[i] - first - j|; lo and hi (None, or
    which keys a query sees: lo[i] <= first + j < hi[i]).
    Meanwhile as many rows of v and of q, v_bytes and q_bytes each, come into the cache, for what is done next: 1 to 5 %.

    Relies on: k's channels adjacent, rows of k_row bytes; qᵀ (D, W), s and addend (keys, W), W in bytes; kept, top, part,
    position, slope, rest, lo and hi a number for each of the tile's queries; v and q need not be readable.
    D = 0: every score is 0. keys = 0: nothing is done.
    Registers: rows x vecs sums, vecs of queries, 1 broadcast: 21 of 32 for 4 x 4, 16 of 16 for 4 x 3. For exp2 the broadcast and
    the queries are gone; what constants find no register are read from memory.
    """
    row = row_of(shape)
    for j in range(0, keys, rows_of(shape)):
        t, column, queries = zeros(shape), k + j * k_row, qt
        for _ in range(D):
            t = rank1(t, column, k_row, queries)            # t += k[j:j + rows, d] qᵀ[d, :]
            column += size_of(shape)
            queries += W
        for c in range(0, v_bytes, LINE):
            fetch(shape, v + j * v_row + c, v_row)
        for c in range(0, q_bytes, LINE):
            fetch(shape, q + j * q_row + c, q_row)
        if cap is not None:
            t = scaled(tanh(t), cap)
        if addend is not None:
            if position != 0:
                d = distance(numbered(shape, first + j), load(row, position, 0))
                t = sloped(t, d, load(row, slope, 0), load(row, rest, 0))
            t = added(t, load(shape, addend + j * W, W))
        if lo is not None:
            t = between(t, numbered(shape, first + j), load(row, lo, 0), load(row, hi, 0))
        store(rowmax(load(row, top, 0), t), top, 0)
        t = exp2_less(t, load(row, kept, 0))
        store(rowsum(load(row, part, 0), t), part, 0)
        store(t, s + j * W, W)
