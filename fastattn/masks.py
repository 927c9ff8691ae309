"""Which keys a query may see: causal, window, lengths, packed, prefix, boolean arrays; joined with &.

A mask says its rule twice: `sees`, key by key, is the truth, slow and plain; `run` is the same as two numbers for each
query, lo <= j < hi, and is all that the kernels get: a new mask never needs a new kernel. To join runs is max(lo), min(hi):

             keys ->
row i0       . # # # # . . . .        # seen   . not seen
row i0 + 1   . . # # # # . . .
row i0 + 2   . . . # # # # . .
               |   |   |   |
               |   greatest lo, least hi    every row sees the keys between: no compare
               least lo, greatest hi        some row sees the keys between: visit

causal                   window(3)                causal & window(3)          Sq = 3, Sk = 7
# # # # # . .            . # # # # # #            . # # # # . .
# # # # # # .            . . # # # # #            . . # # # # .
# # # # # # #            . . . # # # #            . . . # # # #
lo = 0, hi = p + 1       lo = p - 3, hi = Sk      lo = p - 3, hi = p + 1

p is the position of query i among the keys: p = i + Sk - Sq, so the last query stands at the last key. Joined with
`lengths` each sequence has its own, p = i + k_length - q_length. What is no run is a boolean array and stays one: `seen`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks

# Further than any key is from any query, and far enough from the ends of int64 to be added to a position.
BEYOND = 1 << 61

# A model's layers ask for the same runs again and again. To remember them takes a small call from 5-30 us to 0.5; runs of so
# many queries, B Sq, are kept 32 times: 32 x 2 x 32 KB at most.
REMEMBERED = 4096

Integers: TypeAlias = Any           # an int, or int64 numbers that broadcast to the queries


class Queries(NamedTuple):
    """The queries of one or of many sequences."""

    i: Integers                                 # which of its sequence a query is
    p: Integers                                 # where it stands among the keys
    each: Callable[[NDArray], Integers]         # one number a sequence becomes one a query


# ---- masks -------------------------------------------------------------------------------------------------------------
class Mask:
    """Which query may see which key. & joins masks, and masks with boolean arrays (True: may see).

    >>> mask = causal & lengths([7, 5])

    Immutable, and hashable unless there is a boolean array in it.
    """

    __array_ufunc__ = None                      # array & mask: NumPy leaves it to __rand__
    __match_args__: tuple[str, ...] = ()        # the arguments it was made of
    B: int | None = None                        # how many sequences it has numbers for; None: it is one for all
    of_any_size = True                          # whether it suits sequences that differ in Sq and Sk

    @property
    def parts(self) -> tuple[Mask, ...]:
        """The masks that this one joins."""
        return (self,)

    def sees(self, j: NDArray, at: Queries) -> Any:
        """Whether the queries see the keys j."""
        return True

    def run(self, at: Queries) -> tuple[Integers | None, Integers | None]:
        """The queries see no key but lo <= j < hi; None: no limit."""
        return None, None

    def fit(self, B: int | None, Sq: int, Sk: int) -> None:
        """Raise if the mask is not one for B (None: any) sequences of Sq queries and Sk keys."""
        if self.B not in (None, B):
            raise ValueError(f"mask must have a number for each of the B = {B} sequences of the batch; got {self!r}")

    def materialize(self, Sq: int, Sk: int) -> NDArray[np.bool_]:
        """The mask as a boolean array that broadcasts to (B, Hq, Sq, Sk). O(Sq Sk) memory: for the eye, and for tests."""
        for part in self.parts:
            part.fit(next((part.B for part in self.parts if part.B is not None), None), Sq, Sk)
        j, at = np.arange(Sk), _queries(self.parts, np.arange(Sq)[:, None], Sq, Sk, lambda x: x[:, None, None, None])
        seen = np.ones((Sq, Sk), bool)
        for part in self.parts:
            seen = _both(seen, part.sees(j, at))
        return seen

    def __and__(self, other: Mask | NDArray[np.bool_]) -> Mask:
        return Joined(self.parts + _as_mask(other).parts)

    def __rand__(self, other: NDArray[np.bool_]) -> Mask:
        return Joined(_as_mask(other).parts + self.parts)

    def __bool__(self) -> NoReturn:
        raise TypeError("a mask is neither true nor false; masks are joined with &, not with `and`")

    def __or__(self, other: object) -> NoReturn:
        raise TypeError("masks are joined with &, what all let through; for | join boolean arrays, mask.materialize(Sq, Sk)")

    __ror__ = __or__

    def __invert__(self) -> NoReturn:
        raise TypeError("a mask has no ~; for the keys that it hides invert a boolean array, ~mask.materialize(Sq, Sk)")

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"masks do not change; make a new one instead of setting {name}")

    def __reduce__(self) -> tuple:
        return type(self), tuple(getattr(self, name) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _comparable(self) == _comparable(other)

    def __hash__(self) -> int:
        known = vars(self)
        if "hash" not in known:
            known["hash"] = hash((type(self), *_comparable(self)))
        return known["hash"]

    def __repr__(self) -> str:
        arguments = [getattr(self, name) for name in self.__match_args__]
        while len(arguments) > 1 and arguments[-1] is None:
            arguments.pop()
        return f"{type(self).__name__}({', '.join(map(_short, arguments))})"


class Causal(Mask):
    """`causal`: no key behind the query's own position; the last query stands at the last key, whatever Sq and Sk.

    Sq = 2, Sk = 5    # # # # .        Sq = 3, Sk = 2    . .
                      # # # # #                          # .
                                                         # #
    """

    def sees(self, j: NDArray, at: Queries) -> NDArray:
        return j <= at.p

    def run(self, at: Queries) -> tuple[None, Integers]:
        return None, at.p + 1

    def __repr__(self) -> str:
        return "causal"


class CausalTopLeft(Mask):
    """`causal_top_left`: query i sees the keys up to key i, the first stands at the first, whatever Sq, Sk and lengths.

    Sq = 2, Sk = 5    # . . . .        Sq = 3, Sk = 2    # .
                      # # . . .                          # #
                                                         # #
    """

    def sees(self, j: NDArray, at: Queries) -> NDArray:
        return j <= at.i

    def run(self, at: Queries) -> tuple[None, Integers]:
        return None, at.i + 1

    def __repr__(self) -> str:
        return "causal_top_left"


causal = Causal()
causal_top_left = CausalTopLeft()


class window(Mask):
    """At most `left` keys before and `right` keys behind the query's own position; None or -1: all of them.

    The query's own key is not counted: the sliding window of W keys that models speak of is causal & window(W - 1).

    window(1, 2), Sq = 3, Sk = 5    . # # # #
                                    . . # # #
                                    . . . # #
    """

    __match_args__ = ("left", "right")
    left: int | None
    right: int | None

    def __init__(self, left: int | None, right: int | None = None) -> None:
        vars(self).update(left=checks.window_side("left", left), right=checks.window_side("right", right))

    def sees(self, j: NDArray, at: Queries) -> Any:
        near = True if self.left is None else at.p - min(self.left, BEYOND) <= j
        return near if self.right is None else near & (j <= at.p + min(self.right, BEYOND))

    def run(self, at: Queries) -> tuple[Integers | None, Integers | None]:
        return (None if self.left is None else at.p - min(self.left, BEYOND),
                None if self.right is None else at.p + (min(self.right, BEYOND) + 1))


class lengths(Mask):
    """Sequence b of the batch has only its first k_lengths[b] keys, and its first q_lengths[b] queries; the rest is padding.

    Queries past q_lengths[b] see nothing. Causal, window and prefix joined with it go by the sequence's own lengths: query
    i stands at position i + k_length - q_length, with q_length = Sq if not given: the cache of a decoder is
    causal & lengths(k_lengths), padded sequences that look at themselves are causal & lengths(n, n).

    causal & lengths([4], [2]),         # # # . .
    Sq = 3, Sk = 5                      # # # # .
                                        . . . . .
    """

    __match_args__ = ("k_lengths", "q_lengths")
    of_any_size = False
    k_lengths: NDArray[np.int64]
    q_lengths: NDArray[np.int64] | None

    def __init__(self, k_lengths: ArrayLike, q_lengths: ArrayLike | None = None) -> None:
        k = checks.per_sequence("k_lengths", k_lengths)
        q = None if q_lengths is None else checks.per_sequence("q_lengths", q_lengths)
        if q is not None and q.shape != k.shape:
            raise ValueError(f"k_lengths and q_lengths must be as many; got {k.size} and {q.size}")
        vars(self).update(k_lengths=k, q_lengths=q, B=len(k))

    def sees(self, j: NDArray, at: Queries) -> NDArray:
        seen = j < at.each(self.k_lengths)
        return seen if self.q_lengths is None else seen & (at.i < at.each(self.q_lengths))

    def run(self, at: Queries) -> tuple[None, Integers]:
        hi = at.each(self.k_lengths)
        return None, hi if self.q_lengths is None else np.where(at.i < at.each(self.q_lengths), hi, 0)

    def fit(self, B: int | None, Sq: int, Sk: int) -> None:
        super().fit(B, Sq, Sk)
        checks.at_most("k_lengths", self.k_lengths, "keys, Sk", Sk)
        if self.q_lengths is not None:
            checks.at_most("q_lengths", self.q_lengths, "queries, Sq", Sq)


class packed(Mask):
    """Sequences that lie one behind the other: query i sees key j if segment_ids, (S,) or (B, S), has one number for both.

    Equal numbers stand together, and every place is both a query and a key: Sq = Sk = S.

    packed([7, 7, 7, 2, 2])    # # # . .
                               # # # . .
                               # # # . .
                               . . . # #
                               . . . # #
    """

    __match_args__ = ("segment_ids",)
    of_any_size = False
    segment_ids: NDArray[np.int64]
    lo: NDArray[np.int64]
    hi: NDArray[np.int64]

    def __init__(self, segment_ids: ArrayLike) -> None:
        ids = checks.integers("segment_ids", segment_ids)
        if ids.ndim not in (1, 2):
            raise ValueError(f"segment_ids must be (S,) or (B, S); got {ids.shape}")
        rows = np.atleast_2d(ids)
        new = np.ones(rows.shape, bool)
        new[:, 1:] = rows[:, 1:] != rows[:, :-1]
        checks.stand_together(rows, new)
        last = np.roll(new, -1, axis=1)             # a segment ends where the next begins, and at the end of the row
        j, S = np.arange(rows.shape[1]), rows.shape[1]
        lo = np.maximum.accumulate(np.where(new, j, 0), axis=1)
        hi = np.minimum.accumulate(np.where(last, j + 1, S)[:, ::-1], axis=1)[:, ::-1]
        vars(self).update(segment_ids=ids, lo=checks.frozen(lo), hi=checks.frozen(hi), B=len(ids) if ids.ndim == 2 else None)

    def sees(self, j: NDArray, at: Queries) -> NDArray:
        same = self.segment_ids[..., :, None] == self.segment_ids[..., None, :]
        return same if same.ndim == 2 else same[:, None]

    def run(self, at: Queries) -> tuple[Integers, Integers]:
        return self.lo, self.hi

    def fit(self, B: int | None, Sq: int, Sk: int) -> None:
        super().fit(B, Sq, Sk)
        if not self.segment_ids.shape[-1] == Sq == Sk:
            raise ValueError(f"packed needs one segment id for each place, S = Sq = Sk; got segment_ids "
                             f"{self.segment_ids.shape}, Sq = {Sq}, Sk = {Sk}")


class prefix(Mask):
    """Causal, but every query sees the first n keys, too; n is one number, or (B,) one for each sequence.

    prefix(3), Sq = Sk = 5    # # # . .
                              # # # . .
                              # # # . .
                              # # # # .
                              # # # # #
    """

    __match_args__ = ("n",)
    n: int | NDArray[np.int64]

    def __init__(self, n: int | ArrayLike) -> None:
        if isinstance(n, (list, tuple)) or np.ndim(n):
            numbers = checks.per_sequence("n", n)
            vars(self).update(n=numbers, B=len(numbers))
        else:
            vars(self).update(n=checks.integer("n", n, 0))

    def first(self, at: Queries) -> Integers:
        """How many keys each query sees at least."""
        return min(self.n, BEYOND) if isinstance(self.n, int) else at.each(self.n)

    def sees(self, j: NDArray, at: Queries) -> NDArray:
        return (j < self.first(at)) | (j <= at.p)

    def run(self, at: Queries) -> tuple[None, Integers]:
        return None, np.maximum(self.first(at), at.p + 1)


class Boolean(Mask):
    """A boolean array, True: may see. It is not copied."""

    __match_args__ = ("seen",)
    of_any_size = False
    __hash__ = None                             # type: ignore[assignment]
    seen: NDArray[np.bool_]

    def __init__(self, seen: Any) -> None:
        vars(self).update(seen=checks.booleans(seen))

    def sees(self, j: NDArray, at: Queries) -> NDArray:
        return self.seen

    def fit(self, B: int | None, Sq: int, Sk: int) -> None:
        sizes = (self.seen.shape[-1:], Sk), (self.seen.shape[-2:-1], Sq), (self.seen.shape[-4:-3], B)
        if self.seen.ndim > 4 or any(size not in ((), (1,), (want,)) for size, want in sizes if want is not None):
            hint = "; keys of each sequence are mask[:, None, None], padding is lengths([...])"
            raise ValueError(f"mask must broadcast to (B, Hq, Sq, Sk); got {self.seen.shape} for "
                             f"{'' if B is None else f'B = {B}, '}Sq = {Sq}, Sk = {Sk}"
                             f"{hint if self.seen.shape == (B, Sk) else ''}")

    def __repr__(self) -> str:
        return f"<bool {self.seen.shape}>"


class Joined(Mask):
    """What all of the masks let through."""

    __match_args__ = ("masks",)
    masks: tuple[Mask, ...]

    def __init__(self, masks: tuple[Mask, ...]) -> None:
        vars(self).update(masks=masks)

    @property
    def parts(self) -> tuple[Mask, ...]:
        return self.masks

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.masks))


# ---- runs --------------------------------------------------------------------------------------------------------------
def runs(mask: Any, B: int, Sq: int, Sk: int) -> tuple[NDArray | None, NDArray | None, NDArray | None]:
    """(lo, hi, seen): query i of sequence b sees key j if lo[b, i] <= j < hi[b, i] and seen[b, h, i, j].

    lo, hi  (B or 1, Sq) int64, contiguous, 0 <= lo <= hi <= Sk whatever the mask holds; both None: every key
    seen    boolean, any shape that broadcasts to (B, Hq, Sq, Sk); None: all True

    O(B Sq) time and memory, boolean arrays aside.
    """
    if mask is None:
        return None, None, None
    mask, seen = _as_mask(mask), None
    for part in mask.parts:
        if isinstance(part, Boolean):
            seen = part.seen if seen is None else _both(seen, part.seen)
    if seen is None and B * Sq <= REMEMBERED:
        return *_remembered(mask, B, Sq, Sk), None
    return *_run(mask, B, Sq, Sk), seen


@functools.lru_cache(maxsize=32)
def _remembered(mask: Mask, B: int, Sq: int, Sk: int) -> tuple[NDArray | None, NDArray | None]:
    """(lo, hi), read-only."""
    lo, hi = _run(mask, B, Sq, Sk)
    for x in (lo, hi):
        if x is not None:
            x.flags.writeable = False
    return lo, hi


def _run(mask: Mask, B: int, Sq: int, Sk: int) -> tuple[NDArray | None, NDArray | None]:
    """(lo, hi) as `runs` says."""
    for part in mask.parts:
        part.fit(B, Sq, Sk)
    lo, hi = _joined(mask.parts, _queries(mask.parts, np.arange(Sq), Sq, Sk, lambda x: x[:, None]), Sk, Sq)
    # A decoding step sees its whole cache under causal, too. The first comparison alone settles most other cases.
    if hi is not None and hi.size and hi.item(0) == Sk and (hi == Sk).all() and not lo.any():
        return None, None
    return lo, hi


def runs_packed(mask: Any, starts_q: NDArray, Sk: NDArray, Tq: int) -> tuple[NDArray | None, NDArray | None]:
    """(lo, hi) for sequences packed one behind the other, each (1, Tq), keys counted from the sequence's own first.

    starts_q (B + 1,) where each sequence's queries begin, then their end; Sk (B,) the keys it has. Queries behind that end
    see nothing.
    """
    if mask is None:
        return None, None
    parts = _as_mask(mask).parts
    for part in parts:
        if not part.of_any_size:
            raise ValueError(f"mask must be made of causal, causal_top_left, window and prefix where cu_seqlens say how long "
                             f"sequences are; got {part!r}")
        part.fit(len(Sk), 0, 0)
    Sq, T = np.diff(starts_q), int(starts_q[-1])

    def each(x: NDArray) -> NDArray:
        return np.repeat(x, Sq)

    i = np.arange(T) - each(starts_q[:-1])
    lo, hi = _joined(parts, Queries(i, i + each(Sk - Sq), each), each(Sk), T)
    if hi is None:
        return None, None
    behind = ((0, 0), (0, Tq - T))
    return np.pad(lo, behind), np.pad(hi, behind)


def _queries(parts: tuple[Mask, ...], i: NDArray, Sq: int, Sk: int, each: Callable) -> Queries:
    """Queries i of sequences of Sq and Sk; the least of the lengths among the masks says where they stand."""
    k: Integers = Sk
    q: Integers = Sq
    for part in parts:
        if isinstance(part, lengths):
            k = np.minimum(k, each(part.k_lengths))
            q = q if part.q_lengths is None else np.minimum(q, each(part.q_lengths))
    return Queries(i, i + (k - q), each)


def _joined(parts: tuple[Mask, ...], at: Queries, Sk: Integers, Sq: int) -> tuple[Any, Any]:
    """The greatest lo and the least hi, (B or 1, Sq), with 0 <= lo <= hi <= Sk. None, None if there is no limit."""
    los, his = [], []
    for part in parts:
        lo, hi = part.run(at)
        if lo is not None:
            los.append(lo)
        if hi is not None:
            his.append(hi)
    if not los and not his:
        return None, None
    rows = max(len(x) if x.ndim == 2 else 1 for x in los + his)
    lo, hi = np.zeros((2, rows, Sq), np.int64)
    for x in los:
        np.maximum(lo, x, out=lo)
    if los:
        np.minimum(lo, Sk, out=lo)
    hi[...] = Sk
    for x in his:
        np.minimum(hi, x, out=hi)
    np.maximum(hi, lo, out=hi)
    return lo, hi


# ---- pieces ------------------------------------------------------------------------------------------------------------
def _as_mask(x: Any) -> Mask:
    return x if isinstance(x, Mask) else Boolean(x)


def _both(a: NDArray, b: NDArray) -> NDArray:
    """a and b."""
    try:
        return np.logical_and(a, b)
    except ValueError:
        raise ValueError(f"masks that are joined must broadcast to one (B, Hq, Sq, Sk); got {np.shape(a)} and "
                         f"{np.shape(b)}") from None


def _comparable(mask: Mask) -> tuple:
    """What a mask was made of, as values that can be compared and hashed."""
    return tuple((x.shape, x.tobytes()) if isinstance(x, np.ndarray) else x for x in mask.__reduce__()[1])


def _short(x: Any) -> str:
    """An argument as a person would write it."""
    return np.array2string(x, separator=", ", threshold=8, edgeitems=3) if isinstance(x, np.ndarray) else repr(x)
