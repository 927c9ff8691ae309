"""The reference is code too: cases worked by hand, a second opinion word by word, and what must not matter."""

import doctest
import itertools
import math

import numpy as np
import numpy.testing as npt
import pytest

import fastattn
import reference
from reference import (
    attention,
    attention_by_loops,
    attention_varlen,
    causal,
    causal_top_left,
    lengths,
    merge_states,
    packed,
    picture,
    prefix,
    window,
)


def problem(seed=0, B=2, Hq=2, Hkv=1, Sq=3, Sk=4, D=2, Dv=3):
    """Random q, k, v; scores are of size 1, so that every option makes a difference."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in ((B, Hq, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, Dv))]


def assert_same(ours, theirs, **how):
    for a, b in zip(ours, theirs, strict=True):
        npt.assert_allclose(a, b, **how)


# A sum of a few numbers of size 1 in another order: some units of 1e-16.
ROUNDING = {"rtol": 1e-13, "atol": 1e-14}


def test_the_drawings_of_the_conventions():
    failed, tried = doctest.testmod(reference)
    assert tried
    assert not failed


# ---- by hand ---------------------------------------------------------------------------------------------------------
def weights(s, **options):
    """What attention makes of scores (Sq, Sk): the weights of the keys, and lse. k = 1 and v = 1 show them."""
    s = np.array(s, float)
    return attention(s, np.eye(s.shape[1]), np.eye(s.shape[1]), return_lse=True, **{"scale": 1.0, **options})


def test_two_words():
    # q k = 1 and 0, no scaling: the weights are e / (e + 1) and 1 / (e + 1).
    q, k, v = [[1.0, 0]], np.eye(2), [[10.0], [20.0]]
    o, lse = attention(q, k, v, scale=1.0, return_lse=True)
    npt.assert_allclose(o, [[(10 * math.e + 20) / (math.e + 1)]], rtol=1e-15)
    npt.assert_allclose(lse, [math.log(math.e + 1)], rtol=1e-15)


def test_four_words():
    # softmax of 0.2, 0.1, 0.8, 0.9 is 17, 16, 32 and 35 %.
    p, _ = weights([[0.2, 0.1, 0.8, 0.9]])
    npt.assert_array_equal(np.round(100 * p), [[17, 16, 32, 35]])


LN = {n: math.log(n) for n in (2, 3, 4, 8)}

BY_HAND = {
    # Scores are logarithms, so that weights are shares of small numbers:     scores, options, shares, sum of exp
    "plain": ([LN[2], LN[3], 0], {}, [2, 3, 1], 6),
    "scale": ([LN[2], LN[3], 0], {"scale": 2.0}, [4, 9, 1], 14),
    "negative scale": ([LN[2], LN[4], 0], {"scale": -1.0}, [2, 1, 4], 7 / 4),
    "scale is 1 / sqrt(D)": ([2 * LN[2], 2 * LN[3], 0, 0], {"scale": None}, [2, 3, 1, 1], 7),
    "bias": ([LN[2], LN[3], 0], {"bias": [0, LN[2], LN[4]]}, [2, 6, 4], 12),
    "a bias of -inf hides": ([LN[2], LN[3], 0], {"bias": [0, -math.inf, 0]}, [2, 0, 1], 3),
    "mask": ([LN[2], LN[3], 0], {"mask": np.array([True, True, False])}, [2, 3, 0], 5),
    "a mask wins over +inf": ([LN[2], LN[3], 0], {"bias": [0, 0, math.inf], "mask": [True, True, False]}, [2, 3, 0], 5),
    "sink": ([LN[2], LN[3], 0], {"sink": [LN[4]]}, [2, 3, 1], 10),
    "no sink is a sink of -inf": ([LN[2], LN[3], 0], {"sink": [-math.inf]}, [2, 3, 1], 6),
    # The one query, i = 0, stands at the last key, j = 2: distances 2, 1, 0.
    "ALiBi": ([LN[8], LN[8], 0], {"alibi": [LN[2]]}, [2, 4, 1], 7),
    # 2 tanh(+-20 / 2) is +-2, to 1e-8.
    "softcap": ([20, -20], {"softcap": 2.0}, [math.e**2, math.e**-2], math.e**2 + math.e**-2),
    # Capped to 2, then + ln 2, then + ln 3; had the cap come last, the two would be alike.
    "softcap, then ALiBi, then bias": ([20, 20], {"softcap": 2.0, "alibi": [-LN[2]], "bias": [0, LN[3]]},
                                       [2, 3], 5 * math.e**2),
    # Capped to 2 and then hidden; had the mask come before the cap, -2 would be seen.
    "softcap, then mask": ([20, 0], {"softcap": 2.0, "bias": [0, -math.inf]}, [1, 0], math.e**2),
    # 3 tanh(2 ln 2 / 3), and not 3 tanh(ln 2 / 3) times 2.
    "scale, then softcap": ([LN[2], 0], {"scale": 2.0, "softcap": 3.0}, [math.exp(3 * math.tanh(2 * LN[2] / 3)), 1],
                            math.exp(3 * math.tanh(2 * LN[2] / 3)) + 1),
}


@pytest.mark.parametrize(("s", "options", "shares", "total"), BY_HAND.values(), ids=BY_HAND)
def test_shares(s, options, shares, total):
    p, lse = weights([s], **options)
    npt.assert_allclose(p, [np.array(shares) / (total if "sink" in options else sum(shares))], rtol=1e-7, atol=0)
    npt.assert_allclose(lse, [math.log(total)], rtol=1e-7)


def test_alibi_is_the_distance_from_where_the_query_stands():
    # Sq = 2, Sk = 4: query 0 stands at key 2, query 1 at key 3; a slope of ln 2 halves the weight with every step.
    p, _ = weights(np.zeros((2, 4)), alibi=[LN[2]])
    npt.assert_allclose(p, [np.array([1, 2, 4, 2]) / 9, np.array([1, 2, 4, 8]) / 15], rtol=1e-14)
    # Lengths hide keys and queries, and do not change the distance.
    p, _ = weights(np.zeros((2, 4)), alibi=[LN[2]], mask=lengths([2]))
    npt.assert_allclose(p, [np.array([1, 2, 0, 0]) / 3] * 2, rtol=1e-14)


def test_a_query_that_sees_no_key_is_found_by_counting():
    def of(s, **options):
        o, lse = attention([[s]], [[1.0], [1.0]], [[1.0], [3.0]], scale=1.0, return_lse=True, **options)
        return o.item(), lse.item()

    nothing = np.zeros((1, 2), bool)
    npt.assert_array_equal(of(1.0, mask=nothing), [0, -math.inf])
    npt.assert_array_equal(of(math.nan, mask=nothing), [0, -math.inf])
    npt.assert_array_equal(of(1.0, bias=[-math.inf, -math.inf]), [0, -math.inf])
    npt.assert_array_equal(of(1.0, mask=nothing, sink=[0.5]), [0, 0.5])
    # It sees two keys: of scores that are very low, of scores that are all -inf.
    npt.assert_allclose(of(1.0, bias=np.full(2, np.finfo(float).min))[0], 2)
    npt.assert_array_equal(of(-math.inf), [math.nan, -math.inf])
    npt.assert_array_equal(of(math.inf), [math.nan, math.nan])
    npt.assert_array_equal(of(-math.inf, sink=[0.5]), [0, 0.5])
    npt.assert_array_equal(of(-math.inf, sink=[-math.inf]), [math.nan, -math.inf])
    npt.assert_array_equal(of(1.0, mask=nothing, sink=[-math.inf]), [0, -math.inf])
    # Every query sees the sink.
    for strange in (math.nan, math.inf):
        npt.assert_array_equal(of(1.0, sink=[strange]), [math.nan, math.nan])
        npt.assert_array_equal(of(1.0, mask=nothing, sink=[strange]), [math.nan, math.nan])


def test_no_keys_no_channels():
    q, k, v = problem(Sk=0)
    o, lse = attention(q, k, v, return_lse=True)
    npt.assert_array_equal(o, np.zeros((2, 2, 3, 3)))
    npt.assert_array_equal(lse, np.full((2, 2, 3), -np.inf))
    q, k, v = problem(D=0)
    npt.assert_allclose(attention(q, k, v), np.broadcast_to(v.mean(2, keepdims=True), (2, 2, 3, 3)), rtol=1e-14)


# ---- word by word ----------------------------------------------------------------------------------------------------
OPTIONS = {
    "mask": [None, causal & window(1), lengths([2, 0], [3, 1]), np.array([[True], [False], [True]]),
             np.random.default_rng(1).random((2, 2, 3, 4)) < 0.5],
    "bias": [None, np.random.default_rng(2).choice([-math.inf, 0.5, -1.0], (2, 3, 4)),
             np.array([[1.0], [2.0], [-math.inf]])],
    "alibi": [None, np.array([0.5, -0.1])],
    "softcap": [None, 1.5],
    "sink": [None, np.array([0.3, -math.inf])],
    "scale": [None, -0.7],
}


@pytest.mark.parametrize("options", [dict(zip(OPTIONS, x, strict=True)) for x in itertools.product(*OPTIONS.values())])
def test_all_words_at_once_is_word_by_word(options):
    q, k, v = problem()
    wanted = attention_by_loops(q, k, v, return_lse=True, **options)
    assert_same(attention(q, k, v, return_lse=True, **options), wanted, **ROUNDING)


@pytest.mark.parametrize(("Sq", "Sk", "D", "Dv"), list(itertools.product(range(4), range(4), range(3), range(3))))
def test_the_smallest_shapes(Sq, Sk, D, Dv):
    for B, Hkv, group, sink in itertools.product((0, 1, 2), (1, 2), (1, 3), (False, True)):
        q, k, v = problem(B=B, Hq=Hkv * group, Hkv=Hkv, Sq=Sq, Sk=Sk, D=D, Dv=Dv)
        options = {"mask": causal, "sink": np.arange(Hkv * group) if sink else None, "return_lse": True}
        o, lse = attention(q, k, v, **options)
        assert o.shape == (B, Hkv * group, Sq, Dv)
        assert lse.shape == (B, Hkv * group, Sq)
        assert_same((o, lse), attention_by_loops(q, k, v, **options), **ROUNDING)


@pytest.mark.parametrize("function", [attention, attention_by_loops])
def test_leading_axes_may_be_missing(function):
    q, k, v = problem(B=1, Hq=1)
    whole = function(q, k, v, return_lse=True)
    assert_same(function(q[0], k[0], v[0], return_lse=True), [x[0] for x in whole], rtol=0)
    assert_same(function(q[0, 0], k[0, 0], v[0, 0], return_lse=True), [x[0, 0] for x in whole], rtol=0)
    npt.assert_array_equal(function(q, k, v), whole[0])


def test_also_with_nan_and_inf_anywhere():
    rng = np.random.default_rng(3)
    strange = [math.nan, math.inf, -math.inf, 0, 800, 1e200]
    met = {"nan": 0, "-inf": 0, "number": 0}
    for seed in range(1000):
        q, k, v = problem(seed, Sk=int(rng.integers(0, 5)))
        for x in (q, k, v):
            x[rng.random(x.shape) < 0.04] = rng.choice(strange)
        options = {"mask": rng.random((3, k.shape[2])) < 0.6}
        if seed % 2:
            often = [0.4, 0.3, 0.1, 0.02, 0.02, 0.16]
            options["bias"] = rng.choice([0, 1, -800, *strange[:3]], (2, 3, k.shape[2]), p=often)
        if seed % 3:
            options["sink"] = rng.choice([0.5, -math.inf, math.inf, math.nan], 2, p=[0.5, 0.4, 0.05, 0.05])
        if seed % 5 == 0:
            options["softcap"] = 2.0
        o, lse = attention(q, k, v, return_lse=True, **options)
        assert_same((o, lse), attention_by_loops(q, k, v, return_lse=True, **options), rtol=1e-12, atol=1e-13)
        met["nan"] += np.isnan(lse).sum()
        met["-inf"] += np.isneginf(lse).sum()
        met["number"] += np.isfinite(lse).sum()
    assert min(met.values()) > 500, met


# ---- what must not matter --------------------------------------------------------------------------------------------
def test_shifting_every_key_changes_nothing():
    # q (k + c) = q k + q c: the same number on a whole row of scores, and softmax ignores it.
    q, k, v = problem()
    npt.assert_allclose(attention(q, k + 0.7, v), attention(q, k, v), **ROUNDING)


def test_adding_a_number_to_every_score_adds_it_to_lse():
    q, k, v = problem()
    o, lse = attention(q, k, v, return_lse=True)
    assert_same(attention(q, k, v, bias=3.5, return_lse=True), (o, lse + 3.5), **ROUNDING)


def test_the_order_of_keys_changes_nothing():
    q, k, v = problem(Sk=7)
    order = np.random.default_rng(0).permutation(7)
    mask, bias = np.arange(7) % 3 > 0, np.arange(7) / 5
    npt.assert_allclose(attention(q, k[:, :, order], v[:, :, order], mask=mask[order], bias=bias[order]),
                        attention(q, k, v, mask=mask, bias=bias), **ROUNDING)


def test_the_order_of_queries_is_the_order_of_the_result():
    q, k, v = problem(Sq=5)
    npt.assert_allclose(attention(q[:, :, ::-1], k, v), attention(q, k, v)[:, :, ::-1], **ROUNDING)


@pytest.mark.parametrize("cut", range(8))
@pytest.mark.parametrize("sink", [None, np.array([0.4, -1.0])])
def test_any_split_gives_the_same_answer(cut, sink):
    q, k, v = problem(Sk=7)
    parts = [attention(q, k[:, :, keys], v[:, :, keys], sink=own, return_lse=True)
             for keys, own in ((slice(cut), sink), (slice(cut, None), None))]
    assert_same(merge_states(*zip(*parts, strict=True)), attention(q, k, v, sink=sink, return_lse=True), **ROUNDING)
    if 0 < cut < 7:                                 # the control: halves of the same weight are another thing
        assert np.abs((parts[0][0] + parts[1][0]) / 2 - attention(q, k, v, sink=sink)).max() > 0.01


def test_one_key_at_a_time_gives_the_same_answer():
    q, k, v = problem(Sk=7)
    hidden = np.arange(7) == 3
    parts = [attention(q, k[:, :, [j]], v[:, :, [j]], mask=~hidden[[j]], return_lse=True) for j in range(7)]
    assert_same(merge_states(*zip(*parts, strict=True)), attention(q, k, v, mask=~hidden, return_lse=True), **ROUNDING)


def test_a_part_that_saw_nothing_weighs_nothing():
    saw, nothing = ([[1.0, 2.0], [3.0, 4.0]], [0.5, -math.inf]), (np.full((2, 2), math.nan), np.full(2, -math.inf))
    for parts in ([saw, nothing], [nothing, saw], [nothing, saw, nothing]):
        o, lse = merge_states(*zip(*parts, strict=True))
        npt.assert_array_equal(o, [[1, 2], [0, 0]])
        npt.assert_array_equal(lse, [0.5, -math.inf])


@pytest.mark.parametrize("other", [0.5, -math.inf, math.inf, math.nan])
@pytest.mark.parametrize("strange", [math.inf, math.nan])
def test_a_part_whose_lse_is_not_a_number_makes_all_nan(strange, other):
    for lses in ([strange, other], [other, strange]):
        o, lse = merge_states([[1.0], [2.0]], lses)
        npt.assert_array_equal(o, [math.nan])
        npt.assert_array_equal(lse, math.nan)


def test_nan_in_what_a_part_saw_stays_in_its_channel():
    o, lse = merge_states([[1.0, 2.0], [math.nan, 4.0]], [LN[3], 0.0])
    npt.assert_allclose(o, [math.nan, 2.5], rtol=1e-15)
    npt.assert_allclose(lse, LN[4], rtol=1e-15)


def test_to_join_parts_is_attention_over_parts():
    # A key alone is the state (v, score); so states are keys whose scores are their lse.
    rng = np.random.default_rng(0)
    outs, lses = rng.standard_normal((5, 3)), rng.standard_normal(5)
    assert_same(merge_states(outs, lses), [x[0] for x in weigh(outs, lses)], **ROUNDING)


def weigh(v, s):
    """Attention of one query over v, with scores s."""
    return attention([[1.0]], s[:, None], v, scale=1.0, return_lse=True)


def test_heads_repeat_like_numpys_repeat():
    q, k, v = problem(Hq=6, Hkv=3)
    full = attention(q, np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1))
    npt.assert_array_equal(attention(q, k, v), full)
    tiled = attention(q, np.tile(k, (1, 2, 1, 1)), np.tile(v, (1, 2, 1, 1)))
    assert np.abs(tiled - full).max() > 0.01


MASKS = {
    "all": lengths([9]),
    "causal": causal,
    "top left": causal_top_left,
    "window": window(1, 2),
    "left": window(0, None),
    "right": window(-1, 1),
    "prefix": prefix(2),
    "sliding": causal & window(2),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_sequence_with_its_lengths_is_a_sequence_alone(mask):
    for Sq, Sk in itertools.product(range(5), repeat=2):
        for Nq, Nk in itertools.product(range(Sq + 1), range(Sk + 1)):
            alone = np.zeros((Sq, Sk), bool)
            alone[:Nq, :Nk] = in_full(mask, Nq, Nk)
            # The shorter length counts.
            for own in (lengths([Nk], [Nq]), lengths([Nk]) & lengths([9], [Nq]), lengths([9], [Nq]) & lengths([Nk])):
                npt.assert_array_equal(in_full(mask & own, Sq, Sk), alone)
                npt.assert_array_equal(in_full(own & mask, Sq, Sk), alone)
            # Without lengths of its own a sequence has all queries.
            npt.assert_array_equal(in_full(mask & lengths([Nk]), Sq, Sk)[:, :Nk], in_full(mask, Sq, Nk))


def in_full(mask, Sq, Sk):
    """(Sq, Sk) of a mask that is one for all sequences and heads, or for one."""
    return mask.materialize(Sq, Sk).reshape(Sq, Sk)


def test_each_sequence_has_its_own_lengths():
    seen = (causal & lengths([3, 1, 4], [2, 2, 0])).materialize(3, 4)
    assert seen.shape == (3, 1, 3, 4)
    for b, (Nk, Nq) in enumerate([(3, 2), (1, 2), (4, 0)]):
        npt.assert_array_equal(seen[b, 0], (causal & lengths([Nk], [Nq])).materialize(3, 4)[0, 0])
    assert (seen[0] != seen[1]).any()
    npt.assert_array_equal(prefix([1, 3]).materialize(3, 4),
                           [[prefix(1).materialize(3, 4)], [prefix(3).materialize(3, 4)]])
    npt.assert_array_equal(packed([[0, 0, 1], [0, 1, 1]]).materialize(3, 3),
                           [[packed([0, 0, 1]).materialize(3, 3)[0, 0]], [packed([0, 1, 1]).materialize(3, 3)[0, 0]]])


def test_a_window_without_an_end_is_as_wide_as_can_be():
    for Sq, Sk in itertools.product(range(5), repeat=2):
        for n in (None, -1):
            npt.assert_array_equal(window(n, n).materialize(Sq, Sk), True)
            npt.assert_array_equal(window(n, 0).materialize(Sq, Sk), causal.materialize(Sq, Sk))
            npt.assert_array_equal(window(1, n).materialize(Sq, Sk), window(1, 9).materialize(Sq, Sk))
            npt.assert_array_equal(window(n, 1).materialize(Sq, Sk), window(9, 1).materialize(Sq, Sk))
        npt.assert_array_equal(window(2).materialize(Sq, Sk), window(2, 9).materialize(Sq, Sk))


def test_joined_is_both():
    some = np.random.default_rng(0).random((2, 3, 4, 5)) < 0.5
    both = some & causal.materialize(4, 5)
    for mask in (some & causal, causal & some, causal & some.tolist(), some.tolist() & causal):
        npt.assert_array_equal(mask.materialize(4, 5), both)
    q, k, v = problem(Hq=3, Sq=4, Sk=5)
    npt.assert_array_equal(attention(q, k, v, mask=causal & some), attention(q, k, v, mask=both))


def test_a_picture_is_of_the_first_sequence_and_head():
    assert picture(causal & lengths([2, 3]), Sq=2, Sk=3) == "# . .\n# # ."
    heads = np.array([[[True, False]], [[False, True]]])
    assert picture(lengths([2]) & heads, Sq=1, Sk=2) == "# ."


@pytest.mark.parametrize("mask", [*MASKS.values(), lengths([2, 3], [1, 0]), causal & np.ones((2, 1, 1), bool)])
def test_a_mask_in_full_has_every_query_and_key(mask):
    assert mask.materialize(3, 5).shape[-2:] == (3, 5)


def test_what_is_hidden_might_as_well_not_be_there():
    q, k, v = problem(Sq=4, Sk=6)
    o = attention(q, k, v, mask=lengths([4, 1], [4, 2]) & causal)
    npt.assert_allclose(o[0], attention(q[0], k[0, :, :4], v[0, :, :4], mask=causal), **ROUNDING)
    npt.assert_allclose(o[1, :, :2], attention(q[1, :, :2], k[1, :, :1], v[1, :, :1], mask=causal), **ROUNDING)
    assert not o[1, :, 2:].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_hidden_values_are_never_seen(value):
    q, k, v = problem(Sq=4)
    clean = attention(q, k, v, mask=causal, return_lse=True)
    k[:, :, 2:], v[:, :, 2:] = value, value
    o, lse = attention(q, k, v, mask=causal, return_lse=True)
    npt.assert_array_equal(o[:, :, :2], clean[0][:, :, :2])
    npt.assert_array_equal(lse[:, :, :2], clean[1][:, :, :2])
    assert (o[:, :, 2:] != clean[0][:, :, 2:]).any()                    # the control: what is seen matters


@pytest.mark.parametrize("where", ["q", "k", "v", "bias", "sink", "alibi"])
def test_nan_reaches_exactly_the_rows_that_see_it(where):
    for i, j in itertools.product(range(4), range(4)):
        q, k, v = problem(Sq=4, Dv=2)
        bias, sink, alibi = np.zeros((4, 4)), np.zeros(2), np.zeros(2)
        {"q": q[0, 0, i], "k": k[0, 0, j], "v": v[0, 0, j, :1], "bias": bias[i, j, None], "sink": sink[:1],
         "alibi": alibi[:1]}[where][...] = math.nan
        wanted = np.zeros((2, 2, 4), bool)
        if where == "q":
            wanted[0, 0, i] = True
        elif where == "bias":
            wanted[:, :, i] = i >= j
        elif where in ("sink", "alibi"):
            wanted[:, 0] = True
        else:
            wanted[0, :, j:] = True
        o, lse = attention(q, k, v, mask=causal, bias=bias, sink=sink, alibi=alibi, return_lse=True)
        npt.assert_array_equal(np.isnan(o[..., 0]), wanted)
        npt.assert_array_equal(np.isnan(o[..., 1]), wanted & (where != "v"))        # v: in that channel alone
        npt.assert_array_equal(np.isnan(lse), wanted & (where != "v"))


def test_a_mask_is_a_mask_in_any_form():
    q, k, v = problem(Sq=4)
    for ours, theirs in [(causal & window(1), fastattn.causal & fastattn.window(1)),
                         (prefix([1, 3]), fastattn.prefix([1, 3])),
                         (packed([0, 0, 1, 2]), fastattn.packed([0, 0, 1, 2]))]:
        o = attention(q, k, v, mask=ours)
        npt.assert_array_equal(attention(q, k, v, mask=theirs), o)
        npt.assert_array_equal(attention(q, k, v, mask=ours.materialize(4, 4)), o)
        npt.assert_allclose(attention(q, k, v, bias=np.where(ours.materialize(4, 4), 0, -np.inf)), o, rtol=1e-15)


def test_packed_sequences_are_sequences():
    q, k, v = (x[0].swapaxes(0, 1) for x in problem(B=1, Sq=9, Sk=12))              # (T, H, D)
    starts_q, starts_k = [0, 3, 3, 7], [0, 5, 6, 12]
    options = {"alibi": [0.5, 0.1], "softcap": 1.5, "sink": [0.3, 1.0], "scale": -0.9}
    for mask, alone in [(None, [None] * 3), (causal & window(2), [causal & window(2)] * 3),
                        (prefix([1, 2, 4]), [prefix(1), prefix(2), prefix(4)])]:
        o, lse = attention_varlen(q, k, v, starts_q, starts_k, mask=mask, return_lse=True, **options)
        npt.assert_array_equal(attention_varlen(q, k, v, starts_q, starts_k, mask=mask, **options), o)
        for b in range(3):
            i, j = slice(*starts_q[b:b + 2]), slice(*starts_k[b:b + 2])
            one = [x.swapaxes(0, 1) for x in (q[i], k[j], v[j])]
            ob, lb = attention(*one, mask=alone[b], return_lse=True, **options)
            npt.assert_array_equal(o[i], ob.swapaxes(0, 1))
            npt.assert_array_equal(lse[i], lb.swapaxes(0, 1))
        assert not o[7:].any()
        npt.assert_array_equal(lse[7:], -np.inf)


def test_results_are_float64_and_inputs_stay_as_they_are():
    q, k, v = (x.astype(np.float32) for x in problem())
    copies = [x.copy() for x in (q, k, v)]
    o, lse = attention(q, k, v, return_lse=True)
    assert o.dtype == lse.dtype == np.float64
    assert_same((o, lse), attention(*(x.astype(float) for x in copies), return_lse=True), rtol=0)
    assert_same((q, k, v), copies, rtol=0)


@pytest.mark.parametrize("function", [attention, attention_by_loops])
def test_options_broadcast_to_the_scores_and_do_not_enlarge_them(function):
    q, k, v = problem()                                 # B = Hq = 2, Sq = 3, Sk = 4
    for options in ({"bias": np.zeros((2, 2, 3, 5))}, {"bias": np.zeros((1, 2, 2, 3, 4))}, {"mask": np.ones(3, bool)},
                    {"mask": lengths([1, 2, 3])}):
        with pytest.raises(ValueError, match=r"broadcast|more dimensions"):
            function(q, k, v, **options)
    for options in ({"bias": np.zeros((3, 1))}, {"bias": 0}, {"mask": True}, {"mask": np.ones((2, 1, 1), bool)}):
        npt.assert_array_equal(function(q, k, v, **options), function(q, k, v))
