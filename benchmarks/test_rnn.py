"""Recurrent networks: the reference by hand and against torch, ours against the reference; attention word by word."""

import numpy as np
import numpy.testing as npt
import pytest

import reference
from fastattn.machine import TARGET
from reference import rnn as formulas

from .cases import GATES
from .racers import torch_module
from .rnn import Recurrent, Weights, blocking
from .word_by_word import WordByWord

# Sums of some 200 products of numbers of about 1 and 1 / sqrt(H), in float32: errors are 1e-7 to 1e-6, and tanh and the gates do
# not make them larger. A wrong gate, unit or word is wrong by 1e-2 and more.
TOLERANCE = 1e-5
KINDS = tuple(GATES)


def words(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def wanted(layer, x):
    if len(layer.weights) == 2:
        return formulas.bidirectional_lstm(x, *layer.weights)
    return getattr(formulas, layer.kind)(x, *layer.weights[0])


# ---- the reference -----------------------------------------------------------------------------------------------------
def scalars(kind, x, h, b):
    """Weights of one unit and one number a word, a number for each gate."""
    w_x, w_h = (np.array(w, float).reshape(-1, GATES[kind]) for w in (x, h))
    return w_x, w_h, np.array(b, float), np.zeros(GATES[kind])


OPEN, SHUT = 40.0, -40.0                    # biases: sigmoid is 1 or 0 to 1e-17


def test_elman_by_hand():
    h = formulas.elman([[0.5], [-1.0]], *scalars("elman", [2], [3], [0.25]))
    first = np.tanh(1.25)
    npt.assert_allclose(h, [[first], [np.tanh(-2 + 3 * first + 0.25)]], rtol=1e-15)


def test_an_lstm_with_all_gates_open_adds_up():
    h = formulas.lstm([[0.5], [1.0], [-0.25]], *scalars("lstm", [0, 0, 1, 0], [0] * 4, [OPEN, OPEN, 0, OPEN]))
    npt.assert_allclose(h[:, 0], np.tanh(np.cumsum(np.tanh([0.5, 1.0, -0.25]))), rtol=1e-15)


@pytest.mark.parametrize(("shut", "given"), [
    (0, [0, 0, 0]),                                                     # i: nothing comes in
    (1, np.tanh(np.tanh([0.5, 1.0, -0.25]))),                           # f: nothing stays
    (3, [0, 0, 0]),                                                     # o: nothing is shown
])
def test_each_gate_of_an_lstm_does_its_own(shut, given):
    b = [OPEN, OPEN, 0, OPEN]
    b[shut] = SHUT
    h = formulas.lstm([[0.5], [1.0], [-0.25]], *scalars("lstm", [0, 0, 1, 0], [0] * 4, b))
    npt.assert_allclose(h[:, 0], given, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize(("r", "z", "given"), [
    (SHUT, SHUT, np.tanh([0.5, 1.0])),                                  # every state is new and knows nothing of the last
    (OPEN, SHUT, [np.tanh(0.5), np.tanh(1 + 2 * np.tanh(0.5))]),        # ... and looks at it
    (OPEN, OPEN, [0, 0]),                                               # the state stays as it was
])
def test_each_gate_of_a_gru_does_its_own(r, z, given):
    h = formulas.gru([[0.5], [1.0]], *scalars("gru", [0, 0, 1], [0, 0, 2], [r, z, 0]))
    npt.assert_allclose(h[:, 0], given, rtol=1e-15, atol=1e-15)


def test_the_second_direction_reads_last_to_first():
    x, weights = words(2, 5, 3), [Weights.random("lstm", 3, 4, seed) for seed in (0, 1)]
    both = formulas.bidirectional_lstm(x, *weights)
    npt.assert_array_equal(both[..., :4], formulas.lstm(x, *weights[0]))
    for t in range(5):
        npt.assert_array_equal(both[:, t, 4:], formulas.lstm(x[:, t:][:, ::-1], *weights[1])[:, -1])


@pytest.mark.parametrize(("kind", "directions"), [("elman", 1), ("gru", 1), ("lstm", 1), ("lstm", 2)])
def test_the_reference_is_torchs(kind, directions):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weights = tuple(Weights.random(kind, 20, 30, seed) for seed in range(directions))
    x, module = words(3, 7, 20), torch_module(kind, weights).double()
    with torch.inference_mode():
        y = module(torch.from_numpy(x).double())[0].numpy()
    # Both in float64: sums of 50 products.
    npt.assert_allclose(wanted(Recurrent(kind, *weights), x), y, rtol=0, atol=1e-14)


# ---- ours --------------------------------------------------------------------------------------------------------------
# Batches whose sums have 1, 3 and 8 rows; 1 row again, for many sequences; and whole squares to be transposed.
@pytest.mark.parametrize("batch", [1, 3, 8, 16, 17, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_ours_is_the_reference(kind, batch):
    for d, H in ((1, 1), (5, 16), (33, 40), (20, 130)):         # units that fill a register, a block, two; and that do not
        layer = Recurrent(kind, Weights.random(kind, d, H))
        for S in (1, 2, 7):
            x = words(batch, S, d)
            npt.assert_allclose(layer(x), wanted(layer, x), rtol=0, atol=TOLERANCE, err_msg=f"d {d}, H {H}, S {S}")


@pytest.mark.parametrize("batch", [1, 4])
def test_our_bidirectional_lstm_is_the_reference(batch):
    layer = Recurrent("lstm", *(Weights.random("lstm", 20, 40, seed) for seed in (0, 1)))
    x = words(batch, 9, 20)
    npt.assert_allclose(layer(x), wanted(layer, x), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_no_bit(kind, batch, directions):
    layer = Recurrent.random(kind, 300, directions)
    x = words(batch, 12, 300)
    one = layer(x)
    for threads in (2, 3, 40):                  # 40: more than there are blocks of units
        npt.assert_array_equal(layer(x, threads), one, err_msg=f"{threads} threads")


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_leaves_nothing_behind(kind):
    layer = Recurrent.random(kind, 48)
    texts = [words(*shape, 48, seed=1) for shape in ((2, 6), (6, 2), (1, 12), (2, 3), (2, 6))]   # as many words, other batches
    alone = [Recurrent.random(kind, 48)(x) for x in texts]
    results = [layer(x) for x in texts]
    for y, z in zip(results, alone, strict=True):
        npt.assert_array_equal(y, z)


@pytest.mark.parametrize("kind", KINDS)
def test_one_text_needs_no_batch_and_no_words_give_none(kind):
    layer = Recurrent.random(kind, 24)
    x = words(5, 24)
    npt.assert_array_equal(layer(x), layer(x[None])[0])
    assert layer(x[:0]).shape == (0, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_huge_words_saturate(kind):
    layer = Recurrent.random(kind, 32)
    x = 1e4 * words(1, 6, 32)
    # Sums of 1e4 and more err by 1e-2, which matters where a gate is half open: it seldom is.
    error = np.abs(layer(x) - wanted(layer, x))
    assert np.median(error) < TOLERANCE
    assert error.max() < 0.1


def test_sums_fit_the_registers():
    for batch in range(1, 100):
        rows, vecs = blocking(batch)
        assert batch % rows == 0
        # A number of h is part of the instruction, or takes a register; so does each vector of w_h.
        assert rows * vecs + min(vecs, TARGET.registers // 2 - 1) + 1 <= TARGET.registers or rows == 1


# ---- attention, one word after the other -------------------------------------------------------------------------------
@pytest.mark.parametrize(("B", "S"), [(1, 1), (1, 40), (3, 7)])
def test_word_by_word_is_causal_attention(B, S):
    weights = [words(24, 24, seed=seed) / np.float32(np.sqrt(24)) for seed in range(4)]
    x = words(B, S, 24)
    all_at_once = reference.SelfAttention(*weights, heads=3)(x, mask=reference.causal)
    npt.assert_allclose(WordByWord(*weights, heads=3)(x), all_at_once, rtol=0, atol=TOLERANCE)
