"""Join attention over disjoint sets of keys.

A state (o, lse) of a query over some keys is all that others need of it: o is a mean of their v by weights that sum to
exp(lse). So of two states the mean is (exp(lse1) o1 + exp(lse2) o2) / (exp(lse1) + exp(lse2)), and joining is associative.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..fpu import default_state


def merged(outs: Sequence[NDArray], lses: Sequence[NDArray]) -> tuple[NDArray, NDArray]:
    """o and lse over the union of the states' keys, in their dtype; sums are made in index order, in float64."""
    with np.errstate(all="ignore"), default_state():
        m = np.max(lses, axis=0)
        # Nothing has been seen yet, here or anywhere: -inf - -inf would be NaN, and there is nothing to join.
        base = np.where(m == -np.inf, 0, m).astype(np.float64)
        o, l = np.zeros(outs[0].shape), np.zeros(m.shape)
        for part, lse in zip(outs, lses, strict=True):
            weight = np.exp(lse - base)
            l += weight
            # What weighs nothing is not looked at: 0 NaN would be NaN.
            o += np.where(lse[..., None] == -np.inf, 0, weight[..., None] * part)
        o = np.where(m[..., None] == -np.inf, 0, o / l[..., None])
        return o.astype(outs[0].dtype), (base + np.log(l)).astype(m.dtype)
