"""Charts of what was measured, as SVG: drawn by matplotlib, named and placed by `report`, never by hand.

    shares      the part of the FMA peak that each library reaches, a row for each case
    against S   time, memory or error on log-log paper, a line for each kind; rings where attention crosses a rival

One picture serves light and dark pages: it has no background, and every colour is a middle one, of luminance 0.19, which has
4.3 : 1 on white as well as on GitHub's dark #0d1117. More than 4.35 on both at once there cannot be: the contrast of the two
pages to each other is 18.9 = 4.35². So colours tell lines apart by hue, and lines are named where they end.
The same figures give the same bytes (of one version of matplotlib): no date but the data's own, no random ids. Text stays text.
"""

from __future__ import annotations

import io
import math
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
INK = "#727a85"
# What a kind has in its name, and its colour; the first that fits counts.
COLOURS = (
    ("by word", "#727a85"), ("bidirectional", "#d5349f"), ("lstm", "#df3b3d"), ("gru", "#9f7100"), ("rnn", "#068c37"), ("elman", "#068c37"),
    ("alone", "#727a85"), ("numpy", "#9f7100"), ("torch", "#c35b03"), ("onnxruntime", "#068c37"), ("openvino", "#a050e7"),
    ("jax", "#d5349f"), ("window", "#a050e7"), ("causal", "#01859b"), ("attention", "#1678e1"), ("fastattn", "#1678e1"),
)
# Measured with DejaVu Sans, the widest of these, so that no other runs into anything.
FONTS = "system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
WIDTH = 8.6                                 # inches, at 72 points
LINE = 12                                   # points between two labels
LEADER = "attention"                        # whose crossings are marked: its work grows with S^2, theirs with S
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
    return at_once(kind) or kind == OURS


# ---- a part of the peak --------------------------------------------------------------------------------------------------
def shares(result: Measured, name: str) -> Chart:
    """A row for each case: where each library stands between nothing and the FMA peak, and our ratio to the best of them."""
    rows, rivals, losses = result["cases"], rivals_of(result), lost(result)
    figure, axes = _canvas(0.21 * len(rows) + 1.5, left=196, right=64, top=66, bottom=50)
    for y, row in enumerate(rows):
        parts = {kind: row["flops"] / t / 1e9 / row["peak"] for kind, t in timings(row).items()}
        axes.plot([0, max(parts.values(), default=0)], [y, y], color=INK, alpha=0.25, lw=1, zorder=1)
        for kind, part in parts.items():
            ours = kind == OURS
            axes.plot(part, y, "o", color=colour(kind), ms=7.5 if ours else 4.5, zorder=3 if ours else 2)
        won = ratio(row)
        if won is not None:
            axes.annotate(f"{won:.2f}" + (" lost" if row["name"] in losses else ""), (1, y), (10, 0), xycoords=("axes fraction", "data"),
                          textcoords="offset points", va="center", fontweight="bold",
                          color=colour("lstm" if row["name"] in losses else OURS))
    dtypes = {row["dtype"] for row in rows}
    axes.set_yticks(range(len(rows)), [f"{row['case'].replace('x', '×')}   {row['mask']}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    best = ", ".join(f"{max(row['peak'] for row in rows if row['dtype'] == dtype):.0f} GFLOP/s in {dtype}" for dtype in sorted(dtypes))
    axes.set_xlabel(f"part of the FMA peak that was measured beside it: {best}")
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
    """A line for each kind, named where it ends, torch's dashed; rings where attention begins to lose to a rival, or to win."""
    figure, axes = _canvas(5.2, left=52, right=150, top=52, bottom=54)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for kind, curve in kinds.items():
        S = sorted(curve)
        axes.plot(S, [curve[n] for n in S], color=colour(kind), lw=2.4 if leads(kind) else 1.3, zorder=3 if leads(kind) else 2,
                  marker="o", ms=3.4 if leads(kind) else 2.4, dashes=(4, 1.6) if kind.startswith("torch ") or "alone" in kind else (None, None))
    sizes = sorted({S for curve in kinds.values() for S in curve})
    axes.set_xticks(sizes, [_size(S) for S in sizes])
    axes.minorticks_off()
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
    """Mark where attention over all words crosses a rival, and list it in the corner that rising lines leave free."""
    lost = slower(kinds, LEADER) if LEADER in kinds else {}
    met = sorted((min(crossings(kinds[LEADER], kinds[rival]))[0], rival) for rival, where in lost.items() if "words" in where)
    if met:
        axes.annotate(f"{LEADER} over all words takes longer than", (0, 1), (10, -8), **CORNER)
    for n, (_, rival) in enumerate(met):
        axes.annotate(f"○  {rival} {lost[rival]}", (0, 1), (10, -8 - LINE * (n + 1)), color=colour(rival), **CORNER)
        for S, _ in crossings(kinds[LEADER], kinds[rival]):
            axes.plot(S, _between(kinds[LEADER], S), "o", ms=8, mfc="none", mec=colour(rival), mew=1.4, zorder=4)
    return ", ".join(f"{rival} {lost[rival]}" for _, rival in met)


def _between(curve: Curve, S: float) -> float:
    """The curve at any S, on log-log paper."""
    import numpy as np

    known = sorted(curve)
    return float(np.exp(np.interp(math.log(S), np.log(known), np.log([curve[n] for n in known]))))


def _ends(axes: Any, kinds: dict[str, Curve]) -> None:
    """The name of each line at its last point: behind the paper's edge, moved up or down where names would overlap, or before."""
    edge = max(S for curve in kinds.values() for S in curve)
    ends = sorted((float(axes.transData.transform((edge, curve[edge]))[1]), kind) for kind, curve in kinds.items() if edge in curve)
    places = {kind: place - y for (y, kind), place in zip(ends, spread([y for y, _ in ends], LINE), strict=True)}
    for kind, curve in kinds.items():
        style: dict[str, Any] = {"color": colour(kind), "fontweight": "bold" if leads(kind) else "normal", "va": "center",
                                 "textcoords": "offset points"}
        S = max(curve)
        if S == edge:
            axes.annotate(kind, (S, curve[S]), (14, places[kind]), annotation_clip=False, **style, arrowprops={
                "arrowstyle": "-", "color": colour(kind), "lw": 0.6, "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)})
        else:
            axes.annotate(kind, (S, curve[S]), (-7, 5), ha="right", **style)


def spread(places: list[float], gap: float) -> list[float]:
    """Rising places at least `gap` apart, as near to the given rising ones as can be (least squares)."""
    from scipy.optimize import isotonic_regression

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
    "rms": lambda x: _scaled(x, ((1, ""),)),
}


# ---- paper ---------------------------------------------------------------------------------------------------------------
def _canvas(height: float, left: float, right: float, top: float, bottom: float) -> tuple[Any, Any]:
    """A figure with one pair of axes; the margins in points."""
    from matplotlib.figure import Figure

    figure = Figure((WIDTH, height), dpi=72)
    axes = figure.add_axes((left / WIDTH / 72, bottom / height / 72, 1 - (left + right) / WIDTH / 72, 1 - (top + bottom) / height / 72))
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
