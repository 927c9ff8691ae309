"""Attention over some of the keys is a state (o, lse). States over disjoint keys join to the state over all of them.

Part n has the weight exp(lse_n): the sum that its softmax divided by. To join is one more softmax, over the parts.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, softmax


def merge_states(outs, lses):
    """o (..., Dv) and lse (...) over all keys; outs: each part's o (..., Dv), lses: each part's lse (...)."""
    outs, lses = np.asarray(outs, float), np.asarray(lses, float)
    with np.errstate(invalid="ignore"):
        p = softmax(lses, axis=0)
        lse = logsumexp(lses, axis=0)
        # A part with lse = -inf weighs nothing, whatever its o, and also where no other part weighs anything.
        o = np.where(lses[..., None] == -np.inf, 0, p[..., None] * outs).sum(axis=0)
    return o, lse
