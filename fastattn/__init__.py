"""fastattn: the fastest way to run attention on a CPU, in plain Python.

    from fastattn import attention, causal

    o = attention(q, k, v, mask=causal)         # (B, H, S, D) arrays of float32 or float64

Self-attention in five steps: word embeddings; q, k and v of each word; score, how similar each word's question is to every
word's key; softmax, scores as percentages; mix, the percentages times the values. All words at once: the kernels fuse score,
softmax and mix, tile by tile.
"""

from .api import attention, attention_varlen, compile, merge_states
from .jit import cache_info
from .layers import CrossAttention, SelfAttention
from .masks import causal, causal_top_left, lengths, packed, prefix, window
from .rotary import rope
from .tiles.pool import threads

__version__ = "0.1.0"

__all__ = [
    "CrossAttention",
    "SelfAttention",
    "__version__",
    "attention",
    "attention_varlen",
    "cache_info",
    "causal",
    "causal_top_left",
    "compile",
    "lengths",
    "merge_states",
    "packed",
    "prefix",
    "rope",
    "threads",
    "window",
]
