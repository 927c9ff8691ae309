"""The shapes and masks that are measured, as data: what tests, rivals and reports share.

Inputs are what a user has: contiguous (B, H, S, D) arrays from NumPy's own allocator, at whatever address that gives.
Work is what the mask leaves: 2 (D + Dv) floating-point operations for each pair of a query and a key that it sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROWS = 512                      # queries that `formula` holds scores of: 32 MiB a head at 8192 keys


class Sight(NamedTuple):
    """Which keys query i sees, as numbers; it stands at p = i + n - Sq, where n is its sequence's number of keys."""

    causal: bool = False                        # j <= p
    before: int | None = None                   # p - before <= j
    lengths: tuple[int, ...] | None = None      # j < n, one a sequence; None: all Sk

    def __str__(self) -> str:
        words = ["causal"] * self.causal
        if self.before is not None:
            words.append(f"window({self.before})")
        if self.lengths is not None:
            words.append(f"lengths {min(self.lengths)}..{max(self.lengths)}")
        return " & ".join(words) or "none"


@dataclass(frozen=True)
class Case:
    """One row of the table. `times` and `share`: what we aim at, as a multiple of the best rival and of the FMA peak."""

    name: str
    B: int
    Hq: int
    Hkv: int
    Sq: int
    Sk: int
    D: int
    Dv: int
    mask: Sight
    dtype: str
    times: float | None = None
    share: float | None = None

    def runs(self) -> tuple[NDArray, NDArray]:
        """(lo, hi), (B or 1, Sq): query i of sequence b sees the keys lo <= j < hi."""
        n = np.array(self.mask.lengths or [self.Sk])[:, None]
        p = np.arange(self.Sq) + n - self.Sq
        hi = np.clip(p + 1, 0, n) if self.mask.causal else np.broadcast_to(n, p.shape)
        lo = np.zeros_like(p) if self.mask.before is None else np.clip(p - self.mask.before, 0, hi)
        return lo, hi

    def seen(self) -> NDArray[np.bool_]:
        """The mask as booleans, (B or 1, 1, Sq, Sk)."""
        lo, hi = (x[:, None, :, None] for x in self.runs())
        j = np.arange(self.Sk)
        return (lo <= j) & (j < hi)

    @property
    def sees_all(self) -> bool:
        return self.mask == Sight()

    @property
    def square_causal(self) -> bool:
        """Causal alone, with as many queries as keys: here every library means the same by it."""
        return self.mask == Sight(causal=True) and self.Sq == self.Sk

    @property
    def flops(self) -> int:
        """Needed work: 2 D for the score of each pair that is seen, 2 Dv for its share of the mix."""
        lo, hi = self.runs()
        pairs = int((hi - lo).sum()) * (self.B // len(lo)) * self.Hq
        return 2 * pairs * (self.D + self.Dv)

    def inputs(self) -> tuple[NDArray, NDArray, NDArray]:
        """q, k and v, standard normal, the same ones every time."""
        rng = np.random.default_rng(0)
        shapes = ((self.B, self.Hq, self.Sq, self.D), (self.B, self.Hkv, self.Sk, self.D),
                  (self.B, self.Hkv, self.Sk, self.Dv))
        return tuple(rng.standard_normal(shape, dtype=self.dtype) for shape in shapes)

    def small(self) -> Case:
        """A case of the same kind that takes milliseconds and still has several tiles, edges and heads."""
        B, group = min(self.B, 2), self.Hq // self.Hkv
        Hkv, Sq, Sk = min(self.Hkv, 2), min(self.Sq, 150), min(self.Sk, 190 if self.Sq != self.Sk else 150)
        before = None if self.mask.before is None else min(self.mask.before, 20)
        lengths = None if self.mask.lengths is None else spread(Sk // 8, Sk, B)
        return replace(self, B=B, Hq=Hkv * group, Hkv=Hkv, Sq=Sq, Sk=Sk, mask=Sight(self.mask.causal, before, lengths))

    def __str__(self) -> str:
        heads = f"{self.Hq}" if self.Hq == self.Hkv else f"{self.Hq}/{self.Hkv}"
        S = f"{self.Sq}" if self.Sq == self.Sk else f"{self.Sq}x{self.Sk}"
        D = f"{self.D}" if self.Dv == self.D else f"{self.D}/{self.Dv}"
        return f"{self.B}, {heads}, {S}, {D}" + (" float64" if self.dtype == "float64" else "")


def spread(least: int, most: int, count: int) -> tuple[int, ...]:
    """Lengths spread evenly, the first and the last included: spread(64, 512, 8) = 64, 128, ... 512."""
    return tuple(round(x) for x in np.linspace(least, most, count))


ALL, CAUSAL = Sight(), Sight(causal=True)
WINDOW, PADDED = Sight(causal=True, before=255), Sight(lengths=spread(64, 512, 8))
F32, F64 = "float32", "float64"

CASES = (
    #    name              B   Hq Hkv   Sq    Sk    D   Dv  mask          x best rival, of peak
    Case("s2048",          1,   8,  8, 2048, 2048,  64,  64, ALL,    F32, 1.22, 0.94),
    Case("s2048-causal",   1,   8,  8, 2048, 2048,  64,  64, CAUSAL, F32, 1.65, 0.92),
    Case("s512",           1,   8,  8,  512,  512,  64,  64, ALL,    F32, 1.25, 0.91),
    Case("s512-causal",    1,   8,  8,  512,  512,  64,  64, CAUSAL, F32, 2.7, 0.86),
    Case("d128",           1,   8,  8, 2048, 2048, 128, 128, ALL,    F32, 1.10, 0.95),
    Case("d128-causal",    1,   8,  8, 2048, 2048, 128, 128, CAUSAL, F32, 1.5, 0.93),
    Case("d80",            1,   8,  8, 1024, 1024,  80,  80, ALL,    F32, 1.15, 0.85),
    Case("d80-causal",     1,   8,  8, 1024, 1024,  80,  80, CAUSAL, F32, 1.6, 0.78),
    Case("gqa-causal",     1,  32,  8, 1024, 1024, 128, 128, CAUSAL, F32, 1.5, 0.88),
    Case("batch8",         8,  12, 12,  128,  128,  64,  64, ALL,    F32, 1.55, 0.84),
    Case("batch8-causal",  8,  12, 12,  128,  128,  64,  64, CAUSAL, F32, 2.7, 0.72),
    Case("batch32",       32,  12, 12,   64,   64,  32,  32, ALL,    F32, 1.75, 0.66),
    Case("batch32-causal", 32, 12, 12,   64,   64,  32,  32, CAUSAL, F32, 2.6, 0.50),
    Case("padding",        8,  12, 12,  512,  512,  64,  64, PADDED, F32, 2.0, 0.80),
    Case("window",         1,   8,  8, 8192, 8192,  64,  64, WINDOW, F32, 20, 0.75),
    Case("f64",            1,   8,  8, 1024, 1024,  64,  64, ALL,    F64, 1.2, 0.90),
    Case("f64-causal",     1,   8,  8, 1024, 1024,  64,  64, CAUSAL, F64, 1.8, 0.80),
    # One sentence in MiniLM, an image in ViT, 30 s of sound in Whisper, text seen by an image in Stable Diffusion, a prompt
    # in Llama 3.2 1B, its last 128 words against those before and the next word, multi-head latent attention, and the least
    # that can be asked.
    Case("sentence",       1,  12, 12,   16,   16,  32,  32, ALL,    F32),
    Case("image",          1,  12, 12,  197,  197,  64,  64, ALL,    F32),
    Case("sound",          1,   8,  8, 1500, 1500,  64,  64, ALL,    F32),
    Case("cross",          2,   8,  8, 4096,   77,  40,  40, ALL,    F32),
    Case("prompt",         1,  32,  8, 1024, 1024,  64,  64, CAUSAL, F32),
    Case("chunk",          1,  32,  8,  128, 1024,  64,  64, CAUSAL, F32),
    Case("next",           1,  32,  8,    1, 1024,  64,  64, CAUSAL, F32),
    Case("latent",         1,  16, 16,  512,  512, 192, 128, CAUSAL, F32),
    Case("least",          1,   1,  1,    8,    8,  64,  64, ALL,    F32),
)


# ---- the race ----------------------------------------------------------------------------------------------------------
D_MODEL, HEADS = 512, 8
LENGTHS = (16, 64, 256, 1024, 4096, 8192, 16384, 32768)
BATCHES = (1, 16)
# Layers that see all words at once, and what each word sees. A window of 256 words is the word itself and 255 before it.
SIGHTS = {"attention": ALL, "causal": CAUSAL, "window 256": WINDOW}
WORD_BY_WORD = "word by word"                   # what "causal" computes
# Layers that read one word after the other, ours and torch's; and of each cell how many products with x, and as many with h.
CELLS = ("elman", "gru", "lstm", "bidirectional lstm")
TORCH = ("torch rnn", "torch gru", "torch lstm", "torch bidirectional lstm")
GATES = {"elman": 1, "gru": 3, "lstm": 4}
KINDS = (*SIGHTS, *CELLS, *TORCH, WORD_BY_WORD)


def recurrent(kind: str) -> tuple[str, int]:
    """Of a kind of CELLS or TORCH: its cell, a key of GATES, and in how many directions it reads."""
    both, name = "bidirectional ", kind.removeprefix("torch ")
    return ("elman" if name == "rnn" else name.removeprefix(both)), 2 if name.startswith(both) else 1


class Race(NamedTuple):
    """A layer of D_MODEL numbers a word, HEADS heads or D_MODEL units, on `batch` texts of S words."""

    kind: str
    S: int
    batch: int

    @property
    def flops(self) -> int:
        """Needed work: products with weights, and for attention those of the pairs that are seen."""
        words, product = self.batch * self.S, 2 * D_MODEL**2
        if self.kind in (*CELLS, *TORCH):
            cell, directions = recurrent(self.kind)
            return words * 2 * GATES[cell] * directions * product
        sight, D = SIGHTS.get(self.kind, CAUSAL), D_MODEL // HEADS
        return words * 4 * product + Case(self.kind, self.batch, HEADS, HEADS, self.S, self.S, D, D, sight, F32).flops

    def words(self) -> NDArray:
        """x (batch, S, D_MODEL), standard normal, the same every time."""
        return np.random.default_rng(0).standard_normal((self.batch, self.S, D_MODEL), dtype=F32)

    def __str__(self) -> str:
        return f"{self.kind}, {self.S:,} words" + (f", batch {self.batch}" if self.batch > 1 else "")


def named(names: list[str] | None) -> tuple[Case, ...]:
    """The cases of these names, in the table's order; all of them if there are none."""
    unknown = set(names or ()) - {case.name for case in CASES}
    if unknown:
        raise ValueError(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(case.name for case in CASES)}")
    return tuple(case for case in CASES if not names or case.name in names)


# ---- what is right -----------------------------------------------------------------------------------------------------
def formula(case: Case, q: NDArray, k: NDArray, v: NDArray) -> NDArray[np.float64]:
    """softmax(q kᵀ / sqrt(D)) v in float64, a few rows at a time and only over keys that one of them sees."""
    o = np.empty((case.B, case.Hq, case.Sq, case.Dv))
    lo, hi = (np.broadcast_to(x, (case.B, case.Sq)) for x in case.runs())
    group = case.Hq // case.Hkv
    for b, h, rows in _blocks(case):
        first, last = lo[b, rows].min(), hi[b, rows].max()
        j = np.arange(first, last)
        s = q[b, h, rows].astype(float) @ k[b, h // group, first:last].astype(float).T / math.sqrt(case.D)
        s = np.where((lo[b, rows, None] <= j) & (j < hi[b, rows, None]), s, -np.inf)
        p = np.exp(s - s.max(axis=1, keepdims=True))
        o[b, h, rows] = p / p.sum(axis=1, keepdims=True) @ v[b, h // group, first:last].astype(float)
    return o


def _blocks(case: Case) -> Iterator[tuple[int, int, slice]]:
    for b, h in np.ndindex(case.B, case.Hq):
        for i in range(0, case.Sq, ROWS):
            yield b, h, slice(i, i + ROWS)


def error_limit(case: Case) -> float:
    """The largest error of o that is still that of arithmetic in the case's dtype.

    o mixes standard normal numbers. Float32 throughout errs by 1e-6 to 1e-5 here, bfloat16 or TF32 products by 1e-3 to
    1e-2; float64 errs by 1e-15 to 1e-14, float32 by 1e-6.
    """
    return 1e-4 if case.dtype == F32 else 1e-10
