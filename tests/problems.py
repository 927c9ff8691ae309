"""Random problems for `attention`: dtypes, shapes around every edge of a tile, layouts, masks, score pieces, sizes of numbers.

Every property of the numbers is tested over these, so that a new option is tested everywhere once it stands here. How many
channels v has decides which code is compiled (1 to 2 s each), and so comes from a handful of patterns; everything else is
free.
"""

from dataclasses import dataclass, field

import numpy as np

from fastattn import attention, causal, causal_top_left, lengths, packed, prefix, window
from fastattn.passes.launch import SCALARS
from fastattn.simd.vec import lanes
from fastattn.tiles.sizes import VECS, queries

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
DTYPES = (F32, F64)


def L(dtype):
    """Numbers of a register."""
    return lanes(SCALARS[np.dtype(dtype)])


def W(dtype):
    """Queries of a tile."""
    return queries(SCALARS[np.dtype(dtype)])


def few_channels(dtype):
    """Numbers of channels that share one compiled variant: part of a register."""
    return range(1, L(dtype))


def many_channels(dtype):
    """A number of channels that takes every path: tiles of several registers, then some, the last of which is not full."""
    return VECS * L(dtype) + L(dtype) // 2 + 1


def edges(dtype):
    """Sizes at which the code changes its way, and their neighbours."""
    return sorted({n + d for n in (0, L(dtype), 16, 64, 128, W(dtype), 2 * W(dtype)) for d in (-1, 0, 1)} - {-1})


@dataclass
class Problem:
    """Arrays (B, H, S, D) and options. `seen` is what the mask says, as booleans, and None without one."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    options: dict = field(default_factory=dict)

    @property
    def sizes(self):
        return self.q.shape[2], self.k.shape[2]

    @property
    def seen(self):
        """What the mask says, as booleans that broadcast to (B, Hq, Sq, Sk); None without one."""
        mask = self.options.get("mask")
        return mask if mask is None or isinstance(mask, np.ndarray) else mask.materialize(*self.sizes)

    @property
    def sees(self):
        """Which query sees which key, (B, Hq, Sq, Sk): by the mask, and where the bias is not -inf."""
        (B, Hq), (Sq, Sk), bias = self.q.shape[:2], self.sizes, self.options.get("bias")
        seen = np.ones((B, Hq, Sq, Sk), bool)
        seen &= True if self.seen is None else self.seen
        return seen if bias is None else seen & (bias != -np.inf)

    def run(self, **more):
        """o and lse."""
        return attention(self.q, self.k, self.v, return_lse=True, **{**self.options, **more})

    @property
    def formula(self):
        """The options as `bounds` takes them."""
        return {**{name: x for name, x in self.options.items() if name != "mask"}, "seen": self.seen}


# ---- numbers and layouts -------------------------------------------------------------------------------------------------
def numbers(rng, shape, dtype, size=1.0):
    return (rng.standard_normal(shape) * size).astype(dtype)


def laid_out(rng, x, kind=None):
    """The same numbers, lying differently: "plain", "transposed" (B, S, H, D), "gaps" between rows, "backwards", "fortran"."""
    kind = rng.choice(["plain", "transposed", "gaps", "backwards", "fortran"]) if kind is None else kind
    if kind == "transposed":
        return x.swapaxes(-3, -2).copy().swapaxes(-3, -2)
    if kind == "gaps":
        wide = np.full((*x.shape[:-1], x.shape[-1] + 3), np.nan, x.dtype)
        wide[..., 1:-2] = x
        return wide[..., 1:-2]
    if kind == "backwards":
        return x[..., ::-1, :].copy()[..., ::-1, :]
    return np.asfortranarray(x) if kind == "fortran" else x


# ---- options -------------------------------------------------------------------------------------------------------------
def _segments(rng, S):
    return np.cumsum(rng.random(S) < 0.2) if S else np.zeros(0, int)


def masks(rng, B, Hq, Sq, Sk):
    """One mask, or several joined."""
    def one():
        kind = rng.integers(0, 8)
        if kind == 0:
            return causal
        if kind == 1:
            return causal_top_left
        if kind == 2:
            left, right = (None if rng.random() < 0.3 else int(rng.integers(0, Sk + 2)) for _ in range(2))
            return window(left, right)
        if kind == 3:
            return lengths(rng.integers(0, Sk + 1, B))
        if kind == 4:
            return lengths(rng.integers(0, Sk + 1, B), rng.integers(0, Sq + 1, B))
        if kind == 5:
            return prefix(int(rng.integers(0, Sk + 2)))
        if kind == 6 and Sq == Sk:
            return packed(_segments(rng, Sq))
        shape = [n if rng.random() < 0.6 else 1 for n in (B, Hq, Sq, Sk)]
        return rng.random(shape[int(rng.integers(0, 3)):]) < rng.choice([0.1, 0.5, 0.9])

    mask = one()
    while rng.random() < 0.4:
        mask = mask & one() if not isinstance(mask, np.ndarray) else one() & mask
    return mask


def bias_of(rng, B, Hq, Sq, Sk, dtype):
    """A bias of any shape that broadcasts; sometimes with -inf, which hides."""
    shape = [n if rng.random() < 0.6 else 1 for n in (B, Hq, Sq, Sk)]
    bias = numbers(rng, shape[int(rng.integers(0, 3)):], dtype, 2)
    if rng.random() < 0.5:
        bias[rng.random(bias.shape) < 0.3] = -np.inf
    return bias


def options_of(rng, B, Hq, Sq, Sk, dtype):
    """About half of all problems have a mask; each of the other options a fifth to a quarter of them."""
    options = {}
    if rng.random() < 0.5:
        options["mask"] = masks(rng, B, Hq, Sq, Sk)
    if rng.random() < 0.25:
        options["bias"] = bias_of(rng, B, Hq, Sq, Sk, dtype)
    if rng.random() < 0.2:
        options["alibi"] = rng.random(Hq) * rng.choice([1, 0.1])
    if rng.random() < 0.2:
        options["softcap"] = float(rng.choice([1.5, 20]))
    if rng.random() < 0.2:
        options["sink"] = rng.standard_normal(Hq) * 3
    if rng.random() < 0.3:
        options["scale"] = float(rng.choice([1.0, -0.3, 0.05, 0.0]))
    return options


def problem(rng, *, dtype=None, most=20, keys=None, plain=False):
    """A random problem. Sizes are up to `most`, and one in six times one of `edges`; plain: numbers of size 1, no layouts.

    keys: how many there are at most, if it is another number.
    """
    dtype = F32 if dtype is None and rng.random() < 0.7 else dtype or F64

    def count(most):
        return int(rng.choice(edges(dtype)) if rng.random() < 1 / 6 else rng.integers(0, most + 1))

    B, Hkv, group = (int(n) for n in rng.choice([1, 1, 2, 3], 3))
    Sq, Sk = count(most), count(keys or most)
    if rng.random() < 0.2 and keys is None:
        Sq = Sk
    D = int(rng.integers(0, 34))
    Dv = many_channels(dtype) if rng.random() < 0.15 else int(rng.choice(few_channels(dtype)))
    q_size, v_size = (1, 1) if plain else (10 ** rng.uniform(-3, 1.2), 10 ** rng.uniform(-5, 5))
    q = numbers(rng, (B, Hkv * group, Sq, D), dtype, q_size)
    k, v = numbers(rng, (B, Hkv, Sk, D), dtype), numbers(rng, (B, Hkv, Sk, Dv), dtype, v_size)
    options = options_of(rng, B, Hkv * group, Sq, Sk, dtype)
    if not plain:
        q, k, v = (laid_out(rng, x) for x in (q, k, v))
    return Problem(q, k, v, options)


def underflowing(rng, dtype):
    """Subnormal v, or weights far below what the type can hold beside a v that is huge."""
    q, k = numbers(rng, (1, 1, 4, 16), dtype), numbers(rng, (1, 1, int(rng.integers(2, 200)), 16), dtype)
    v, finite = numbers(rng, (*k.shape[:3], 5), dtype), np.finfo(dtype)
    if rng.random() < 0.5:
        return Problem(q, k, (v * float(finite.tiny) * 10 ** rng.uniform(-5, 1)).astype(dtype))
    reach = -np.log(float(finite.smallest_subnormal)) * 0.6
    q *= dtype.type(4 * reach / np.linalg.norm(q, axis=-1, keepdims=True))
    s = (q.astype(float) @ k.astype(float).swapaxes(2, 3) / 4)[:, :, :1]
    far = np.swapaxes(s.max(3, keepdims=True) - s > reach, 2, 3)
    big = np.sqrt(float(finite.max)) if rng.random() < 0.3 else float(finite.max) / 100
    return Problem(q, k, (v * np.where(far, big, 1 / np.sqrt(big))).astype(dtype))
