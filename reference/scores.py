"""Step 3, score: the pieces that a score is made of, in the order in which they come.

scale -> softcap -> ALiBi -> bias -> mask.  Each is left out where it is None.
"""

from __future__ import annotations

import numpy as np


def scores(q, k, *, mask, bias, alibi, softcap, scale):
    """s (B, Hq, Sq, Sk), -inf where a key is hidden; and seen, the same shape, True where it is not.

    q (B, Hq, Sq, D), k (B, Hq, Sk, D), as many heads as q.
    """
    (Sq, D), Sk = q.shape[2:], k.shape[2]
    i, j = np.arange(Sq)[:, None], np.arange(Sk)
    seen = visible(mask, (*q.shape[:3], Sk))
    if scale is None:
        scale = 1 / np.sqrt(max(D, 1))

    s = scale * (q @ k.swapaxes(2, 3))
    if softcap is not None:
        s = softcap * np.tanh(s / softcap)
    if alibi is not None:
        s = s - np.asarray(alibi, float)[:, None, None] * np.abs(i + Sk - Sq - j)
    if bias is not None:
        s = s + bias
        seen = seen & (np.asarray(bias) != -np.inf)
    return np.where(seen, s, -np.inf), seen


def visible(mask, shape):
    """Which query may see which key, as booleans of shape (B, Hq, Sq, Sk). mask: None, booleans, or what materializes."""
    if mask is None:
        mask = True
    elif hasattr(mask, "materialize"):
        mask = mask.materialize(*shape[2:])
    return np.broadcast_to(mask, shape)
