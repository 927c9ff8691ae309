"""Attention over some of the keys is a state (o, lse). States over disjoint keys join to the state over all of them.

A state weighs exp(lse), the sum that its percentages were divided by. So to join is steps 4 and 5 once more: states are
the words, their lse the scores, their o the v. A key alone is a state, too: its v, and its score.
"""

from __future__ import annotations

import numpy as np

from .softmax import percentages


@np.errstate(all="ignore")                              # NaN and inf are numbers like others here
def merge_states(outs, lses):
    """o (..., Dv) and lse (...) over all keys; outs: each state's o (..., Dv), lses: each state's lse (...)."""
    outs, lses = np.asarray(outs, float), np.asarray(lses, float)
    p, lse = percentages(lses, axis=0)
    # o = sum of p outs; but a state of lse = -inf has seen no key and weighs nothing, whatever its o. p alone does not
    # say so: 0 NaN is NaN, and where no state has seen a key p is 0 / 0.
    seen = lses[..., None] != -np.inf
    o = np.where(seen, p[..., None] * outs, 0).sum(axis=0)
    return o, lse
