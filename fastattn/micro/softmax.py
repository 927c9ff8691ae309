"""Softmax: the running state of a tile of queries, and what keeps its numbers in range.

For each query, in log2 units: `kept`, what is taken off its scores, an integer; `top`, its largest score so far; l, the sum
of its weights 2^(s - kept). Any kept gives the same o / l. So a block of keys is weighed with the kept of the block before,
its largest score is learnt on the way, and only where kept turns out to lie far off is it moved, and the weights with it.
A first guess of 0 is right for most inputs.

    far: top - kept > 30         weights stay below 2^30, and with v below 2^48 no sum of 2^49 keys overflows
         top - kept < -1/2       l stays above 2^-1/2, and what underflows weighs less than 2^-125 of it (float32)

A weight that kept moves under is multiplied by a power of 2, which is exact; only where kept was off by more than 60 have
weights been lost, below 2^-66 of the largest or beyond all numbers, and the block is weighed again.

Each lane decides by the keys that its own query sees, so no hidden key can change a bit.
"""

from __future__ import annotations

from ..jit import kernel
from ..simd.math import exp2, rounded_of
from ..simd.vec import INF, any_lane, lanewise, load, store

LOW, HIGH = -0.5, 30.0
REACH = 60.0
STAYS, MOVED, LOST = 0, 1, 2


def _off(top, kept, low, high):
    gap = top - kept
    # top = -inf: this query has seen nothing yet, and there is nothing to weigh.
    return top.builder.or_(gap > high, top.builder.and_(gap < low, top > -INF))


is_far = any_lane(lambda top, kept: _off(top, kept, LOW, HIGH))
is_lost = any_lane(lambda top, kept: _off(top, kept, -REACH, REACH))
moved_far = lanewise(lambda top, kept: rounded_of(top).where(_off(top, kept, LOW, HIGH), kept))
moved_lost = lanewise(lambda top, kept: rounded_of(top).where(_off(top, kept, -REACH, REACH), kept))
# log2 of what old weights are multiplied by. Where kept falls by more, nothing has been weighed before, and 0 times infinity
# would be NaN.
exponent = lanewise(lambda old, new: (old - new).where(old - new < REACH, REACH))


@kernel
def moved_if_far(row, top, kept, factor):
    """Move kept where it lies far from top; factor: what weights under the old one are to be multiplied by.

    STAYS: nothing to be done. MOVED: this block's weights are among them. LOST: they are to be made anew, and then to be
    looked at again: only what was lost has moved, so that the others come out with the same bits as without it.
    """
    old, m = load(row, kept, 0), load(row, top, 0)
    if not is_far(m, old):
        return STAYS
    lost = is_lost(m, old)
    new = moved_lost(m, old) if lost else moved_far(m, old)
    store(new, kept, 0)
    store(exp2(exponent(old, new)), factor, 0)
    return LOST if lost else MOVED


# 1 / l; 0 for a query that saw no key and has no sink, so that its o = 0 stays 0.
inverse = lanewise(lambda l, sees: l.like(0.0).where(
    l.builder.and_(l.equals(0.0), sees.equals(-INF)), l.like(1.0) / l))
