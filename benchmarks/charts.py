"""Charts of what was measured, as SVG: drawn by matplotlib, named and placed by `report`, never by hand.

    shares      the part of the FMA peak that each library reaches, a row for each case
    against S   time, memory or error on log-log paper, a line for each kind; rings where attention crosses a rival

One picture serves light and dark pages: it has no background, and every colour is a middle one, of luminance 0.19, which has
4.3 : 1 on white as well as on GitHub's dark #0d1117. More than 4.36 on both at once there cannot be: the contrast of the two
pages to each other is 18.9 < 4.36². So colours tell lines apart by hue, and lines are named where they end.
The same figures give the same bytes (of one version of matplotlib): no date but the data's own, no random ids. Text stays text.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any, NamedTuple

from .report import (
    OURS,
    Curve,
    Group,
    Measured,
    Quantity,
    at_once,
    crossings,
    curves,
    lost,
    plural,
    quantity,
    ratio,
    rivals_of,
    slower,
    timings,
)

WHITE, DARK = "#ffffff", "#0d1117"          # the pages
INK, LOSS = "#727a85", "#df3b3d"
# What a kind has in its name, and its colour; the first that fits counts.
COLOURS = (
    ("fastattn", "#1678e1"), ("attention", "#1678e1"), ("causal", "#01859b"), ("window", "#a050e7"),
    ("bidirectional", "#d5349f"), ("lstm", "#df3b3d"), ("gru", "#9f7100"), ("rnn", "#068c37"), ("elman", "#068c37"),
    ("numpy", "#9f7100"), ("torch", "#c35b03"), ("onnxruntime", "#068c37"), ("openvino", "#a050e7"), ("jax", "#d5349f"),
)
# Measured with DejaVu Sans, the widest of these, so that no other runs into anything.
FONTS = "system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
WIDTH = 8.6                                 # inches, at 72 points
LINE = 12                                   # points between two labels
LEADER = "attention"                        # whose crossings are marked: its work grows with S^2, theirs with S
DASHED = re.compile("^torch .|largest|alone")  # what has the colour of another line, or lies on one
CORNER: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}


class Chart(NamedTuple):
    """A picture: the file's name, what is in it, and what it says to who does not see it."""

    name: str
    svg: str
    says: str


def charts(result: Measured, name: str) -> list[Chart]:
    """All charts of a result; ImportError says what to install."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("charts need matplotlib: pip install 'fastattn[bench]'") from None
    q = quantity(result)
    with matplotlib.rc_context({
        "svg.fonttype": "none", "svg.hashsalt": "fastattn", "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.parse_math": False,
    }):
        if q is None:
            return [shares(result, name)]
        groups = curves(result, q.field)
        return [against_S(result, q, group, kinds, name if len(groups) == 1 else f"{name}-{group.batch}x{group.threads}")
                for group, kinds in groups.items()]


def colour(kind: str) -> str:
    return next((colour for word, colour in COLOURS if word in kind), INK)


def leads(kind: str) -> bool:
    """Whether it is ours that is shown."""
    return at_once(kind) or kind.startswith(OURS)


# ---- a part of the peak --------------------------------------------------------------------------------------------------
def shares(result: Measured, name: str) -> Chart:
    """A row for each case: where each library stands between nothing and the FMA peak, and our ratio to the best of them."""
    rows, rivals, losses = result["cases"], rivals_of(result), lost(result)
    figure, axes = _canvas(0.21 * len(rows) + 1.5, left=216, right=64, top=66, bottom=50)
    for y, row in enumerate(rows):
        parts = {kind: row["flops"] / t / 1e9 / row["peak"] for kind, t in timings(row).items()}
        axes.plot([0, max(parts.values(), default=0)], [y, y], color=INK, alpha=0.25, lw=1, zorder=1)
        for kind, part in parts.items():
            ours = kind == OURS
            axes.plot(part, y, "o", color=colour(kind), ms=7.5 if ours else 4.5, zorder=3 if ours else 2)
        won = ratio(row)
        if won is not None:
            lost_it = row["name"] in losses
            axes.annotate(f"{won:.2f}{' lost' * lost_it}", (1, y), (10, 0), xycoords=("axes fraction", "data"), va="center",
                          textcoords="offset points", fontweight="bold", color=LOSS if lost_it else colour(OURS))
    best: dict[str, float] = {}
    for row in rows:
        best[row["dtype"]] = max(row["peak"], best.get(row["dtype"], 0))
    axes.set_yticks(range(len(rows)), [f"{row['case'].replace('x', '×')} · {row['mask']}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    peaks = ", ".join(f"{peak:.0f} GFLOP/s in {dtype}" for dtype, peak in best.items())
    axes.set_xlabel(f"part of the FMA peak that was measured beside it: {peaks}")
    if rivals:
        axes.annotate("× best", (1, 1), (10, 6), xycoords="axes fraction", textcoords="offset points", fontweight="bold")
    _names(axes, [OURS, *rivals])
    threads = result["machine"]["threads"]
    _frame(figure, result, "How much of the processor each library uses", "B, H, S, D and mask; farther right is faster", threads)
    says = (f"Part of the FMA peak that {OURS} and {len(rivals)} other libraries reach in {len(rows)} cases; "
            f"{len(losses)} of them lost to one of the others")
    return Chart(name, _svg(figure, says), says)


def _names(axes: Any, names: list[str]) -> None:
    """Each contender once, in its colour, above the rows."""
    x = 0.0
    for kind in names:
        axes.annotate("●", (0, 1), (x, 6), xycoords="axes fraction", textcoords="offset points", color=colour(kind), ha="left")
        axes.annotate(kind, (0, 1), (x + 10, 6), xycoords="axes fraction", textcoords="offset points", color=colour(kind),
                      fontweight="bold" if kind == OURS else "normal")
        x += 6.2 * len(kind) + 24


# ---- against S -----------------------------------------------------------------------------------------------------------
def against_S(result: Measured, q: Quantity, group: Group, kinds: dict[str, Curve], name: str) -> Chart:
    """A line for each kind, named where it ends; rings where attention begins to lose to a rival, or to win."""
    from matplotlib.ticker import LogLocator

    figure, axes = _canvas(5.2, left=52, right=150, top=52, bottom=54)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for kind, curve in kinds.items():
        S, first = sorted(curve), leads(kind)
        axes.plot(S, [curve[n] for n in S], color=colour(kind), lw=2.4 if first else 1.3, zorder=3 if first else 2, marker="o",
                  ms=3.4 if first else 2.4, dashes=(4, 1.6) if DASHED.search(kind) else (None, None))
    sizes = sorted({S for curve in kinds.values() for S in curve})
    axes.set_xticks(sizes, [_size(S) for S in sizes])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
    axes.set_xlabel(q.against)
    axes.yaxis.set_major_formatter(lambda x, _: SCALES[q.field](x))
    axes.grid(color=INK, alpha=0.18, lw=0.6)
    crossed = _rings(axes, kinds) if q.field == "seconds_min" else ""
    figure.canvas.draw()                    # the labels go by where the lines are on paper
    _ends(axes, kinds)
    _frame(figure, result, q.title, f"{group}; lower is better", group.threads)
    says = f"{q.title}, {group}: {', '.join(kinds)}"
    if crossed:
        says += f"; {LEADER} over all words takes longer than {crossed}"
    return Chart(name, _svg(figure, says), says)


def _rings(axes: Any, kinds: dict[str, Curve]) -> str:
    """Mark where attention over all words crosses a rival, and list what it loses in the corner that rising lines leave free."""
    lost = {rival: where for rival, where in slower(kinds, LEADER).items() if where} if LEADER in kinds else {}
    met = {rival: [S for S, _ in crossings(kinds[LEADER], kinds[rival])] for rival in lost}
    listed = sorted(lost, key=lambda rival: met[rival][-1:])
    if listed:
        axes.annotate(f"{LEADER} over all words takes longer than", (0, 1), (10, -8), **CORNER)
    for n, rival in enumerate(listed, 1):
        sign = "○" if met[rival] else "·"
        axes.annotate(f"{sign}  {rival} {lost[rival]}", (0, 1), (10, -8 - LINE * n), color=colour(rival), **CORNER)
        for S in met[rival]:
            axes.plot(S, _between(kinds[LEADER], S), "o", ms=8, mfc="none", mec=colour(rival), mew=1.4, zorder=4)
    return ", ".join(f"{rival} {lost[rival]}" for rival in listed)


def _between(curve: Curve, S: float) -> float:
    """The curve at any S, on log-log paper."""
    import numpy as np

    known = sorted(curve)
    return float(np.exp(np.interp(math.log(S), np.log(known), np.log([curve[n] for n in known]))))


def _ends(axes: Any, kinds: dict[str, Curve]) -> None:
    """The name of each line at its last point: behind it at the edge, else before it; up or down where names would overlap."""
    edge = max(S for curve in kinds.values() for S in curve)
    for at_edge in (True, False):
        last = {kind: max(curve) for kind, curve in kinds.items() if (edge in curve) == at_edge}
        ends = sorted((float(axes.transData.transform((S, kinds[kind][S]))[1]), kind) for kind, S in last.items())
        for (y, kind), place in zip(ends, spread([y for y, _ in ends], LINE), strict=True):
            ink, S = colour(kind), last[kind]
            style: dict[str, Any] = {"ha": "right", "xytext": (-7, place - y + 5)}
            if at_edge:
                style = {"xytext": (14, place - y), "arrowprops": {
                    "arrowstyle": "-", "color": ink, "lw": 0.6, "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)}}
            axes.annotate(kind, (S, kinds[kind][S]), va="center", textcoords="offset points", annotation_clip=False, color=ink,
                          fontweight="bold" if leads(kind) else "normal", **style)


def spread(places: list[float], gap: float) -> list[float]:
    """Rising places at least `gap` apart, as near to the given rising ones as can be (least squares)."""
    from scipy.optimize import isotonic_regression

    if not places:
        return []
    steps = [gap * n for n in range(len(places))]
    level = isotonic_regression([y - step for y, step in zip(places, steps, strict=True)]).x
    return [float(y) + step for y, step in zip(level, steps, strict=True)]


def _size(S: int) -> str:
    return f"{S // 1024}k" if S >= 1024 and S % 1024 == 0 else f"{S}"


def _scaled(x: float, units: tuple[tuple[float, str], ...]) -> str:
    """x in the largest unit that leaves it at 1 or more."""
    size, unit = next((pair for pair in units if x >= 0.999 * pair[0]), units[-1])
    return f"{x / size:.4g} {unit}".strip()


SCALES = {
    "seconds_min": lambda x: _scaled(x, ((1, "s"), (1e-3, "ms"), (1e-6, "µs"))),
    "bytes": lambda x: _scaled(x, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))),
    "error": lambda x: _scaled(x, ((1, ""),)),
}


# ---- paper ---------------------------------------------------------------------------------------------------------------
def _canvas(height: float, left: float, right: float, top: float, bottom: float) -> tuple[Any, Any]:
    """A figure with one pair of axes; the margins in points."""
    from matplotlib.figure import Figure

    figure = Figure((WIDTH, height), dpi=72)
    width, tall = 72 * WIDTH, 72 * height
    axes = figure.add_axes((left / width, bottom / tall, 1 - (left + right) / width, 1 - (top + bottom) / tall))
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes


def _frame(figure: Any, result: Measured, title: str, subtitle: str, threads: int) -> None:
    """Title above, machine, versions and date below."""
    height, m = 72 * figure.get_figheight(), result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    figure.text(8 / WIDTH / 72, 1 - 16 / height, title, fontsize=13, fontweight="bold")
    figure.text(8 / WIDTH / 72, 1 - 32 / height, subtitle)
    figure.text(8 / WIDTH / 72, 8 / height, f"{m['cpu']}, {8 * m['vector_bytes']}-bit vectors, {plural(threads, 'core')}; "
                f"{versions}; {result['date']}", fontsize=7.5)


def _svg(figure: Any, says: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": says})
    lines = file.getvalue().replace("'DejaVu Sans'", FONTS).splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"
