"""Softmax: the running state of a tile of queries, and what keeps its numbers in range.

For each query, in log2 units: `kept`, what is taken off its scores, an integer; `seen`, its largest score so far; l, the sum
of its weights 2^(s - kept). Any kept gives the same o / l. So a block of keys is weighed with the kept of the block before,
its largest score is learnt on the way, and only where kept turns out to lie far off is it moved and the block weighed again.
A first guess of 0 is right for most inputs.

    far: seen - kept > 30        weights stay below 2^30, and with v below 2^48 no sum of 2^49 keys overflows
         seen - kept < -1/2      l stays above 2^-1/2, and what underflows weighs less than 2^-126 of it

Each lane decides by the keys that its own query sees, so no hidden key can change a bit.
"""

from __future__ import annotations

from ..jit import kernel
from ..simd.math import exp2, rounded_of
from ..simd.vec import INF, any_lane, lanewise, load, store

LOW, HIGH = -0.5, 30.0


def _far(seen, kept):
    gap = seen - kept
    # seen = -inf: this query has seen nothing yet, and there is nothing to weigh.
    return seen.builder.or_(gap > HIGH, seen.builder.and_(gap < LOW, seen > -INF))


is_far = any_lane(_far)
moved = lanewise(lambda seen, kept: rounded_of(seen).where(_far(seen, kept), kept))


# kept falls only for queries that nothing has been weighed for, and 2^rise might overflow: 0 inf would be NaN.
fallen = lanewise(lambda old, new: (old - new).where(old < new, 0.0))


@kernel
def moved_if_far(row, W, seen, kept, factor):
    """Move kept where it lies far from seen; True if it moved. factor: what weights so far are to be multiplied by."""
    old, top = load(row, kept, W), load(row, seen, W)
    if not is_far(top, old):
        return False
    new = moved(top, old)
    store(new, kept, W)
    store(exp2(fallen(old, new)), factor, W)
    return True


# 1 / l; 0 for a query that saw no key and has no sink, so that its o = 0 stays 0.
inverse = lanewise(lambda l, sees: l.like(0.0).where(
    l.builder.and_(l.equals(0.0), sees.equals(-INF)), l.like(1.0) / l))
