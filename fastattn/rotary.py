"""Rotary position embedding: q and k turned by where their words stand, so that q k depends on how far apart they are.

    channels     c   c + n/2        n channels of a head are turned, in pairs (a, b)
                 a      b     ->    a cos(p f) - b sin(p f), b cos(p f) + a sin(p f)        p the word's position
    frequencies  f = theta^(-2c/n), c = 0 ... n/2 - 1: fast pairs tell neighbours apart, slow ones chapters

`scaling` changes the frequencies of a model that is to read longer texts than it was trained on: KINDS, one function each.
Angles, cos and sin are computed in float64 and rounded once to x's dtype; a layer's q and k, and all layers of a model, find
them in TABLES tables that are kept.

Su et al., RoFormer, arXiv:2104.09864.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .fpu import default_state
from .passes.turn import padded, turned
from .tiles.job import address, empty

TABLES = 8                      # kept; 2048 positions of 64 channels in float32 take 512 KB


@dataclass(frozen=True)
class rope:
    """Rotary position embedding, a function of x: each pair of channels turned by the angle position * frequency.

    theta        the frequencies are theta^(-2c/D); None: the scaling's rope_theta, else 10000
    scaling      a model's dictionary `rope_scaling` or `rope_parameters`, as Hugging Face's config.json has it; None: nothing
    channels     how many are turned, the first of each head; None: D, or the scaling's partial_rotary_factor of it
    interleaved  pairs are the channels (2c, 2c + 1), as in GPT-J; False: (c, c + channels / 2), as in Llama

    What a scaling has, by its kind (`rope_type` or `type`), in brackets what it may have:
        default
        linear    factor
        dynamic   factor, original_max_position_embeddings
        llama3    factor, original_max_position_embeddings, low_freq_factor, high_freq_factor
        yarn      factor, original_max_position_embeddings [attention_factor beta_fast beta_slow mscale mscale_all_dim truncate]
        longrope  factor, original_max_position_embeddings, short_factor, long_factor [attention_factor]
    Where config.json has max_position_embeddings beside the dictionary and the latter lacks something, it may be put in:
    it is dynamic's length, and tells yarn and longrope the factor. dynamic and longrope look at the length of the text, its
    greatest position and 1, in each call anew.

    Raises TypeError for what is no number, ValueError for an unknown kind and for entries that are missing or unknown.
    Objects that are made alike are equal, and can be pickled.

    >>> turn = rope(500000.0, {"rope_type": "linear", "factor": 4.0})
    >>> o = attention(turn(q), turn(k), v, mask=causal)
    >>> layer = SelfAttention.random(d_model=512, heads=8, rope=rope())
    """

    theta: float | None = None
    scaling: Any = None                     # afterwards pairs (name, value)
    _: KW_ONLY
    channels: int | None = None
    interleaved: bool = False

    def __post_init__(self) -> None:
        known = checks.scaling(self.scaling, ENTRIES)
        found = {"theta": checks.theta(self.theta, known.pop("rope_theta", None)), "scaling": tuple(known.items()) or None,
                 "channels": checks.channels(self.channels, known), "interleaved": bool(self.interleaved)}
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def __call__(self, x: ArrayLike, positions: ArrayLike | None = None, *, out: NDArray | None = None) -> NDArray:
        """x (..., S, D) turned, in its dtype: new, or in `out`, which may be x.

        positions    integers (S,), or (B, S) for x (B, ..., S, D), from -2^28 to 2^28; 0, 1, 2 ... if None

        Position 0 changes nothing; but a scaling's attention factor multiplies all that is turned.
        Raises TypeError for what is not such an array, ValueError for shapes and positions that do not fit.
        """
        x = checks.floats("x", x)
        n = checks.turned_channels(self.channels, dict(self.scaling or ()), x.shape)
        at = checks.positions(positions, x.shape)
        if out is not None:
            checks.out(out, x.shape, x.dtype)
        y = x if out is not None and _same(x, out) else _apart(x, out)
        if x.size:
            S = x.shape[-2]
            table = _table(self, n, x.dtype, (S,), None) if at is None else _table(self, n, x.dtype, at.shape, at.tobytes())
            sources = _pieces(x, len(table))
            for source, target in zip(sources, sources if y is x else _pieces(y, len(table)), strict=True):
                turned(source, target, table, n // 2, self.interleaved)
        if out is None:
            return y
        if not _same(y, out):
            out[...] = y
        return out


def _same(x: NDArray, y: NDArray) -> bool:
    """Whether y is x, number for number."""
    return address(x) == address(y) and x.strides == y.strides


def _apart(x: NDArray, out: NDArray | None) -> NDArray:
    """Where x's result can be written: `out`, or memory of its own if that shares some with x, or has gaps in its last axis."""
    if out is None or not out.flags.aligned or (out.shape[-1] > 1 and out.strides[-1] != out.itemsize):
        return empty(x.shape, x.dtype)
    return empty(x.shape, x.dtype) if np.may_share_memory(x, out) else out


def _pieces(x: NDArray, tables: int) -> list[NDArray]:
    """x (..., S, D) as views (B, H, S, D); what is between B and H is taken apart. Three axes: H, or B if each has a table."""
    if x.ndim < 4:
        return [x[:, None] if tables > 1 else x.reshape(-1, *x.shape[-2:], copy=False)[None]]
    return [x[(slice(None), *between)] for between in np.ndindex(x.shape[1:-3])]


@functools.lru_cache(TABLES)
def _table(turn: rope, n: int, dtype: np.dtype, shape: tuple[int, ...], positions: bytes | None) -> NDArray:
    """cos and sin as passes/turn.py reads them, (B or 1, S, 2, numbers), for positions of that shape."""
    at = np.arange(shape[0]) if positions is None else np.frombuffer(positions, np.int64).reshape(shape)
    with np.errstate(all="ignore"), default_state():
        frequencies, factor = frequencies_of(turn, n, int(at.max(initial=-1)) + 1)
        angles = at.reshape(-1, shape[-1], 1) * frequencies
        cos, sin = factor * np.cos(angles), factor * np.sin(angles)
        if turn.interleaved:
            cos, sin = np.repeat(cos, 2, axis=-1), np.stack([-sin, sin], axis=-1).reshape(*sin.shape[:-1], n)
        table = np.zeros((*cos.shape[:2], 2, padded(cos.shape[-1], dtype)), dtype)
        table[..., 0, :cos.shape[-1]], table[..., 1, :cos.shape[-1]] = cos, sin
    return table


# ---- frequencies -----------------------------------------------------------------------------------------------------------
def frequencies_of(turn: rope, n: int, length: int) -> tuple[NDArray, float]:
    """The frequencies (n / 2,) of n channels for a text of that length, and what cos and sin are multiplied by."""
    given = {name: value for name, value in turn.scaling or () if name != "partial_rotary_factor"}
    return KINDS[given.pop("rope_type", "default")](turn.theta, n, length, **given)


def _plain(theta: float, n: int, length: int) -> tuple[NDArray, float]:
    return theta ** (-np.arange(0, n, 2) / max(n, 1)), 1.0


def _linear(theta: float, n: int, length: int, *, factor: float) -> tuple[NDArray, float]:
    """Positions are divided by the factor. Chen et al., arXiv:2306.15595."""
    f, _ = _plain(theta, n, length)
    return f / factor, 1.0


def _dynamic(theta: float, n: int, length: int, *, factor: float, original_max_position_embeddings: int) -> tuple[NDArray, float]:
    """Texts longer than the model knows get a larger theta: the slowest pair then turns as much as at the length it knows."""
    longer = max(length / original_max_position_embeddings, 1)
    # Two channels have one frequency, 1 with any theta.
    return _plain(theta * (factor * longer - (factor - 1)) ** (n / max(n - 2, 1)), n, length)


def _llama3(
    theta: float,
    n: int,
    length: int,
    *,
    factor: float,
    original_max_position_embeddings: int,
    low_freq_factor: float,
    high_freq_factor: float,
) -> tuple[NDArray, float]:
    """Pairs that turn often in a text of the known length stay, slow ones are divided, in between it goes over.

    Llama 3.1's model card and code.
    """
    f, _ = _plain(theta, n, length)
    turns = original_max_position_embeddings * f / (2 * np.pi)
    stays = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return (1 - stays) * f / factor + stays * f, 1.0


def _yarn(
    theta: float,
    n: int,
    length: int,
    *,
    factor: float,
    original_max_position_embeddings: int,
    attention_factor: float | None = None,
    beta_fast: float = 32,
    beta_slow: float = 1,
    mscale: float = 0,
    mscale_all_dim: float = 0,
    truncate: bool = True,
) -> tuple[NDArray, float]:
    """As llama3, but the ramp is straight in the number of the pair; and scores are sharpened. Peng et al., arXiv:2309.00071."""
    def pair(turns: float) -> float:
        """The pair that turns so often in a text of the known length."""
        return n * math.log(original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def sharper(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    f, _ = _plain(theta, n, length)
    low, high = pair(beta_fast), pair(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n - 1)
    # A ramp of no length is a step.
    divided = np.clip((np.arange(n // 2) - low) / (high - low or 0.001), 0, 1)
    if attention_factor is None:
        attention_factor = sharper(mscale) / sharper(mscale_all_dim) if mscale and mscale_all_dim else sharper(1)
    return f / factor * divided + f * (1 - divided), attention_factor


def _longrope(
    theta: float,
    n: int,
    length: int,
    *,
    factor: float,
    original_max_position_embeddings: int,
    short_factor: tuple[float, ...],
    long_factor: tuple[float, ...],
    attention_factor: float | None = None,
) -> tuple[NDArray, float]:
    """Each pair has a divisor of its own, another in texts longer than the model knew. Ding et al., arXiv:2402.13753."""
    f, _ = _plain(theta, n, length)
    short = length <= original_max_position_embeddings
    divisors = checks.divisors("short_factor", short_factor, n) if short else checks.divisors("long_factor", long_factor, n)
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(max(factor, 1)) / math.log(original_max_position_embeddings))
    return f / divisors, attention_factor


KINDS: dict[str, Callable[..., tuple[NDArray, float]]] = {
    "default": _plain, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope,
}


def _entries(kind: Callable) -> dict[str, bool]:
    """What a dictionary of that kind may hold, and whether it must."""
    return {name: x.default is x.empty for name, x in inspect.signature(kind).parameters.items() if x.kind is x.KEYWORD_ONLY}


ENTRIES = {name: _entries(kind) for name, kind in KINDS.items()}
