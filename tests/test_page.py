"""The page of an explanation: what it holds, and how it behaves in a real browser."""

from __future__ import annotations

import base64
import colorsys
import html.parser
import json
import re
import shutil
import time

import numpy as np
import numpy.testing as npt
import pytest

from fastattn import SelfAttention, causal, page, screen, window
from fastattn.data import load
from fastattn.explain import explain, explain_attention

PLACES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOSTILE = ["</script>", "<script>hit()</script>", '"onmouseover="hit()', "<img src=x onerror=hit()>", "{{data}}", "&lt;b&gt;", "<!--",
           "]]>", "\u202eevil", "\x00", "", " ", "\n", "\ud800", "javascript:hit()", "漢字", "a\u200db", "'", "</li></ol>", "${hit()}"]


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def explained(S=6, H=3, **options):
    q, k, v = numbers(3, H, S, 8)
    return explain_attention(3 * q, k, v, **options)


def long_text():
    """4096 words, 8 heads."""
    rng, known = np.random.default_rng(0), load()[0][2:]
    return explained(4096, 8, tokens=rng.choice(known, 4096).tolist(), mask=causal & window(999))


# ---- what it holds -----------------------------------------------------------------------------------------------------
def held(text):
    """The page's numbers: keys, weights and all other arrays."""
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    arrays = {name: np.frombuffer(base64.b64decode(x["bytes"]), "<" + x["type"]) for name, x in data.pop("arrays").items()}
    shape = data["Hq"], data["Sq"], data["T"]
    keys, codes = arrays.pop("keys").reshape(shape), arrays.pop("codes").reshape(shape)
    return data, keys, np.where(codes < data["none"], np.exp(codes / -data["step"]), 0), arrays


def written(e, tmp_path, **options):
    path = tmp_path / "page.html"
    e.to_html(path, **options)
    return path


@pytest.mark.parametrize("options", [{}, {"mask": causal}, {"sink": [0.0, 1.0, 2.0]}, {"mask": np.arange(6) > 6}], ids=str)
def test_it_holds_the_weights_to_their_code(options, tmp_path):
    e = explained(**options)
    _, keys, weights, arrays = held(written(e, tmp_path).read_text(encoding="utf-8"))
    npt.assert_array_equal(keys, e.top)
    # A code is rounded to half a step of 1 / 2048; e^-32 and less is none.
    npt.assert_allclose(weights, e.top_p, rtol=1.01 / 4096, atol=float(np.exp(-31.9)))
    npt.assert_array_equal(arrays["lse"].reshape(3, 6), e.lse)
    npt.assert_array_equal(arrays["entropy"].reshape(3, 6), e.entropy)
    assert ("sink" in arrays) == ("sink" in options)
    npt.assert_array_equal(arrays["o"].reshape(3, 6, 4), e.o[..., :4])


def test_it_opens_where_it_is_asked_to_or_where_most_is_seen(tmp_path):
    e = explained()
    data, *_ = held(written(e, tmp_path, head=-1, row=2).read_text(encoding="utf-8"))
    assert (data["head"], data["row"]) == (2, 2)
    data, *_ = held(written(e, tmp_path).read_text(encoding="utf-8"))
    others = np.where(np.eye(6), 0, e.p[e.sharpest])
    assert (data["head"], data["row"]) == (e.sharpest, others.max(axis=1).argmax())


def test_a_long_text_is_small_and_says_what_is_left_out(tmp_path):
    e = long_text()
    path = written(e, tmp_path)
    assert path.stat().st_size < 5_000_000
    text = path.read_text(encoding="utf-8")
    data, keys, weights, _ = held(text)
    assert data["T"] == 16
    share = 100 * weights.sum() / weights[..., 0].size
    assert f"of each row's 4,096 weights all but the 16 largest, which are {share:.0f} % of its attention on average" in text
    assert "the numbers of steps 1, 2 and 5, as there are more than 1,024 words" in text
    npt.assert_array_equal(keys, e.top)


def test_what_is_left_out_is_said_of_rows_that_look_at_something(tmp_path):
    q, k, v = numbers(3, 2, 70, 8)
    q[:, 60:] = np.nan
    e = explain_attention(3 * q, k, v, top=4, mask=np.arange(70)[:, None] >= 30)
    share = 100 * e.top_p[:, 30:60].sum(axis=-1).mean()
    text = written(e, tmp_path).read_text(encoding="utf-8")
    assert f"of each row's 70 weights all but the 4 largest, which are {share:.0f} % of its attention on average" in text
    assert "Of each array the first 4 numbers of a word are shown" in text


@pytest.mark.parametrize(("S", "H", "T"), [(4096, 16, 11), (16_384, 8, 5), (16_384, 45, 1)])
def test_the_longest_pages_hold_fewer_weights_and_stay_small(S, H, T, tmp_path):
    path = written(explained(S, H, mask=causal & window(20)), tmp_path)
    assert held(path.read_text(encoding="utf-8"))[0]["T"] == T
    assert path.stat().st_size < 5_000_000 + 12 * S * H


@pytest.mark.parametrize(("S", "H"), [(16_385, 1), (16_384, 46), (100_000, 8)])
def test_what_no_page_can_hold_is_refused_with_what_to_do(S, H, tmp_path):
    e = explained(S, H, mask=window(0, 0), top=1)
    with pytest.raises(ValueError, match=rf"a page holds at most 16,384 words and 750,000 words x heads; got {S:,} words that look at "
                                         rf"{S:,}, {H} heads. Explain a part of the text, as in q\[:, :{min(16_384, 750_000 // H)}\],"):
        written(e, tmp_path)
    assert not list(tmp_path.iterdir())


class Reader(html.parser.HTMLParser):
    """Tags, and the texts of the items of lists."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.items = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "li":
            self.items.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "li":
            self.items[-1] += data


def test_tokens_are_text_and_nothing_else(tmp_path):
    e = explained(len(HOSTILE), tokens=HOSTILE)
    text = written(e, tmp_path, title="</title><script>hit()</script>{{data}}").read_text(encoding="utf-8")
    reader, plain = Reader(text), Reader(written(explained(len(HOSTILE)), tmp_path).read_text(encoding="utf-8"))
    assert [tag for tag, _ in reader.tags] == [tag for tag, _ in plain.tags]
    words = [screen.visible(token) for token in HOSTILE]
    assert [item for item in map(str.rstrip, reader.items) if item in words] == words


def test_it_names_no_other_place(tmp_path):
    text = re.sub('"bytes":".*?"', "", written(explained(), tmp_path).read_text(encoding="utf-8"))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    for _, attributes in Reader(text).tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "style")}
        assert attributes.get("href", "data:,") == "data:,"


def luminance(colour):
    """WCAG 2's relative luminance of #rrggbb."""
    c = np.array([int(colour[n:n + 2], 16) for n in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_shade_can_be_read_and_darkens_or_lightens_step_by_step(scheme):
    found = [dict(re.findall(r"--(\w+): (#\w{6});", block))
             for block in re.findall(r":root \{(.*?)\}", page.TEMPLATE.read_text(encoding="utf-8"), re.DOTALL)]
    colours = found[scheme == "dark"]

    def contrast(a, b):
        low, high = sorted((luminance(colours[a]), luminance(colours[b])))
        return (high + 0.05) / (low + 0.05)

    pairs = [(f"i{n}", f"s{n}") for n in range(1, 8)] + [("ink", "paper"), ("ink", "card"), ("dim", "paper"), ("dim", "card")]
    assert {pair: contrast(*pair) for pair in pairs if contrast(*pair) < 4.5} == {}
    # What is no text: WCAG asks for 3.
    assert contrast("ring", "paper") >= 3
    light = [luminance(colours[f"s{n}"]) for n in range(1, 8)]
    assert sorted(light, reverse=scheme == "light") == light
    # One hue, in degrees: it reads the same to the colour-blind.
    hues = [360 * colorsys.rgb_to_hsv(*(int(colours[f"s{n}"][c:c + 2], 16) for c in (1, 3, 5)))[0] for n in range(1, 8)]
    assert max(hues) - min(hues) < 20


# ---- in a browser ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[browser]'")
    chromium = next(filter(None, map(shutil.which, PLACES)), None)
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # Without a sandbox, as root has none.
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


class Opened:
    """A page in the browser; any error and any request but for itself fails the test at its end."""

    def __init__(self, browser, path, **options):
        self.path, self.wrong = path, []
        self.tab = browser.new_page(viewport={"width": 1300, "height": 900}, **options)
        self.tab.on("console", lambda message: self.wrong.append(message.text))
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("request", lambda request: self.wrong.append(request.url) if request.url != path.as_uri() else None)
        self.tab.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.tab.add_init_script("window.hit = () => console.error('hit')")
        self.tab.goto(path.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tab.close()
        assert self.wrong == []

    def word(self, i):
        return self.tab.locator("#queries > li").nth(i)

    def table(self):
        """The table's rows: word, place, score, weight."""
        return self.tab.locator("#looks tbody").evaluate("body => [...body.rows].map(tr => [...tr.cells].map(x => x.innerText))")

    @property
    def said(self):
        return self.tab.get_by_role("status").inner_text()

    def shares(self):
        """What stands below each word."""
        return self.tab.locator("ol.words").last.locator("li").evaluate_all("all => all.map(li => li.dataset.share ?? '')")

    def levels(self):
        return [int(x) for x in self.tab.locator("ol.words").last.locator("li").evaluate_all("all => all.map(li => li.dataset.level ?? 0)")]


@pytest.fixture
def opened(browser, tmp_path):
    def open_it(e, color_scheme="light", reduced_motion="no-preference", **options):
        return Opened(browser, written(e, tmp_path, **options), color_scheme=color_scheme, reduced_motion=reduced_motion)
    return open_it


def percent(w):
    return f"{100 * w:.0f}\u00a0%" if w >= 0.0995 else f"{100 * w:.1f}\u00a0%" if w >= 0.0005 else "<\u00a00.1\u00a0%"


def near(shown, w):
    """Whether a percentage is that of a weight, to the last digit that is shown."""
    return shown in {percent(w * (1 + n / 4096)) for n in (-1.1, 0, 1.1)}


@pytest.mark.parametrize("options", [{}, {"mask": causal}, {"sink": [0.0, 1.0, 2.0]}], ids=str)
def test_every_word_in_every_head_shows_whom_it_looks_at(opened, options):
    e = explained(tokens=list("abcdef"), **options)
    with opened(e, head=0, row=0) as shown:
        for h in range(3):
            shown.tab.get_by_role("radio", name=str(h + 1)).check(force=True)
            for i in range(6):
                shown.word(i).hover()
                listed = [row for row in shown.table() if row[0] in e.tokens]
                seen = [j for j in e.top[h, i] if e.p[h, i, j] > 0]
                assert [row[0] for row in listed] == [e.tokens[j] for j in seen]
                for (_, place, score, weight), j in zip(listed, seen, strict=True):
                    assert int(place) == j + 1
                    npt.assert_allclose(float(score.replace("\u2212", "-")), e.s[h, i, j], atol=0.0055)
                    assert near(weight, e.p[h, i, j])
                for j, share in enumerate(shown.shares()):
                    assert near(share, e.p[h, i, j]) if share else e.p[h, i, j] < 0.00051
                least = np.array([1e-14, .01, .05, .1, .2, .5, .8])
                sure = np.abs(e.p[h, i][:, None] / least - 1).min(axis=1) > 1e-3
                npt.assert_array_equal(np.array(shown.levels())[sure], (e.p[h, i][:, None] >= least).sum(axis=1)[sure])
                assert "all others" not in [row[0] for row in shown.table()]     # there are none
                if e.sink is not None:
                    assert near(next(row[-1] for row in shown.table() if row[0] == "the sink"), e.sink[h, i])
                assert f"\u201c{e.tokens[i]}\u201d" in shown.said
                assert f"in head {h + 1}." in shown.said
                assert f"as over {np.exp(e.entropy[h, i]):.1f} words" in shown.said


def test_the_steps_have_the_words_numbers(opened):
    e = explain(numbers(6, 24), SelfAttention.random(24, heads=4, kv_heads=2))
    with opened(e, head=2, row=0) as shown:
        for i in range(6):
            shown.word(i).hover()
            for letter in "xqkvo":
                array = getattr(e, letter)
                row = array[i] if letter == "x" else array[1 if letter in "kv" else 2, i]   # head 2 of q shares head 1
                said = shown.tab.locator(f"#step-{letter}").inner_text().removesuffix(" …").replace("\u2212", "-").split()
                npt.assert_allclose([float(x) for x in said], row[:4], atol=0.0051)
            assert f"{e.tokens[e.top[2, i, 0]]}\u201d" in shown.tab.locator("#step-p").inner_text()
        assert "4 × 6 × 6" in shown.tab.get_by_role("table", name="The five steps").get_by_role("row").nth(5).inner_text()


def test_the_map_has_every_weight(opened):
    e = explained(tokens=list("abcdef"))
    with opened(e, head=1, row=1) as shown:
        table = shown.tab.get_by_role("table", name=re.compile("Who looks at whom in head 2"))
        assert [table.get_by_role("columnheader").all_inner_texts(), table.get_by_role("rowheader").all_inner_texts()] == [list("abcdef")] * 2
        cells = np.array(table.locator("td").all_inner_texts()[1:], float).reshape(6, 6)
        npt.assert_allclose(cells, 100 * e.p[1], atol=0.52)
        table.locator("tbody tr").nth(4).hover()
        assert "\u201ce\u201d\u2069, word 5 of 6" in shown.said
        shown.tab.mouse.move(5, 5)
        assert "word 2 of 6" in shown.said
        table.locator("tbody tr").nth(3).click()
        shown.tab.mouse.move(5, 5)
        assert "word 4 of 6" in shown.said
        shown.tab.get_by_role("radio", name="3").check(force=True)
        assert shown.tab.get_by_role("table", name=re.compile("Who looks at whom in head 3")).count() == 1


def test_pointing_shows_a_word_and_leaving_the_one_that_was_kept(opened):
    with opened(explained(), row=1) as shown:
        kept = shown.said
        shown.word(4).hover()
        assert "word 5 of 6" in shown.said != kept
        assert shown.tab.locator("li.from").all_inner_texts() == ["5"]
        shown.tab.mouse.move(5, 5)
        assert shown.said == kept
        shown.word(3).click()
        shown.tab.mouse.move(5, 5)
        assert "word 4 of 6" in shown.said
        assert shown.word(3).get_attribute("aria-selected") == "true"
        assert shown.word(1).get_attribute("aria-selected") == "false"


def test_a_word_in_the_table_leads_to_it(opened):
    e = explained(600, 1)
    with opened(e, row=10) as shown:
        for _ in range(3):
            j = int(shown.table()[1][1]) - 1
            shown.tab.get_by_role("button").nth(1).press("Enter")
            assert f"word {j + 1} of 600" in shown.said
            assert shown.tab.locator(":focus").inner_text() == str(j + 1)
            assert 0 < shown.word(j).bounding_box()["y"] < 900
    q, k, v = numbers(3, 1, 900, 8)
    with opened(explain_attention(q[:, :2], k, v), row=0) as shown:
        far = max(range(16), key=lambda n: int(shown.table()[n][1]))
        shown.tab.get_by_role("button").nth(far).click()
        place = shown.tab.locator("#keys li").nth(int(shown.table()[far][1]) - 1).bounding_box()
        assert 0 < place["y"] < 900


def test_the_keyboard_reaches_everything(opened):
    with opened(explained(), head=0, row=2) as shown:
        press, focused = shown.tab.keyboard.press, shown.tab.locator(":focus")
        press("Tab")
        assert focused.get_attribute("type") == "radio"
        press("ArrowRight")
        assert "in head 2." in shown.said
        while focused.get_attribute("role") != "option":    # past the words of the table
            assert focused.count() == 1
            press("Tab")
        assert focused.inner_text() == "3"
        for key, place in (("ArrowRight", 4), ("ArrowRight", 5), ("ArrowLeft", 4), ("End", 6), ("ArrowRight", 6), ("Home", 1),
                           ("ArrowLeft", 1), ("ArrowUp", 1), ("ArrowDown", 1)):
            press(key)
            assert focused.inner_text() == str(place)
            assert f"word {place} of 6" in shown.said
        assert focused.evaluate("li => getComputedStyle(li).outlineStyle") == "solid"
        press("Tab")
        assert focused.count() == 0 or focused.get_attribute("role") != "option"      # one stop for all words
        press("Shift+Tab")
        assert focused.inner_text() == "1"


def test_up_and_down_go_to_the_word_above_and_below(opened):
    with opened(explained(300, 1), row=150) as shown:
        shown.word(150).focus()
        place = shown.word(150).bounding_box()
        for key, sign in (("ArrowDown", 1), ("ArrowUp", -1)):
            shown.tab.keyboard.press(key)
            box = shown.tab.locator(":focus").bounding_box()
            assert 0 < sign * (box["y"] - place["y"]) < 2 * place["height"]
            assert abs(box["x"] + box["width"] / 2 - place["x"] - place["width"] / 2) < place["width"]
            place = box


def test_everything_has_a_name_and_a_role(opened):
    with opened(explained(tokens=list("abcdef")), title="A title") as shown:
        role = shown.tab.get_by_role
        assert shown.tab.title() == "A title \u2013 who looks at whom"
        assert role("heading", level=1, name="A title").count() == 1
        assert role("main").count() == role("status").count() == role("contentinfo").count() == 1
        assert role("group", name="Head").get_by_role("radio").count() == 3
        assert role("listbox", name="Words").get_by_role("option").count() == 6
        assert role("option", selected=True).count() == 1
        assert role("table", name=re.compile("^Weights of .* in head")).get_by_role("rowheader").count() == 6
        assert role("complementary", name="Whom the word looks at").count() == 1
        described = shown.tab.locator("#queries").get_attribute("aria-describedby")
        assert "Arrow keys" in shown.tab.locator(f"#{described}").text_content()
        snapshot = shown.tab.locator("body").aria_snapshot()
        assert not re.search(r"- (option|radio|table|listbox|group|heading)( \[.*\])?:?$", snapshot, re.MULTILINE)


def test_words_that_look_at_another_text(opened):
    q, k, v = numbers(3, 3, 6, 8)
    e = explain_attention(3 * q[:, :2], k, v, tokens=["x", "y"], key_tokens=list("abcdef"))
    with opened(e, head=0, row=0) as shown:
        shown.word(1).hover()
        assert shown.tab.get_by_role("listbox", name="Words that look").get_by_role("option").count() == 2
        assert shown.tab.get_by_role("list", name="Words that are looked at").get_by_role("listitem").count() == 6
        assert [row[0] for row in shown.table()] == [e.key_tokens[j] for j in e.top[0, 1]]
        # A word that looks has no key and no value of its own.
        assert [shown.tab.locator(f"#step-{letter}").inner_text() == "" for letter in "qkvo"] == [False, True, True, False]
        assert all(near(share, w) if share else w < 0.00051 for share, w in zip(shown.shares(), e.p[0, 1], strict=True))


def test_rows_without_weights_say_so(opened):
    q, k, v = numbers(3, 1, 4, 8)
    q[:, 3] = np.nan
    with opened(explain_attention(q, k, v, mask=causal & (np.arange(4) > 0)), row=0) as shown:
        assert "looks at no word" in shown.said
        assert shown.table() == []
        shown.word(3).hover()
        assert "has weights that are not a number" in shown.said


def test_hostile_tokens_do_nothing(opened):
    e = explained(len(HOSTILE), tokens=HOSTILE)
    with opened(e, title="<script>hit()</script>") as shown:
        for i in range(len(HOSTILE)):
            shown.word(i).hover()
            shown.word(i).click()
            assert shown.word(i).evaluate("li => li.firstChild.data") == screen.visible(HOSTILE[i])
            assert shown.word(i).evaluate("li => li.children.length") == 0
        assert shown.tab.locator("h1").inner_text() == "<script>hit()</script>"


def test_the_pages_policy_runs_no_script_but_its_own(opened):
    shown = opened(explained())
    shown.tab.evaluate("""() => { const made = document.createElement("script"); made.textContent = "window.ran = 1";
                               document.body.append(made); }""")
    assert shown.tab.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in shown.wrong)
    shown.tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screenshot_shows_shades_on_light_or_dark(opened, scheme, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow, which comes with matplotlib")
    with opened(explained(), color_scheme=scheme, reduced_motion="reduce") as shown:
        shown.tab.screenshot(path=tmp_path / "page.png")
        pixels = np.asarray(image.open(tmp_path / "page.png").convert("RGB")).reshape(-1, 3)
        found, counts = np.unique(pixels, axis=0, return_counts=True)
        paper = found[counts.argmax()]
        assert paper.mean() > 250 if scheme == "light" else paper.mean() < 30
        shades = {tuple(map(int, re.findall(r"\d+", colour))) for colour in shown.tab.locator("[data-level]").evaluate_all(
            "all => all.map(x => getComputedStyle(x).backgroundColor)")}
        assert len(shades) >= 5
        assert shades <= set(map(tuple, found.tolist()))


def test_nothing_moves_for_those_who_want_no_motion(opened):
    for motion, wanted in (("reduce", "0s"), ("no-preference", "0.12s, 0.12s")):
        with opened(explained(), reduced_motion=motion) as shown:
            assert shown.word(0).evaluate("li => getComputedStyle(li).transitionDuration") == wanted


@pytest.mark.parametrize("width", [320, 480, 800, 1300])
def test_it_fits_every_window(opened, width):
    with opened(explained(40, tokens=["incomprehensibilities", "a"] * 20)) as shown:
        shown.tab.set_viewport_size({"width": width, "height": 700})
        assert shown.tab.evaluate("document.documentElement.scrollWidth") <= width


def test_4096_words_open_and_answer(opened, record_property):
    e = long_text()
    start = time.perf_counter()
    with opened(e, head=3, row=10) as shown:
        assert "word 11 of 4096" in shown.said
        record_property("seconds until a page of 4096 words and 8 heads answers, the file written", time.perf_counter() - start)
        shown.word(4000).hover()
        assert f"\u201c{e.tokens[4000]}\u201d" in shown.said
        start = time.perf_counter()
        shown.word(3990).hover()
        assert "word 3991 of 4096" in shown.said
        record_property("seconds until it shows another", time.perf_counter() - start)
        assert [row[0] for row in shown.table()] == [*(e.tokens[j] for j in e.top[3, 3990]), "all others"]
        rest = 1 - e.top_p[3, 3990].sum()
        assert abs(float(shown.table()[-1][-1].removesuffix("\u00a0%")) / 100 - rest) < 0.006
        assert np.count_nonzero(shown.levels()) == 16
