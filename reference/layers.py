"""Steps 1 to 5 with their weights: from words to words."""

from __future__ import annotations

import numpy as np

from .attention import attention


def heads_of(x, w, b, heads):
    """x w + b of words (..., S, n), as (..., heads, S, channels): head h has the columns h channels to (h + 1) channels."""
    y = x @ w + b
    return np.swapaxes(y.reshape(*y.shape[:-1], heads, y.shape[-1] // heads), -2, -3)


class SelfAttention:
    """All words of a text look at each other at once. The arguments are fastattn's."""

    def __init__(self, w_q, w_k, w_v, w_o=None, *, heads, kv_heads=None, b_q=None, b_k=None, b_v=None, b_o=None, rope=None):
        self.w_q, self.w_k, self.w_v = (np.asarray(w, float) for w in (w_q, w_k, w_v))
        self.w_o = np.eye(heads * self.w_v.shape[1] // (kv_heads or heads)) if w_o is None else np.asarray(w_o, float)
        self.b_q, self.b_k, self.b_v, self.b_o = (0 if b is None else np.asarray(b, float) for b in (b_q, b_k, b_v, b_o))
        self.heads, self.kv_heads, self.rope = heads, kv_heads or heads, rope

    @classmethod
    def random(cls, d_model, heads, seed=0, *, kv_heads=None, dtype=np.float32, rope=None):
        """A layer of random weights without biases: normal, of variance 1 / d_model, rounded to dtype."""
        rng, D, kv_heads = np.random.default_rng(seed), d_model // heads, kv_heads or heads
        sizes = [(d_model, count * D) for count in (heads, kv_heads, kv_heads, heads)]
        weights = [(rng.standard_normal(size) / np.sqrt(d_model)).astype(dtype) for size in sizes]
        return cls(*weights, heads=heads, kv_heads=kv_heads, rope=rope)

    def project(self, x, *, positions=None):
        """Step 2: q, k and v of every word."""
        return self.q_k_v(x, x, positions)

    def __call__(self, x, mask=None, *, positions=None, bias=None, alibi=None, softcap=None, sink=None, scale=None):
        # 1. embed: each word is a row of numbers, x
        # 2. q, k, v: what am I asking, what can I be compared to, what do I have?
        q, k, v = self.project(x, positions=positions)
        # 3. score, 4. softmax, 5. mix
        o = attention(q, k, v, mask=mask, bias=bias, alibi=alibi, softcap=softcap, sink=sink, scale=scale)
        return self.side_by_side(o)

    def q_k_v(self, x, y, positions=None):
        q = heads_of(np.asarray(x, float), self.w_q, self.b_q, self.heads)
        k = heads_of(np.asarray(y, float), self.w_k, self.b_k, self.kv_heads)
        v = heads_of(np.asarray(y, float), self.w_v, self.b_v, self.kv_heads)
        return (q, k, v) if self.rope is None else (self.rope(q, positions), self.rope(k, positions), v)

    def side_by_side(self, o):
        """The new words: what the heads (..., H, S, Dv) have mixed, one head beside the other, times w_o."""
        o = np.swapaxes(o, -2, -3)
        return o.reshape(*o.shape[:-2], len(self.w_o)) @ self.w_o + self.b_o


class CrossAttention(SelfAttention):
    """Words of one text look at all words of another: q from x, k and v from y."""

    def project(self, x, y):
        return self.q_k_v(x, y)

    def __call__(self, x, y, mask=None, *, bias=None, alibi=None, softcap=None, sink=None, scale=None):
        q, k, v = self.project(x, y)
        o = attention(q, k, v, mask=mask, bias=bias, alibi=alibi, softcap=softcap, sink=sink, scale=scale)
        return self.side_by_side(o)
