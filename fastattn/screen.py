"""Lines of text with styles, and heat maps made of them: what the demo and an explanation put on a screen.

A line is spans of text, some with a style that rich knows. `show` writes lines in colour where rich is installed and the
screen can; `plain` is the same without. Every shade of a heat map is a sign, too, so that it reads without colour.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

Span = str | tuple[str, str]                        # text, or text with a style that rich knows
Line = Sequence[Span]

LABEL = 16                                          # characters before the cells of a heat map
SHADES = (                                          # from this share on: a sign without colour, a single hue with it
    (80, "█", "bold white on #08306b"),
    (50, "▓", "white on #2171b5"),
    (20, "▒", "black on #6baed6"),
    (5, "░", "black on #c6dbef"),
    (0, " ", "dim"),
)
ASCII = str.maketrans({"█": "#", "▓": "+", "▒": ":", "░": ".", "·": ".", "√": "sqrt ", "●": "o", "─": "-", "Σ": "sum",
                       "ᵀ": "^T"})
JOINERS = "\u200c\u200d"                            # they steer nothing, and words and emoji are written with them


def printable(text: str) -> str:
    """The text on one line, without what a terminal would obey."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def visible(token: str) -> str:
    """A token as a word that can be seen: what has no shape, or steers what shows it, is spelled out, as in \\n or \\u202e."""
    shown = "".join(c if c.isprintable() or c in JOINERS else c.encode("unicode_escape").decode() for c in token)
    return shown if shown.strip() else "␣" * max(len(shown), 1)


def clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


def placed(i: int, word: str, digits: int = 1) -> str:
    """A word behind its place, which is counted from 1; once, where words are numbers already."""
    return f"{i + 1:{digits}}" if word == str(i + 1) else f"{i + 1:{digits}} {clip(word, 12)}"


def numbers(row: NDArray, count: int = 7) -> str:
    """The first numbers of a row."""
    return "".join(f"{x:7.2f}" for x in row[:count]) + ("  ..." if len(row) > count else "")


def percentages(p: NDArray) -> NDArray:
    """Whole percentages that add up to 100: rounded down, then the largest remainders go up. Nothing seen: zeros."""
    total = p.sum(dtype=np.float64)
    if not total > 0:
        return np.zeros(len(p), int)
    exact = 100 * p.astype(np.float64) / total
    whole = np.floor(exact).astype(int)
    up = np.argsort(whole - exact, kind="stable")[: 100 - whole.sum()]
    whole[up] += 1
    return whole


def shade(percent: int) -> tuple[str, str]:
    return next((sign, style) for least, sign, style in SHADES if percent >= least)


def heat_map(
    p: NDArray,
    rows: Sequence[tuple[int, str]],
    columns: Sequence[str],
    width: int,
    *,
    bold: Collection[int] = (),
    rest: NDArray | None = None,
) -> Iterator[Line]:
    """p (rows, columns) in percent. The cells shrink with the number of columns, and then hold several columns each.

    rows have a place and a word each, columns a word; the rows at places in `bold` stand out. A row and its rest, which is not
    drawn, add up to 100.
    """
    n, labels = len(columns), [clip(word, 12) for word in columns]
    digits = max(2, len(str(max((i for i, _ in rows), default=0) + 1)))
    names = [placed(i, word, digits) for i, word in rows]
    wide, narrow = 3 + max(6, *map(len, labels)), 5
    if LABEL + wide * n <= width:
        cell, header, names = wide, labels, [clip(word, 12) for _, word in rows]
    elif LABEL + narrow * n <= width:               # columns are numbered, as the rows are
        cell, header = narrow, [f"{j + 1}" for j in range(n)]
    else:
        size = -(-2 * n // (width - LABEL))         # columns that share a cell
        p = np.add.reduceat(p, range(0, n, size), axis=1)
        ticks = [f"{j * size + 1}" for j in range(4, p.shape[1], 5)]
        cell, header = 2, [(" ." * 5)[: 10 - len(tick)] + tick for tick in ticks] + [" ." * (p.shape[1] % 5)]
        if size > 1:
            yield [(f"{'':{LABEL}}a cell is the sum of {size} words", "dim")]
    yield [" " * LABEL, *((f"{name:>{cell}}", "dim") for name in header)]
    rest = np.zeros(len(rows)) if rest is None else rest
    for (i, _), name, row in zip(rows, names, np.column_stack([p, rest]), strict=True):
        line: list[Span] = [(f"    {name:<12}"[:LABEL].ljust(LABEL), "bold" if i in bold else "")]
        if np.isnan(row).any():
            line.append("not a number")
            row = row[:0]
        for percent in percentages(row)[:-1]:
            sign, style = shade(percent)
            text = sign * 2 if cell == 2 else f"{sign}{percent:>3}"
            line += [" " * (cell - len(text)), (text, style)]
        yield line


# ---- onto a screen -------------------------------------------------------------------------------------------------
def plain(lines: Iterable[Line]) -> str:
    """The lines as text without styles."""
    return "\n".join("".join(span if isinstance(span, str) else span[0] for span in line).rstrip() for line in lines)


def show(lines: Iterable[Line], file: TextIO) -> None:
    """Write the lines: rich colours them on a terminal, if it is there; signs that `file` lacks become ASCII."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        console = None
    else:
        console = Console(file=file, highlight=False)
    encoding = file.encoding or "ascii"
    try:
        "".join(map(chr, ASCII)).encode(encoding)
        signs: dict[int, str] = {}
    except UnicodeEncodeError:
        signs = ASCII
    for line in lines:
        spans = [span if isinstance(span, tuple) else (span, "") for span in line]
        spans = [(text.translate(signs).encode(encoding, "replace").decode(encoding), style) for text, style in spans]
        text = "".join(text for text, _ in spans).rstrip() + "\n"
        if console is not None:                     # captured: rich's own writing ends the process on a broken pipe
            styled = Text.assemble(*spans)
            styled.rstrip()
            with console.capture() as captured:
                console.print(styled, soft_wrap=True)
            text = captured.get()
        file.write(text)
