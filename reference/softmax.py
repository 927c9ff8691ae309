"""Step 4, softmax: scores become percentages, which add up to 100 %."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, softmax


def percentages(s, axis):
    """p = exp(s) / sum of exp(s), along an axis, and lse, the logarithm of that sum.

    Scores that are all -inf are 0 / 0: p = NaN, lse = -inf. One of +inf is inf / inf, which makes all of p and lse NaN.
    """
    p = softmax(s, axis)
    lse = logsumexp(s, axis)
    return p, np.where(lse == np.inf, np.nan, lse)
