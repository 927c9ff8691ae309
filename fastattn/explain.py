"""Explain: the five steps of attention as data, and who looks at whom, for the eye.

    1 embed   x     2 q, k, v     3 score   s     4 softmax   p     5 mix   o

    e = explain(x, layer, tokens=["I", "love", "Apple", "phones"])
    print(e)                        a table of the steps and a heat map; in colour with rich.print(e)
    e.plot()                        a figure of matplotlib
    e.to_html("phones.html")        one page: point at a word to see whom it looks at

What each score means, and in what order its pieces are applied, stands in reference/__init__.py. o and lse are those of
`attention`, and p = exp(s - lse): the weights shown are those that the kernel mixed with.

No array of Sq x Sk is ever built, unless `rows` asks for all rows: s and p are kept of the chosen rows alone. What holds for
every row is found in blocks of rows, which are thrown away:

    entropy     how far a row's attention spreads, -sum p log p: 0 for one word, log n for n words alike
    top         the keys that it looks at most
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from . import CrossAttention, SelfAttention, attention, checks
from .masks import runs
from .screen import LABEL, Line, clip, heat_map, numbers, plain, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.text import Text

FEW = 64                            # up to so many words all is kept: every row, every weight
ROWS = 16                           # of longer texts: so many rows, evenly spaced,
TOP = 16                            # and of every row so many weights
BLOCK = 1 << 22                     # scores at a time: 16 MB of float32, and about as much again three times over
LARGEST = 1 << 27                   # scores that may be kept: 512 MB of float32, 8 heads of 4096 x 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """One text's attention, step by step; the arrays have q's dtype. R chosen rows, T weights kept of every row.

    tokens, key_tokens    the words of the queries, Sq, and of the keys, Sk; one and the same where words look at each other
    x         (Sq, d_model)     step 1, the embeddings; None if there were only q, k and v
    q, k, v   (Hq, Sq, D), (Hkv, Sk, D), (Hkv, Sk, Dv)    step 2
    rows      (R,)              the chosen queries
    s         (Hq, R, Sk)       step 3, their scores with all that is added to them; -inf: hidden
    p         (Hq, R, Sk)       step 4, their weights; hidden: 0
    o         (Hq, Sq, Dv)      step 5, the mixed result of every query
    lse       (Hq, Sq)          logarithm of the sum of exp of each row's scores
    entropy   (Hq, Sq)          of each row's weights, natural logarithm: exp(entropy) is over how many words it spreads
    top       (Hq, Sq, T)       the keys that each row looks at most, the most seen first
    top_p     (Hq, Sq, T)       their weights
    sink      (Hq, Sq)          each row's weight on the sink; None without one

    A row that sees no key has weights and entropy 0. NaN in what a row sees makes its weights NaN.
    """

    tokens: tuple[str, ...]
    key_tokens: tuple[str, ...]
    x: NDArray | None
    q: NDArray
    k: NDArray
    v: NDArray
    rows: NDArray[np.int64]
    s: NDArray
    p: NDArray
    o: NDArray
    lse: NDArray
    entropy: NDArray
    top: NDArray[np.int32]
    top_p: NDArray
    sink: NDArray | None

    @property
    def sharpest(self) -> int:
        """The head that looks most sharply: the least entropy on average. 0 if there is none."""
        mean = self.entropy.sum(axis=1)
        return int(np.nan_to_num(mean, nan=np.inf).argmin()) if mean.size else 0

    def lines(self, head: int | None = None, row: int | None = None, width: int = 80) -> Iterator[Line]:
        """What `print` shows, as lines of `fastattn.screen`: one head, and the numbers of one of the chosen rows.

        head and row are counted from 0; None: the sharpest head, the first chosen row. Raises ValueError for a head that there
        is not and a row that is not chosen.
        """
        (Hq, Sq, _), Sk = self.q.shape, self.k.shape[1]
        looks = "each other" if self.tokens is self.key_tokens else f"{Sk:,}"
        heads = f"{Hq} head{'s' * (Hq != 1)}"
        yield [(f"Attention in five steps: {Sq:,} words look at {looks}, {heads}", "bold"), f"   {self.q.dtype}"]
        yield [""]
        if not self.p.size:
            yield from self._steps(None, 0, 0)
            return
        head = self.sharpest if head is None else checks.place("head", head, len(self.q), "heads")
        i = int(self.rows[0]) if row is None else checks.chosen("row", row, self.rows)
        yield [(f"{'':32}numbers of {clip(visible(self.tokens[i]), 12)}, word {i + 1}, in head {head + 1}", "dim")]
        yield from self._steps(head, i, int(np.argmax(self.rows == i)))
        columns, rest = [visible(token) for token in self.key_tokens], None if self.sink is None else self.sink[head, self.rows]
        rows = [(int(i), visible(self.tokens[i])) for i in self.rows]
        yield [""]
        yield [(f"Who looks at whom, in %: head {head + 1} of {Hq}", "bold"),
               "" if len(rows) == Sq else f"; {len(rows)} of {Sq:,} rows",
               "" if rest is None else "; what is missing from 100 is the sink's"]
        yield [""]
        yield from heat_map(self.p[head], rows, columns, width, bold=() if row is None else (i,), rest=rest)
        yield [""]
        yield [(f"    {'word':<{LABEL - 4}}{'spread over':<14}looks most at", "dim")]
        for i, word in rows:
            seen = [(columns[j], w) for j, w in zip(self.top[head, i], self.top_p[head, i], strict=True) if w > 0]
            if self.sink is not None and self.sink[head, i] > 0:
                seen.insert(0, ("the sink", self.sink[head, i]))
            most = "   ".join(f"{clip(word, 9)} {100 * w:.0f} %" for word, w in seen[: min((width - 28) // 17, 6)])
            yield [f"    {clip(word, 11):<{LABEL - 4}}{spread(self.entropy[head, i]) if seen else '':<14}{most or 'nothing'}"]

    def _steps(self, head: int | None, i: int, r: int) -> Iterator[Line]:
        """The steps with their shapes, and with a head's numbers of query i, which is the chosen row r."""
        h, h_kv = head or 0, (head or 0) * len(self.k) // max(len(self.q), 1)
        own = self.tokens is self.key_tokens        # a query's k and v are those of the same word
        for step, name, letter, array, at in (
            ("1", "embed", "x", self.x, (i,)),
            ("2", "q, k, v", "q", self.q, (h, i)),
            ("", "", "k", self.k, (h_kv, i)),
            ("", "", "v", self.v, (h_kv, i)),
            ("3", "score", "s", self.s, (h, r)),
            ("4", "softmax", "p", self.p, (h, r)),
            ("5", "mix", "o", self.o, (h, i)),
        ):
            if array is not None:
                shown = "" if head is None or (letter in "kv" and not own) else numbers(array[at], 5)
                yield [(f" {step:>2}  {name:<9}", "bold cyan"), f"{letter}  {' x '.join(map(str, array.shape)):<14}", shown]

    def __str__(self) -> str:
        return plain(self.lines(width=screen_width()))

    def __repr__(self) -> str:
        Hq, Sq, _ = self.q.shape
        return f"<Explanation of {Sq} queries x {self.k.shape[1]} keys, {Hq} heads; {len(self.rows)} rows kept>"

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text("\n", no_wrap=True, overflow="ignore").join(Text.assemble(*line) for line in self.lines(width=screen_width()))

    def plot(self, heads: int | Iterable[int] | None = None) -> Figure:
        """A matplotlib figure: p of the chosen rows, a heat map for each of the heads, counted from 0; None: all.

        Raises ImportError without matplotlib, ValueError if there is no such head or nothing to draw.
        """
        from .plot import figure

        return figure(self, range(len(self.q)) if heads is None else heads)

    def to_html(
        self, path: str | Path, *, head: int | None = None, row: int | None = None, title: str = "Who looks at whom"
    ) -> None:
        """Write one page that needs nothing else: point at a word, or move to it with the arrow keys, to see whom it looks at.

        It opens with a head and a row, counted from 0; None: the sharpest, and its row that looks hardest at another word. It
        holds the largest weights of each row, and says what it leaves out: 4096 words and 8 heads take 3 MB.
        Raises ValueError for a text that is too long for a page, for nothing to draw, and for no such head or row.
        """
        from .page import page

        checks.drawable((len(self.q), len(self.tokens), len(self.key_tokens)))
        head = self.sharpest if head is None else checks.place("head", head, len(self.q), "heads")
        if row is None:
            others = np.where(self.top == np.arange(len(self.tokens))[:, None], 0, self.top_p)[head]
            row = int(np.nan_to_num(others.max(axis=-1)).argmax())
        row = checks.place("row", row, len(self.tokens), "queries")
        Path(path).write_text(page(self, head, row, title), encoding="utf-8", newline="\n")


def spread(entropy: float) -> str:
    """An entropy as a number of words: over how many, all alike, attention would spread as far."""
    return f"{np.exp(entropy):.1f} words"


def screen_width() -> int:
    """Columns of the terminal, at least 80."""
    return max(80, shutil.get_terminal_size().columns)


def explain(
    x: ArrayLike,
    layer: SelfAttention | CrossAttention,
    y: ArrayLike | None = None,
    *,
    tokens: Iterable[str] | None = None,
    positions: ArrayLike | None = None,
    **options: Any,
) -> Explanation:
    """The five steps of a layer on a text, from the embeddings on.

    x          (S, d_model), or with a batch of one
    layer      a SelfAttention, or a CrossAttention whose words look at those of y
    tokens     S words; None: 1, 2, 3, ...
    positions  of the words, (S,), for a SelfAttention with rope
    options    mask, rows and all others of `explain_attention`; key_tokens are the words of y

    What it gives, what is left out of long texts and what raises is said in `explain_attention`. Raises TypeError for what is no
    such layer; x that does not fit the layer raises what the layer raises.

    >>> print(explain(x, SelfAttention.random(512, heads=8), tokens=words, mask=causal))
    """
    checks.layer_reads(layer, (SelfAttention, CrossAttention), y, lambda layer: isinstance(layer, CrossAttention))
    x = checks.one_text("x", x, (2,), "(S, d_model)")
    if isinstance(layer, SelfAttention):
        q, k, v = layer.project(x, positions=positions)
    else:
        q, k, v = layer.project(x, checks.one_text("y", y, (2,), "(S, n)"))
        options.setdefault("key_tokens", checks.words("key_tokens", None, k.shape[-2], "keys"))
    return dataclasses.replace(explain_attention(q, k, v, tokens=tokens, **options), x=x)


def explain_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    tokens: Iterable[str] | None = None,
    key_tokens: Iterable[str] | None = None,
    rows: int | Iterable[int] | None = None,
    top: int | None = None,
    mask: Any = None,
    bias: ArrayLike | None = None,
    alibi: ArrayLike | None = None,
    softcap: float | None = None,
    sink: ArrayLike | None = None,
    scale: float | None = None,
    threads: int | None = None,
) -> Explanation:
    """The steps of `attention` on one text, whose options these are, from q, k and v on.

    q, k, v     (Hq, Sq, D), (Hkv, Sk, D), (Hkv, Sk, Dv), all with a batch of one or all without heads
    tokens      Sq words, of the queries; None: 1, 2, 3, ...
    key_tokens  Sk words, of the keys; None: `tokens` if Sq = Sk, else 1, 2, 3, ...
    rows        queries whose scores and weights are kept, negative ones from the end; None: all of up to 64 words, else 16
                that are evenly spaced
    top         how many weights of every row are kept; None: all of up to 64, else 16

    Returns an `Explanation`. O(Hq Sq Sk D) time in NumPy, less where the mask has windows: 2 s for 4096 words and 8 heads on one
    core of an Intel Xeon. Memory: O(Hq (Sq top + R Sk)) for R rows. Without queries or keys its arrays are empty.
    Raises what `attention` raises; ValueError for more than one text, words that are not as many as places, rows that there are
    not, and rows x keys x heads beyond 2^27; TypeError for words that are no words.

    >>> e = explain_attention(q, k, v, tokens="I love Apple phones".split(), mask=causal)
    >>> e.p[0, 2]                   # what share of the attention of Apple each word gets in head 0
    """
    q, k, v = (checks.one_text(name, x, (2, 3), "(H, S, D)") for name, x in (("q", q), ("k", k), ("v", v)))
    options = {"mask": mask, "bias": bias, "alibi": alibi, "softcap": softcap, "sink": sink, "scale": scale, "threads": threads}
    o, lse = attention(q, k, v, return_lse=True, **options)
    q, k, v, o = (x if x.ndim == 3 else x[None] for x in (q, k, v, o))
    (Hq, Sq, _), (_, Sk, _), dtype = q.shape, k.shape, q.dtype
    lse = lse.reshape(Hq, Sq)

    alike = key_tokens is None and Sq == Sk
    tokens = checks.words("tokens", tokens, Sq, "queries")
    key_tokens = tokens if alike else checks.words("key_tokens", key_tokens, Sk, "keys")
    if rows is None:
        count = Sq if max(Sq, Sk) <= FEW else min(Sq, ROWS, LARGEST // max(Hq * Sk, 1))
        rows = np.unique(np.linspace(0, Sq - 1, count).astype(int))
    rows = checks.places("rows", list(rows) if isinstance(rows, Iterable) else rows, Sq, "queries")
    checks.scores_kept(len(rows), Hq, Sk, LARGEST)
    T = min(Sk, checks.integer("top", top, 1) if top is not None else Sk if Sk <= FEW else TOP)

    scores = Scores(q, k, scale, softcap, checks.per_head("alibi", alibi, Hq, dtype), bias, mask)
    s, p = scores.weighed(rows, slice(0, Sk), lse)
    entropy, top_j, top_p = np.empty((Hq, Sq), dtype), np.empty((Hq, Sq, T), np.int32), np.empty((Hq, Sq, T), dtype)
    for i, j in scores.blocks(T):
        _, weights = scores.weighed(i, j, lse)
        entropy[:, i] = entr(weights).sum(axis=-1)
        best = np.argpartition(-weights, T - 1, axis=-1)[..., :T] if 0 < T < weights.shape[-1] else \
            np.broadcast_to(np.arange(T), (Hq, len(i), T))
        best = np.sort(best, axis=-1)               # of two that are alike the first key comes first
        most = np.take_along_axis(weights, best, axis=-1)
        order = np.argsort(-most, axis=-1, kind="stable")
        top_j[:, i] = np.take_along_axis(best, order, axis=-1) + j.start
        top_p[:, i] = np.take_along_axis(most, order, axis=-1)
    sinks = checks.per_head("sink", sink, Hq, dtype)
    if sinks is not None:                           # one more place to look at
        with np.errstate(invalid="ignore"):         # -inf - -inf: no sink, and a row that sees no key
            sinks = np.where(np.isneginf(sinks[:, None]), 0, np.exp(sinks[:, None] - lse)).astype(dtype)
        entropy += entr(sinks)
    return Explanation(tokens, key_tokens, None, q, k, v, rows, s, p, o, lse, entropy, top_j, top_p, sinks)


class Scores:
    """Scores and weights of any queries and keys, in the order of reference/__init__.py; every check has been made."""

    def __init__(self, q: NDArray, k: NDArray, scale: float | None, softcap: float | None, slopes: NDArray | None, bias: Any,
                 mask: Any) -> None:
        (Hq, Sq, D), (Hkv, Sk, _) = q.shape, k.shape
        shape = (1, Hq, Sq, Sk)
        self.shape = Hq, Sq, Sk
        # Head h of q uses head h // (Hq / Hkv) of k.
        self.q, self.k = q.reshape(Hkv, Hq // max(Hkv, 1), Sq, D), k[:, None]
        self.scale = q.dtype.type(1 / np.sqrt(max(D, 1)) if scale is None else scale)
        self.cap = None if softcap is None else q.dtype.type(softcap)
        self.slopes = None if slopes is None else slopes.astype(q.dtype)[:, None, None]
        self.bias = None if bias is None else np.broadcast_to(bias, shape)[0]
        lo, hi, seen = runs(mask, 1, Sq, Sk)
        self.lo: NDArray = np.zeros(Sq, int) if lo is None else lo[0]
        self.hi: NDArray = np.full(Sq, Sk) if hi is None else hi[0]
        self.seen = None if seen is None else np.broadcast_to(seen, shape)[0]

    def blocks(self, least: int) -> Iterator[tuple[NDArray, slice]]:
        """All queries, in blocks of about BLOCK scores: the queries, and the keys that any of them sees, `least` or more."""
        Hq, Sq, Sk = self.shape
        start = 0
        while start < Sq:
            count = BLOCK // max(Hq * Sk, 1) or 1
            # Where rows see little, as in windows, more of them fit.
            while (j := self._keys(start, 2 * count, least)) and 2 * count < Sq and Hq * 2 * count * (j.stop - j.start) <= BLOCK:
                count *= 2
            yield np.arange(start, min(start + count, Sq)), self._keys(start, count, least)
            start += count

    def _keys(self, start: int, count: int, least: int) -> slice:
        lo, hi = int(self.lo[start:start + count].min()), int(self.hi[start:start + count].max())
        lo = min(lo, self.shape[2] - least)
        return slice(lo, max(hi, lo + least))

    def weighed(self, i: NDArray, j: slice, lse: NDArray) -> tuple[NDArray, NDArray]:
        """s and p (Hq, queries i, keys j), p = exp(s - lse); hidden: s = -inf, p = 0."""
        Hq, Sq, Sk = self.shape
        keys, i_ = np.arange(Sk)[j], i[:, None]
        seen = (self.lo[i_] <= keys) & (keys < self.hi[i_])
        with np.errstate(all="ignore"):             # NaN and inf are numbers like others here
            s = (self.scale * self.q[:, :, i] @ self.k[:, :, j].swapaxes(-1, -2)).reshape(Hq, len(i), len(keys))
            if self.cap is not None:
                s = self.cap * np.tanh(s / self.cap)
            if self.slopes is not None:
                s -= self.slopes * np.abs(i_ + Sk - Sq - keys).astype(s.dtype)
            if self.bias is not None:
                s += self.bias[:, i, j]
                seen = seen & (self.bias[:, i, j] != -np.inf)
            if self.seen is not None:
                seen = seen & self.seen[:, i, j]
            s = np.where(seen, s, -np.inf).astype(s.dtype, copy=False)
            p = np.exp(s - lse[:, i, None])
            return s, np.where(seen, p, p.dtype.type(0))
