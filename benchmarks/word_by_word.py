"""Attention as a recurrent network would have to do it: one word after the other, in a loop.

It computes what the causal layer computes, in the same steps. But word t is turned into q, k and v by itself, looks at the words
up to itself, whose k and v have been kept, and is mixed, before word t + 1 is touched: so it reads all weights once a word, as
an RNN reads its w_h, and besides all k and v of the words before it.

Every step is a call of NumPy for all heads and all sequences of the batch, and BLAS does the products: a plain program and not
a tuned one. Some ten calls a word are 10 to 20 us in Python, the rest is reading memory, which a compiled loop would not avoid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class WordByWord:
    """layer(x) of x (B, S, d_model): the new words of a causal SelfAttention with these weights, float32.

    w_q, w_k, w_v (d_model, heads D) and w_o (heads D, d_model).
    """

    def __init__(self, w_q: NDArray, w_k: NDArray, w_v: NDArray, w_o: NDArray, *, heads: int) -> None:
        self.heads, self.D = heads, w_q.shape[1] // heads
        scale = w_q.dtype.type(1 / np.sqrt(self.D))
        self.w_qkv, self.w_o = np.concatenate([scale * w_q, w_k, w_v], axis=1), w_o

    def __call__(self, x: NDArray) -> NDArray:
        (B, S, _), H, D = x.shape, self.heads, self.D
        k, v = np.empty((2, B, H, S, D), x.dtype)
        y = np.empty((B, S, self.w_o.shape[1]), x.dtype)
        for t in range(S):
            q, k[:, :, t], v[:, :, t] = (x[:, t] @ self.w_qkv).reshape(B, 3, H, D).swapaxes(0, 1)
            seen = slice(t + 1)
            s = q[:, :, None] @ k[:, :, seen].swapaxes(2, 3)                # (B, H, 1, t + 1)
            s -= s.max(axis=3, keepdims=True)
            p = np.exp(s, out=s)
            p /= p.sum(axis=3, keepdims=True)
            y[:, t] = (p @ v[:, :, seen]).reshape(B, H * D) @ self.w_o
        return y
