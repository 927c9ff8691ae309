"""Tile sizes, from the target's lanes and registers.

                                     32 registers          16 registers
    queries a tile      W            4 vectors             6 vectors         AVX-512 f32: 64, AVX2 f32: 48
    keys a block        BLOCK        64                    64
    score tile          rows x vecs  4x4 8x2 16x1          4x3 4x2 8x1       sums + 1 broadcast + vecs of queries
    mix tile            rows x vecs  6x4 8x3 8x2 16x1      6x2 12x1          sums + 1 broadcast + vecs of channels

Why these. An FMA takes 4 cycles and one or two start in each, so a tile needs at least 8 sums in flight; a rank-1 update of
R x V sums loads R + V operands for R V FMAs, and two loads start in a cycle, so R V >= R + V leaves the FMA units busy. One
vector alone cannot: 8x1 loads 9 for 8, and is left to what remains.
6x4 for the mix, where 64 queries leave a tile of 4 rows over, because V's rows lie as the user has them: off a 64-byte
line each load costs two, and 4x4 falls from 231 to 200 GFLOP/s where 6x4 falls from 237 to 230 (one core of an Intel
Xeon with AVX-512, peak 240). The score tile reads its vectors from aligned scratch and 4x4 is as fast as 6x4 there.
With 16 registers (one core of a Zen 3, kernels alone in L1, shares of the peak): scoring goes at 78 % with 4x3 and 6x2, 73 %
with 4x2, which has just the 8 sums; a vector's exp2, sum and store take 9 cycles there beside 32 of products at D 64. The mix
goes at 91 % with 6x2, 83 % with 12x1, 67 % with 8x1. A tile of 6 vectors reads each key and value for 48 queries; with 3, S
2048 falls from 77 to 70 %.
A block of 64 keys: 32 to 128 are within 2 % of each other, and 64 divides into groups of 16 keys, the grain of masks.
The sum over a block's keys stays in registers and is added to the running output once, and every GROUP blocks that is
added to a third level: sums of 65,536 terms err like sums of 64 + 32 + 32.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from numba import types

from ..machine import TARGET
from ..simd.vec import Shape, derived, lanes

BLOCK = 64                      # keys scored before they are mixed
GRAIN = 16                      # keys that share one decision: empty, full or partial
GROUP = 32                      # blocks summed before they are added to the third level

VECS = 4 if TARGET.registers == 32 else 6
# vectors of queries or channels -> rows
_SCORE = {4: 4, 2: 8, 1: 16} if TARGET.registers == 32 else {3: 4, 2: 4, 1: 8}
_MIX = {4: 6, 3: 8, 2: 8, 1: 16} if TARGET.registers == 32 else {2: 6, 1: 12}
WIDEST = max(_SCORE)            # vectors of queries that are scored at once
# Keys without mask code that are scored in one go; where the next vectors of queries come to the same keys, these should
# still be in L1: 16 KB with 128 channels.
RUN = BLOCK if WIDEST == VECS else 2 * GRAIN


# Few queries: rows of q that share a key while it is in registers -> vectors of v mixed at a time; 8 sums or 16.
FEW = {1: 8, 4: 4} if TARGET.registers == 32 else {1: 8, 4: 2}
ROWS = max(FEW)
SPLIT = 2048                    # keys of a task: 1 MB of k and as much of v with 128 channels


def queries(scalar: types.Type) -> int:
    """W: the queries of a tile."""
    return VECS * lanes(scalar)


def queries_shape(scalar: types.Type) -> Shape:
    """A number for each query of a tile."""
    return Shape(scalar, 1, VECS)


def score_shape(full: Shape, vecs: int) -> Shape:
    """The score tile for so many of a tile's vectors of queries: keys x queries."""
    return Shape(full.scalar, _SCORE[vecs], vecs)


def mix_shape(scalar: types.Type, vecs: int) -> Shape:
    """The mix tile for so many vectors of channels: queries x channels."""
    return Shape(scalar, min(_MIX[vecs], queries(scalar)), vecs)


def _rest(shape: Shape) -> Shape:
    return Shape(shape.scalar, queries(shape.scalar) % shape.rows or shape.rows, shape.vecs)


# For kernels: the score tiles for the widest, for two and for one vector of queries; the mix tile for the queries that whole
# ones leave over, W % rows.
score_widest, score_two, score_one = (derived(functools.partial(score_shape, vecs=vecs)) for vecs in (WIDEST, 2, 1))
rest_of = derived(_rest)
# As much of a key as is multiplied without a loop.
stretch_of = derived(lambda shape: Shape(shape.scalar, 1, 4))


@dataclass(frozen=True)
class Channels:
    """How the channels of v are cut: `wide` vectors at a time, then the last `last` vectors."""

    wide: int
    last: int

    @classmethod
    def of(cls, scalar: types.Type, Dv: int, most: int = max(_MIX)) -> Channels:
        """Dv = 65 to 80 of 16 lanes, at most 4 vectors at a time: 5 vectors, 3 + 2."""
        vectors = max(1, -(-Dv // lanes(scalar)))
        passes = -(-vectors // most)
        wide = -(-vectors // passes)
        return cls(wide, vectors - wide * (passes - 1))
