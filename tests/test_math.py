"""exp2, tanh and rounded of vectors, in every body that they have, against the figures that fastattn/simd/math.py states."""

import math
import re
from unittest import mock

import numpy as np
import numpy.testing as npt
import pytest
from numba import types

import fastattn.simd.math
from fastattn.machine import TARGET
from fastattn.simd.math import exp2, exp2_less, exp2_of, rounded, tanh_of
from fastattn.simd.vec import Shape, fill, lanewise, load, store
from tests.entry import call
from tests.problems import DTYPES, F32, F64

both = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SCALARS = {F32: types.float32, F64: types.float64}

# What a target says that makes the code take each body. Any target can run the first two.
BODIES = {"without FMA": {"splits_floats": False, "has_fma": False}, "by bits": {"splits_floats": False}}
if TARGET.vector_bytes == 64:
    BODIES["by instructions"] = {"splits_floats": True}
OWN = "by instructions" if TARGET.splits_floats else "by bits"

# ULP: of "exp2 f32" by body. The table's columns stand in this order.
STATED = {name: dict(zip(("by bits", "without FMA", "by instructions"), map(float, figures), strict=True))
          for name, *figures in re.findall(r"^ +(\w+ f\d\d) .* ([\d.]+) +([\d.]+) +([\d.]+)$", fastattn.simd.math.__doc__, re.M)}
if not TARGET.has_fma:
    STATED = {name: figures | {"by bits": figures["without FMA"]} for name, figures in STATED.items()}


# ---- functions of arrays ---------------------------------------------------------------------------------------------------
def over(operation, name):
    """An entry point that replaces every register of an array by the operation of it."""
    def entry(x, y, end, row, bytes_):
        for at in range(0, end, bytes_):
            store(operation(load(row, x + at, 0)), y + at, 0)
        return 0

    entry.__qualname__ = name                   # compiled code is known by its name
    return entry


def as_if(operation, target):
    """The operation as it is compiled for a target that differs in what is given."""
    def generated(x):
        with mock.patch.dict(TARGET.__dict__, target):
            return operation(x)

    return lanewise(generated)


EXP2 = {body: over(as_if(exp2_of, target), f"exp2 {body}") for body, target in BODIES.items()}
TANH = {body: over(as_if(tanh_of, target), f"tanh {body}") for body, target in BODIES.items()}
own_exp2, own_rounded = over(exp2, "exp2"), over(rounded, "rounded")
every_body = pytest.mark.parametrize("body", BODIES)


def less(x, y, end, row, bytes_):
    for at in range(0, end, bytes_):
        store(exp2_less(load(row, x + at, 0), fill(row, 2.0)), y + at, 0)
    return 0


def of(function, x):
    """The function of an array, register by register."""
    row = Shape(SCALARS[x.dtype], 1, 1)
    padded = np.zeros(-(-x.size // row.lanes) * row.lanes, x.dtype)
    padded[:x.size] = x.ravel()
    y = np.empty_like(padded)
    call(function, padded.ctypes.data, y.ctypes.data, padded.nbytes, row, row.lanes * x.itemsize)
    return y[:x.size].reshape(x.shape)


def ulp(y, exact):
    """Errors in units in the last place of the exact result, which is of a wider type."""
    kind = np.finfo(y.dtype)
    exponent = np.maximum(np.frexp(exact)[1] - 1, kind.minexp)
    return np.abs(y - exact) / np.ldexp(exact.dtype.type(1), exponent - kind.nmant)


def worst_ulp(functions, x, formula):
    """The largest error of each function on x; the formula is computed once, in a wider type."""
    exact = formula(x.astype(float if x.dtype == F32 else np.longdouble))
    return {name: ulp(of(f, x), exact).max(initial=0) for name, f in functions.items()}


def assert_as_stated(found, name):
    for body, worst in found.items():
        assert worst <= STATED[name][body], f"{name}, {body}: {worst} ULP"


def floats32(lo, hi, step=1):
    """Every step-th float32 from lo to hi, of one sign."""
    first, last = (int(np.float32(x).view(np.uint32)) for x in (lo, hi))
    return np.arange(first, last + 1, step, np.uint32).view(np.float32)


def every_float32(lo, hi):
    """All of them, in pieces that stay in a core's cache."""
    first, last = (int(np.float32(x).view(np.uint32)) for x in (lo, hi))
    for start in range(first, last + 1, 1 << 17):
        yield np.arange(start, min(start + (1 << 17), last + 1), dtype=np.uint32).view(np.float32)


def floats64(lo, hi, count, seed=0):
    """Random float64 between lo and hi: even in value, and in exponent."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(lo, hi, count)
    return np.concatenate([x, np.copysign(2.0 ** rng.uniform(-60, np.log2(np.abs(x))), x)])


def special_nans(dtype):
    """NaN of both signs with every single bit of payload, with the low ones counted through, and signalling ones."""
    kind, fraction = np.dtype(f"u{dtype.itemsize}"), np.finfo(dtype).nmant
    exponent = (1 << (8 * dtype.itemsize - 1)) - (1 << fraction)
    payloads = [*range(1, 1024), *(1 << i for i in range(fraction)), *((1 << fraction - 1) + i for i in range(1024))]
    bits = np.array([exponent + p for p in payloads], kind)
    return np.concatenate([bits, bits | kind.type(1 << (8 * dtype.itemsize - 1))]).view(dtype)


wider_than_float64 = pytest.mark.skipif(np.finfo(np.longdouble).eps >= np.finfo(float).eps,
                                        reason="no type wider than float64 to compare it with")
rounds = pytest.mark.parametrize("rounds", [1, pytest.param(100, marks=pytest.mark.nightly)])


def test_every_figure_is_found():
    assert sorted(STATED) == ["exp2 f32", "exp2 f64", "tanh f32", "tanh f64"]


# ---- 2^x -------------------------------------------------------------------------------------------------------------------
BELOW_THE_END = np.nextafter(np.float32(127.5), np.float32(0))


def test_exp2_float32():
    # The last two have the fractions on both sides of 1/2, where the errors are largest.
    for x in (floats32(0, BELOW_THE_END, 997), floats32(-0.0, -126, 997), floats32(0.25, 1, 23), floats32(-0.25, -1, 23)):
        assert_as_stated(worst_ulp(EXP2, x, np.exp2), "exp2 f32")


@pytest.mark.nightly
def test_exp2_of_every_float32(record_property):
    found = dict.fromkeys(EXP2, 0.0)
    for lo, hi in ((0.0, BELOW_THE_END), (-0.0, -126.0)):
        for x in every_float32(lo, hi):
            found = {body: max(found[body], worst) for body, worst in worst_ulp(EXP2, x, np.exp2).items()}
    record_property("ULP of exp2 f32", {body: float(worst) for body, worst in found.items()})
    assert_as_stated(found, "exp2 f32")


@pytest.mark.nightly
@every_body
def test_exp2_below_its_range_falls_to_0(body):
    for x in every_float32(np.nextafter(np.float32(-126), -F32.type(np.inf)), -152.0):
        y = of(EXP2[body], x)
        assert ((y >= 0) & (y <= 2.0**-126)).all()


def worst_of(rounds, bodies, right, samples, record):
    """The largest error of each body over so many rounds of samples(seed), recorded under the function's name."""
    found = dict.fromkeys(bodies, 0.0)
    for seed in range(rounds):
        worst = worst_ulp(bodies, np.concatenate(samples(seed)), right)
        found = {body: max(found[body], worst[body]) for body in bodies}
    record(f"ULP of {right.__name__} f64, {rounds} rounds", {body: float(worst) for body, worst in found.items()})
    return found


@wider_than_float64
@rounds
def test_exp2_float64(rounds, record_property):
    def samples(seed):
        return [floats64(0, 1023.499, 100_000, seed), floats64(-1022, 0, 100_000, seed), floats64(-1, 1, 200_000, seed)]

    assert_as_stated(worst_of(rounds, EXP2, np.exp2, samples, record_property), "exp2 f64")


@both
@every_body
def test_integers_give_the_exact_power(body, dtype):
    kind = np.finfo(dtype)
    x = np.arange(kind.minexp, kind.maxexp).astype(dtype)
    npt.assert_array_equal(of(EXP2[body], x), np.ldexp(dtype.type(1), x.astype(int)))


@both
@every_body
def test_far_below_the_range_is_0(body, dtype):
    kind = np.finfo(dtype)
    deep = float(kind.minexp - kind.nmant - 2)
    x = np.array([deep, 2 * deep, 10 * deep, -1e9, -1e30, kind.min, -np.inf], dtype)
    npt.assert_array_equal(of(EXP2[body], x), 0)
    # Between: subnormal, as exact as that goes, or 0.
    x = np.linspace(deep, kind.minexp, 1000).astype(dtype)[:-1]
    y, exact = of(EXP2[body], x), np.exp2(x)
    assert ((y == 0) | (np.abs(y - exact) <= 2 * kind.smallest_subnormal)).all()


@both
@every_body
def test_nan_stays_nan_whatever_its_payload(body, dtype):
    assert np.isnan(of(EXP2[body], special_nans(dtype))).all()


# min and max of vectors give one of two operands where the other is NaN, and so does a comparison.
clamped = over(lanewise(lambda x: exp2_of(x.where(x > -126.0, -126.0))), "exp2 clamped")


@both
def test_the_control_a_clamp_drops_nan_and_nothing_else(dtype):
    x = np.linspace(-100, 100, 1001).astype(dtype)
    npt.assert_array_equal(of(clamped, x), of(own_exp2, x))
    assert np.isfinite(of(clamped, special_nans(dtype))).all()


def coarse(terms):
    """2^x by so many terms of its series, on [0, 1/2)."""
    def operation(x):
        y = x.like(0.0)
        for n in range(terms - 1, -1, -1):
            y = y.fma(x, x.like(math.log(2) ** n / math.factorial(n)))
        return y

    return over(lanewise(operation), f"exp2 in {terms} terms")


def test_the_control_a_polynomial_that_is_too_short_is_seen():
    found = worst_ulp({terms: coarse(terms) for terms in (6, 10)}, floats32(0.25, 0.5, 997), np.exp2)
    assert found[10] < 2
    assert found[6] > 20


@both
def test_exp2_takes_the_body_that_suits_the_target(dtype):
    x = np.linspace(-100, 100, 10_001).astype(dtype)
    npt.assert_array_equal(of(own_exp2, x), of(EXP2[OWN], x))


@both
def test_exp2_less(dtype):
    x = np.linspace(-50, 50, 1001).astype(dtype)
    npt.assert_array_equal(of(less, x), of(own_exp2, x - 2))


# ---- tanh ------------------------------------------------------------------------------------------------------------------
def test_tanh_float32():
    # Closer around 0.625, where the polynomial ends; wider where the exponential would leave its range.
    for x in (floats32(0, 25, 997), floats32(-0.0, -25, 997), floats32(0.5, 1, 13), floats32(20, np.finfo(F32).max, 99_991)):
        assert_as_stated(worst_ulp(TANH, x, np.tanh), "tanh f32")


@pytest.mark.nightly
def test_tanh_of_every_float32(record_property):
    found = dict.fromkeys(TANH, 0.0)
    for x in every_float32(0.0, np.finfo(F32).max):
        found = {body: max(found[body], worst) for body, worst in worst_ulp(TANH, x, np.tanh).items()}
        for f in TANH.values():
            npt.assert_array_equal(of(f, -x), -of(f, x))
    record_property("ULP of tanh f32", {body: float(worst) for body, worst in found.items()})
    assert_as_stated(found, "tanh f32")


@wider_than_float64
@rounds
def test_tanh_float64(rounds, record_property):
    def samples(seed):
        return [floats64(0, 25, 100_000, seed), floats64(-25, 0, 100_000, seed), floats64(0, 2, 200_000, seed),
                floats64(20, 1e5, 1000, seed)]

    assert_as_stated(worst_of(rounds, TANH, np.tanh, samples, record_property), "tanh f64")


@both
@every_body
def test_tanh_of_what_is_special(body, dtype):
    kind = np.finfo(dtype)
    x = np.array([0.0, -0.0, np.inf, -np.inf, kind.max, kind.min, 1e9, -1e9, kind.smallest_subnormal, -kind.tiny], dtype)
    y = of(TANH[body], x)
    npt.assert_array_equal(y, [0, 0, 1, -1, 1, -1, 1, -1, kind.smallest_subnormal, -kind.tiny])
    npt.assert_array_equal(np.signbit(y), np.signbit(x))
    assert np.isnan(of(TANH[body], special_nans(dtype))).all()


@both
@every_body
def test_tanh_is_odd_and_never_falls(body, dtype):
    # Neighbouring values may differ by their errors, but no further: an ULP below 1 is half an eps.
    x = np.linspace(0, 22, 100_001).astype(dtype)
    y = of(TANH[body], x)
    npt.assert_array_equal(of(TANH[body], -x), -y)
    assert (np.diff(y) >= -STATED[f"tanh f{8 * dtype.itemsize}"][body] * np.finfo(dtype).eps).all()
    assert (y <= 1).all()


# ---- rounded ---------------------------------------------------------------------------------------------------------------
@both
def test_rounded_is_to_the_nearest_even(dtype):
    rng = np.random.default_rng(0)
    big = 2.0 ** np.finfo(dtype).nmant
    x = np.concatenate([np.arange(-9, 9, 0.25), rng.uniform(-1e5, 1e5, 1000), [0.49999997, big - 0.5, big, big + 1, 1e30, -1e30],
                        [np.inf, -np.inf]]).astype(dtype)
    y = of(own_rounded, x)
    npt.assert_array_equal(y, np.rint(x))
    npt.assert_array_equal(np.signbit(y), np.signbit(x))
    assert np.isnan(of(own_rounded, special_nans(dtype))).all()
