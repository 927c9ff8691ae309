"""The reference is code too: cases worked by hand, a second opinion word by word, and what must not matter."""

import itertools
import math

import numpy as np
import numpy.testing as npt
import pytest

import reference
from reference import attention, attention_by_loops, causal, lengths, merge_states, window

rng = np.random.default_rng(0)


def random(B=2, Hq=2, Hkv=1, Sq=3, Sk=4, D=2, Dv=3):
    shapes = (B, Hq, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, Dv)
    return [rng.standard_normal(shape) for shape in shapes]


def test_two_words_by_hand():
    # q k = 1 and 0, no scaling: the weights are e / (e + 1) and 1 / (e + 1).
    q, k, v = np.array([[1.0, 0]]), np.eye(2), np.array([[10.0], [20.0]])
    o, lse = attention(q, k, v, scale=1.0, return_lse=True)
    npt.assert_allclose(o, [[(10 * math.e + 20) / (math.e + 1)]], rtol=1e-15)
    npt.assert_allclose(lse, [math.log(math.e + 1)], rtol=1e-15)


def test_the_percentages_of_the_story():
    # softmax of 0.2, 0.1, 0.8, 0.9 is 17, 16, 32 and 35 %: v = 1 shows each word's own percentage.
    s = np.array([[0.2, 0.1, 0.8, 0.9]])
    o = attention(np.ones((1, 1)), s.T, np.eye(4), scale=1.0)
    npt.assert_array_equal(np.round(100 * o), [[17, 16, 32, 35]])


OPTIONS = {
    "mask": (None, causal, reference.causal_top_left, window(1, 0), lengths([2, 0]), causal & lengths([2, 1], [1, 1]),
             rng.random((2, 2, 3, 4)) < 0.5),
    "bias": (None, rng.choice([-math.inf, 0.5, -1.0], (2, 3, 4))),
    "alibi": (None, np.array([0.5, -0.1])),
    "softcap": (None, 1.5),
    "sink": (None, np.array([0.3, -math.inf])),
    "scale": (None, -0.7),
}


@pytest.mark.parametrize("options", [dict(zip(OPTIONS, x, strict=True)) for x in itertools.product(*OPTIONS.values())])
def test_all_words_at_once_is_word_by_word(options):
    q, k, v = random()
    once = attention(q, k, v, return_lse=True, **options)
    loops = attention_by_loops(q, k, v, return_lse=True, **options)
    # Sums of four numbers in another order.
    for a, b in zip(once, loops, strict=True):
        npt.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("Sq", "Sk", "D", "Dv"), list(itertools.product((0, 1, 2), (0, 1, 3), (0, 1), (0, 2))))
def test_the_smallest_shapes(Sq, Sk, D, Dv):
    q, k, v = random(Sq=Sq, Sk=Sk, D=D, Dv=Dv)
    for a, b in zip(attention(q, k, v, return_lse=True), attention_by_loops(q, k, v, return_lse=True), strict=True):
        npt.assert_allclose(a, b, rtol=1e-13)
    if not Sk:
        assert not attention(q, k, v).any()


def test_shifting_every_key_changes_nothing():
    # q (k + c) = q k + q c: the same number on a whole row of scores, and softmax ignores it.
    q, k, v = random()
    npt.assert_allclose(attention(q, k + 0.7, v), attention(q, k, v), rtol=1e-12)


def test_the_order_of_keys_changes_nothing():
    q, k, v = random(Sk=7)
    order = rng.permutation(7)
    npt.assert_allclose(attention(q, k[:, :, order], v[:, :, order]), attention(q, k, v), rtol=1e-12)


@pytest.mark.parametrize("cut", range(8))
def test_any_split_gives_the_same_answer(cut):
    q, k, v = random(Sk=7)
    parts = [attention(q, k[:, :, keys], v[:, :, keys], return_lse=True) for keys in (slice(cut), slice(cut, None))]
    for a, b in zip(merge_states(*zip(*parts, strict=True)), attention(q, k, v, return_lse=True), strict=True):
        npt.assert_allclose(a, b, rtol=1e-12)


def test_heads_repeat_like_numpys_repeat():
    q, k, v = random(Hq=4, Hkv=2)
    full = attention(q, np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1))
    npt.assert_array_equal(attention(q, k, v), full)
    tiled = attention(q, np.tile(k, (1, 2, 1, 1)), np.tile(v, (1, 2, 1, 1)))
    assert np.abs(tiled - full).max() > 0.01


def test_hidden_values_are_never_seen_and_seen_nan_stays_in_its_rows():
    q, k, v = random(Sq=4)
    clean = attention(q, k, v, mask=causal)
    k[:, :, 2], v[:, :, 2] = np.nan, np.inf
    o = attention(q, k, v, mask=causal)
    npt.assert_array_equal(o[:, :, :2], clean[:, :, :2])
    assert np.isnan(o[:, :, 2:]).all()


def test_a_row_that_sees_nothing():
    q, k, v = random()
    o, lse = attention(q, k, v, mask=np.zeros((3, 4), bool), return_lse=True)
    assert not o.any()
    assert (lse == -np.inf).all()
    o, lse = attention(q, k, v, bias=np.full((3, 4), -np.inf), sink=[1.0, 2.0], return_lse=True)
    assert not o.any()
    npt.assert_array_equal(lse, np.broadcast_to([[[1.0], [2.0]]], (2, 2, 3)))


def test_a_row_of_the_lowest_float_is_a_row_of_equal_scores():
    q, k, v = random()
    o = attention(q, k, v, bias=np.full((3, 4), np.finfo(float).min))
    npt.assert_allclose(o, np.broadcast_to(v.mean(2, keepdims=True), o.shape), rtol=1e-12)
