"""Layers: the five steps with their weights, from words to words.

    x (S, d_model)  ->  q, k, v = x w_q, x w_k, x w_v  ->  heads  ->  attention  ->  heads side by side, times w_o

Where numbers lie is what this file is about. Matrices that read the same words stand side by side, so that one product makes
all heads of q, k and v as rows [q | k | v]; the kernels read the heads where they are, and write each head's result beside
the others', as the last product wants it. Nothing is transposed or copied.

Products are BLAS's, through NumPy: `threads` does not reach them, OPENBLAS_NUM_THREADS does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import checks
from .api import attention
from .machine import LINE
from .tiles.job import empty
from .weights import read_weights


class _Layer:
    """Heads and weights, and the way from words to words."""

    # Which of q, k and v read the same words, and so come from one product.
    _groups: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        w_q: ArrayLike,
        w_k: ArrayLike,
        w_v: ArrayLike,
        w_o: ArrayLike | None = None,
        *,
        heads: int,
        kv_heads: int | None = None,
        b_q: ArrayLike | None = None,
        b_k: ArrayLike | None = None,
        b_v: ArrayLike | None = None,
        b_o: ArrayLike | None = None,
        rope: Callable[..., NDArray] | None = None,
    ) -> None:
        self.heads, self.kv_heads = checks.layer_heads(heads, kv_heads)
        counts = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        w = checks.weights({"q": w_q, "k": w_k, "v": w_v, "o": w_o}, counts, self._groups)
        b = checks.biases({"q": b_q, "k": b_k, "v": b_v, "o": b_o}, w)
        self.d_model, self.dtype, self.rope = len(w["q"]), w["q"].dtype, rope
        self._inputs = [_Product([(w[x], b[x], counts[x]) for x in group]) for group in self._groups]
        self._output = _Product([(w["o"], b["o"], 1)]) if "o" in w else None
        self._mixed = _Rows(self.heads * (w["v"].shape[1] // self.kv_heads), self.dtype)
        self.d_out = self._output.rows.width if self._output else self._mixed.width

    @classmethod
    def random(
        cls,
        d_model: int,
        heads: int,
        seed: int = 0,
        *,
        kv_heads: int | None = None,
        dtype: DTypeLike = np.float32,
        rope: Callable[..., NDArray] | None = None,
    ) -> Self:
        """A layer of random weights without biases: normal, of variance 1 / d_model; D = Dv = d_model / heads.

        Raises ValueError if heads does not divide d_model, or kv_heads heads.
        """
        kind, (heads, kv_heads) = checks.dtype("dtype", dtype), checks.layer_heads(heads, kv_heads)
        D = checks.channels_of_a_head(d_model, heads)
        rng = np.random.default_rng(seed)
        sizes = [(d_model, count * D) for count in (heads, kv_heads, kv_heads, heads)]
        weights = [(rng.standard_normal(size) / math.sqrt(d_model)).astype(kind) for size in sizes]
        return cls(*weights, heads=heads, kv_heads=kv_heads, rope=rope)

    def _texts(self, *texts: ArrayLike) -> list[NDArray]:
        """The texts as (B, S, n), if each is what the products read."""
        return checks.texts(texts, [len(product.w) for product in self._inputs], self.dtype)

    def _heads(self, texts: list[NDArray], memory: list[NDArray], positions: ArrayLike | None) -> list[NDArray]:
        """q, k and v (B, H, S, channels), views of the memory, of which each product has a piece."""
        found = [part for product, x, rows in zip(self._inputs, texts, memory, strict=True) for part in product.heads(x, rows)]
        if self.rope is not None:
            for part in found[:2]:
                self.rope(part, positions, out=part)
        return found

    def _projected(self, texts: list[NDArray], positions: ArrayLike | None, axes: int) -> tuple[NDArray, ...]:
        """q, k and v in memory of their own, with B if there are four axes."""
        memory = [product.rows.new(len(x) * x.shape[1]) for product, x in zip(self._inputs, texts, strict=True)]
        return tuple(part if axes == 4 else part[0] for part in self._heads(texts, memory, positions))

    def _attended(
        self, texts: list[NDArray], positions: ArrayLike | None, out: NDArray | None, axes: int, **options: Any
    ) -> NDArray:
        """The new words of the first text, with B if there are three axes; the options are attention's."""
        B, S, _ = texts[0].shape
        shape = (B, S, self.d_out)[3 - axes:]
        if out is not None:
            checks.out(out, shape, self.dtype)
        y = out if out is not None and out.flags.carray else empty(shape, self.dtype)
        with contextlib.ExitStack() as stack:
            memory = [stack.enter_context(product.rows.lent(len(x) * x.shape[1]))
                      for product, x in zip(self._inputs, texts, strict=True)]
            q, k, v = self._heads(texts, memory, positions)
            words = y.reshape(B * S, self.d_out)
            mixed = stack.enter_context(self._mixed.lent(B * S)) if self._output else words
            attention(q, k, v, out=_by_heads(mixed, B, S, self.heads), **options)
            if self._output:
                self._output(mixed, words)
        if out is None or y is out:
            return y
        out[...] = y
        return out


class SelfAttention(_Layer):
    """All words of a text look at each other at once: concat over heads(attention(x w_q, x w_k, x w_v)) w_o.

    w_q      (d_model, heads D)         head h has the columns h D to (h + 1) D. torch's Linear keeps the transpose
    w_k      (d_model, kv_heads D)      kv_heads = heads if None; heads is a multiple of it (GQA)
    w_v      (d_model, kv_heads Dv)
    w_o      (heads Dv, d_out)          None: the result is all heads side by side
    b_*      a number for each column of w_*, added to the product; None: none
    rope     what turns q and k by the positions of their words, as rope(theta, scaling) does; None: nothing

    Weights are float32 or float64, all the same; they are copied. Memory for q, k and v is kept from call to call, as much as
    the longest text took; any threads may call at once, each has its own.
    Raises TypeError for what is not such an array, ValueError for shapes that do not fit.

    >>> layer = SelfAttention.random(d_model=512, heads=8)
    >>> y = layer(x, mask=causal)

    Vaswani et al., Attention Is All You Need, arXiv:1706.03762, section 3.2.
    """

    _groups = ("qkv",)

    def project(self, x: ArrayLike, *, positions: ArrayLike | None = None) -> tuple[NDArray, ...]:
        """Step 2: q (B, Hq, S, D), k (B, Hkv, S, D) and v (B, Hkv, S, Dv) of x (B, S, d_model); without B if x has none."""
        texts = self._texts(x)
        return self._projected(texts, positions, np.ndim(x) + 1)

    def __call__(
        self,
        x: ArrayLike,
        mask: Any = None,
        *,
        positions: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        alibi: ArrayLike | None = None,
        softcap: float | None = None,
        sink: ArrayLike | None = None,
        scale: float | None = None,
        out: NDArray | None = None,
        threads: int | None = None,
    ) -> NDArray:
        """The new words (B, S, d_out) of x (B, S, d_model), or (S, d_out) of (S, d_model), in the weights' dtype.

        positions: of the words, integers (S,) or (B, S), for rope; 0, 1, 2 ... if None. out: where to write the new words;
        may be x. The other options are attention's. No words give no words.
        """
        options = {"mask": mask, "bias": bias, "alibi": alibi, "softcap": softcap, "sink": sink, "scale": scale}
        return self._attended(self._texts(x), positions, out, np.ndim(x), **options, threads=threads)


class CrossAttention(_Layer):
    """Words of one text look at all words of another: q from x, k and v from y.

    The arguments are SelfAttention's; but a word of y may have other numbers than d_model, as many as w_k and w_v have rows.

    >>> layer = CrossAttention.random(d_model=512, heads=8)
    >>> new_x = layer(x, y)
    """

    _groups = ("q", "kv")

    def project(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray, ...]:
        """Step 2: q (B, Hq, Sq, D) of x (B, Sq, d_model), k (B, Hkv, Sk, D) and v (B, Hkv, Sk, Dv) of y; B may be missing."""
        return self._projected(self._texts(x, y), None, np.ndim(x) + 1)

    def __call__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        mask: Any = None,
        *,
        bias: ArrayLike | None = None,
        alibi: ArrayLike | None = None,
        softcap: float | None = None,
        sink: ArrayLike | None = None,
        scale: float | None = None,
        out: NDArray | None = None,
        threads: int | None = None,
    ) -> NDArray:
        """The new words (B, Sq, d_out) of x (B, Sq, d_model), which look at y (B, Sk, n); B may be missing in both.

        The options are SelfAttention's. Without words in y attention is 0.
        """
        options = {"mask": mask, "bias": bias, "alibi": alibi, "softcap": softcap, "sink": sink, "scale": scale}
        return self._attended(self._texts(x, y), None, out, np.ndim(x), **options, threads=threads)


def from_safetensors(
    path: str | PathLike[str],
    prefix: str,
    *,
    heads: int,
    kv_heads: int | None = None,
    rope: Callable[..., NDArray] | None = None,
) -> SelfAttention:
    """A layer in float32 with weights and biases from a model's file: BERT, Llama, Whisper, GPT-2 and all who name them so.

    path      a .safetensors file; bfloat16 and float16 become float32
    prefix    what the layer's names begin with, as "encoder.layer.0.attention" or "model.layers.0.self_attn"
    heads, kv_heads, rope    as SelfAttention's: the file does not have them, the model's config.json does

    Raises ValueError if there are no such weights or if they do not fit the heads, TypeError for quantized ones,
    ModuleNotFoundError without the extra `weights`.

    >>> layer = from_safetensors("model.safetensors", "model.layers.0.self_attn", heads=9, kv_heads=3, rope=rope(100000.0))
    """
    return SelfAttention(**read_weights(path, prefix), heads=heads, kv_heads=kv_heads, rope=rope)


class _Product:
    """Words times several matrices side by side, plus their biases."""

    def __init__(self, parts: Sequence[tuple[NDArray, NDArray | None, int]]) -> None:
        """parts: weights (n, columns), biases (columns,) or None, and how many heads share the columns."""
        weights, biases, self._counts = zip(*parts, strict=True)
        self.w = np.concatenate(weights, axis=1)
        self.b = None
        if any(b is not None for b in biases):
            self.b = np.concatenate([np.zeros(w.shape[1], w.dtype) if b is None else b for w, b, _ in parts])
        self._ends = np.cumsum([w.shape[1] for w in weights])[:-1]
        self.rows = _Rows(self.w.shape[1], self.w.dtype)

    def __call__(self, x: NDArray, y: NDArray) -> None:
        """Write x w + b to y (rows, columns)."""
        np.matmul(x, self.w, out=y)
        if self.b is not None:
            y += self.b

    def heads(self, x: NDArray, y: NDArray) -> Iterator[NDArray]:
        """x (B, S, n) times each matrix, (B, heads, S, channels), written to y (B S, columns)."""
        B, S, n = x.shape
        self(x.reshape(B * S, n), y)
        for columns, H in zip(np.split(y, self._ends, axis=1), self._counts, strict=True):
            yield _by_heads(columns, B, S, H)


class _Rows:
    """Memory for rows of `width` numbers, kept from call to call.

    A row begins an odd number of cache lines behind the one before. With 1536 floats, 96 lines, all keys' first channels
    would lie in 2 of L1's 64 sets: attention took a third longer (S 512, 8 heads, one core of an Intel Xeon).
    """

    def __init__(self, width: int, dtype: np.dtype) -> None:
        self.width, self.dtype = width, dtype
        self._free: list[NDArray] = []

    def new(self, count: int) -> NDArray:
        """(count, width), nobody else's."""
        lines = -(-self.width * self.dtype.itemsize // LINE) | 1
        return empty((count, lines * LINE // self.dtype.itemsize), self.dtype)[:, :self.width]

    @contextlib.contextmanager
    def lent(self, count: int) -> Iterator[NDArray]:
        """(count, width) for as long as this lasts; who comes meanwhile gets another piece."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = self.new(count)
        if len(memory) < count:
            memory = self.new(count)
        try:
            yield memory[:count]
        finally:
            self._free.append(memory)

    def __reduce__(self) -> tuple:
        return _Rows, (self.width, self.dtype)


def _by_heads(rows: NDArray, B: int, S: int, H: int) -> NDArray:
    """Rows (B S, H channels) as (B, H, S, channels), a view."""
    return np.reshape(rows, (B, S, H, rows.shape[1] // H), copy=False).transpose(0, 2, 1, 3)
