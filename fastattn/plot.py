"""A figure of matplotlib: who looks at whom, a heat map for each head."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from . import checks
from .screen import clip, placed, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .explain import Explanation

NAMED = 40                          # words along an axis that can all be read; beyond it places are numbered
WRITTEN = 16                        # words of a lone head whose percentages are written into the cells
ACROSS = 4                          # heads in a row of the figure


def figure(e: Explanation, heads: int | Iterable[int]) -> Figure:
    """p of the chosen rows of heads that are counted from 0, all in one single-hued scale from 0 to 100 %.

    Made without pyplot: it opens no window and is not kept anywhere. `Explanation.plot` says what it raises.
    """
    checks.extra("matplotlib", "plot")
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    heads = checks.places("heads", list(heads) if isinstance(heads, Iterable) else heads, len(e.q), "heads")
    R, Sk = e.p.shape[1:]
    checks.drawable((len(heads), R, Sk))
    across = min(len(heads), ACROSS)
    down = math.ceil(len(heads) / across)
    side = 5.5 if len(heads) == 1 else 3.2
    result = Figure(figsize=(side * across + 1, side * down + 0.4), layout="constrained")
    axes = result.subplots(down, across, squeeze=False).ravel()
    for ax in axes[len(heads):]:
        ax.remove()
    rows, columns = [visible(e.tokens[i]) for i in e.rows], [visible(token) for token in e.key_tokens]
    for h, ax in zip(heads, axes, strict=False):
        image = ax.imshow(e.p[h], cmap="Blues", vmin=0, vmax=1, aspect="equal" if Sk == R else "auto", interpolation="nearest")
        ax.set_title(f"head {h + 1}", fontsize=10)
        if Sk <= NAMED:
            ax.set_xticks(range(Sk), [clip(word, 12) for word in columns], rotation=90, fontsize=8, parse_math=False)
        if R <= NAMED:
            names = [clip(word, 12) if len(e.tokens) == R else placed(int(i), word)
                     for i, word in zip(e.rows, rows, strict=True)]
            ax.set_yticks(range(R), names, fontsize=8, parse_math=False)
        if len(heads) == 1 and max(R, Sk) <= WRITTEN:
            for i, j in np.ndindex(R, Sk):
                if np.isfinite(e.p[h, i, j]):
                    ax.text(j, i, f"{100 * e.p[h, i, j]:.0f}", ha="center", va="center", fontsize=8,
                            color="white" if e.p[h, i, j] > 0.5 else "black")
    for ax in axes[:len(heads):across]:
        ax.set_ylabel("looks")
    result.supxlabel("is looked at", fontsize=10)
    result.colorbar(image, ax=axes[:len(heads)], shrink=0.7, format=PercentFormatter(1))
    return result
