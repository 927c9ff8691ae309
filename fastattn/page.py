"""One page of HTML, which needs nothing but itself: point at a word to see whom it looks at.

The words are elements of page.html, escaped; all else is numbers, in base64, so no token is ever part of a script, and the
page's policy runs no script but its own, by its hash, and loads nothing. Kept of each row and head, the largest weights first:

    keys     which key                uint16: there are at most WORDS
    codes    its weight, as a code    uint16: weight = exp(-code / STEP), to 0.025 %; and so its score, lse - code / STEP;
                                      the largest code is a weight of 0

A weight below e^-32 is none. WEIGHTS are kept at most, of those that the explanation has. The first numbers of x,
q, k, v and o are there for texts of up to NUMBERED words.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .screen import visible

if TYPE_CHECKING:
    from .explain import Explanation

TEMPLATE = Path(__file__).with_name("page.html")
WEIGHTS = 750_000                   # 3 MB of keys and codes, 4 MB in base64; the page has less than 5 with 8 heads of 4096 words
WORDS = 16_384                      # words of a text, each an element of some 30 bytes
STEP = 2048
NONE = 65_535                       # the code of a weight of 0
NUMBERED, FIRST = 1024, 4           # words whose numbers are there, and how many of each


def page(e: Explanation, head: int, row: int, title: str) -> str:
    """The page, which opens with that head and that row, both counted from 0."""
    Hq, Sq, T = e.top.shape
    Hkv, Sk = e.k.shape[:2]
    checks.fits_page(Hq, Sq, Sk, WEIGHTS, WORDS)
    T = min(T, WEIGHTS // (Hq * Sq))
    with np.errstate(divide="ignore"):
        code = np.rint(-np.log(e.top_p[..., :T].astype(np.float64)) * STEP)
    own, numbered = e.tokens is e.key_tokens, max(Sq, Sk) <= NUMBERED
    arrays: dict[str, NDArray | None] = {
        "keys": e.top[..., :T],
        "codes": np.where(code < NONE, np.maximum(code, 0), NONE).astype(int),
        "lse": e.lse,
        "entropy": e.entropy,
        "sink": e.sink,
    }
    if numbered:
        steps = {"x": e.x, "q": e.q, "k": e.k if own else None, "v": e.v if own else None, "o": e.o}
        arrays |= {name: None if x is None else x[..., :FIRST] for name, x in steps.items()}
    data = {"head": head, "row": row, "Hq": Hq, "Hkv": Hkv, "Sq": Sq, "Sk": Sk, "T": T, "step": STEP, "none": NONE,
            "arrays": {name: encoded(x) for name, x in arrays.items() if x is not None}}
    template = TEMPLATE.read_text(encoding="utf-8")
    parts = {
        "title": html.escape(visible(title)),
        "about": f"{Sq:,} words look at {'each other' if own else f'{Sk:,} others'}, in {Hq} head{'s' * (Hq != 1)}",
        "looking": "Words" if own else "Words that look",
        "queries": words(e.tokens, "option"),
        "keys": "" if own else f'<h2 id="keys-title">Words that are looked at</h2>\n<ol class="words" id="keys" '
                               f'aria-labelledby="keys-title" lang="">{words(e.key_tokens)}</ol>',
        "heads": "".join(f'<label><input type="radio" name="head" value="{h}"{" checked" * (h == head)}>'
                         f'<span>{h + 1}</span></label>' for h in range(Hq)),
        "steps": "".join(step_row(*step) for step in steps_of(e)),
        "left_out": left_out(e, T, numbered),
        "data": json.dumps(data, separators=(",", ":")),
        "style_hash": policy_hash("style", template),
        "script_hash": policy_hash("script", template),
    }
    # In one pass: a token that looks like a placeholder stays a token.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def words(tokens: tuple[str, ...], role: str = "") -> str:
    """Each word as an item of a list."""
    start = f"<li role={role}>" if role else "<li>"
    return "".join(f"{start}{html.escape(visible(token))}" for token in tokens)


def steps_of(e: Explanation) -> list[tuple[str, str, str, str, Any]]:
    """Each step's number, name, formula and question, and its array or its shape."""
    Hq, Sq, D = e.q.shape
    every = (Hq, Sq, e.k.shape[1])
    return [
        ("1", "embed", "x", "What is each word, before it has seen any other?", e.x),
        ("2", "query", "q", "What am I asking?", e.q),
        ("", "key", "k", "What can I be compared to?", e.k),
        ("", "value", "v", "What do I have?", e.v),
        ("3", "score", "s", f"How well does each word fit what this one asks? By default q·k / √{D}", every),
        ("4", "softmax", "p", "What share of its attention does each word get? Shares add up to 100 %", every),
        ("5", "mix", "o", "What does it take with it? The shares times the values", e.o),
    ]


def step_row(number: str, name: str, letter: str, question: str, array: NDArray | tuple[int, ...] | None) -> str:
    if array is None:
        return ""
    shape = " × ".join(f"{n:,}" for n in (array if isinstance(array, tuple) else array.shape))
    return (f'<tr><td>{number}</td><th scope="row">{name} <var>{letter}</var></th><td>{question}</td>'
            f'<td class="number">{shape}</td><td class="number" id="step-{letter}"></td></tr>\n')


def left_out(e: Explanation, T: int, numbered: bool) -> str:
    """What is not on the page, for who reads it."""
    Sk, some = e.k.shape[1], np.isfinite(e.lse)     # rows that look at something
    said = []
    if Sk > T:
        kept = 100 * e.top_p[..., :T][some].sum(dtype=float) / max(some.sum(), 1)
        said.append(f"Left out: of each row's {Sk:,} weights all but the {T} largest, which are {kept:.0f} % of its attention on "
                    f"average.")
    said.append(f"Of each array the first {FIRST} numbers of a word are shown." if numbered else
                f"Left out: the numbers of steps 1, 2 and 5, as there are more than {NUMBERED:,} words.")
    return " ".join(said)


def encoded(x: NDArray) -> dict[str, str]:
    """An array for the script: its type, u2 or f4, and its bytes in base64."""
    with np.errstate(over="ignore"):
        x = x.astype("<u2" if x.dtype.kind in "ui" else "<f4")
    return {"type": x.dtype.str[1:], "bytes": base64.b64encode(x.tobytes()).decode()}


def policy_hash(tag: str, template: str) -> str:
    """The hash by which the page's policy knows its own style or script."""
    own = re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'"
