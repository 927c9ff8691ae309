"""exp2 and tanh of vectors, each with its range and its error in ULP; the tests read this very table.

                range             by bits   without FMA   by instructions
    exp2 f32    [-126, 127.5)        1.74          1.88              1.52
    exp2 f64    [-1022, 1023.5)      0.95          1.2               1.9
    tanh f32    all                  2.09          2.14              1.64
    tanh f64    all                  1.7           1.7               1.8

float32: the largest error there is, found by trying every number; float64: the largest of 80 million random numbers, and
up to a tenth more. NaN stays NaN. exp2 below its range: subnormal or 0, and -inf gives 0; above: undefined.

exp2 has two bodies. Any machine can split x into an integer n and a fraction by adding 1.5 2^23 + 127: the low bits then are
the exponent of 2^n. That is six instructions besides the polynomial's. Where AVX-512's vreduceps and vscalefps are fast they
do it in two, and the polynomial, now on [0, 1), needs one degree more in float32 and errs twice as much in float64: the score
tile gains 5 % on an Intel Xeon with two FMA units.

Coefficients: interpolation in Chebyshev points at 60 digits, rounded to the type. exp2 f32 on [-1/2, 1/2] has no digit to
spare: minimax in ULP of the result (half as large below 0) with the constant 1, less the rounding errors of each step, then
the best of their float32 neighbours over all f. With FMA alone in view 1.70 is within reach, but then 1.97 without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..machine import TARGET
from .vec import FLOATS, I32, Lanes, lanewise, maximum_of

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Format:
    """What the functions need to know of a float type. Polynomials start with the highest power."""

    fraction_bits: int
    lowest_exponent: int
    near: tuple[float, ...]         # 2^f for |f| <= 1/2
    unit: tuple[float, ...]         # 2^f for 0 <= f < 1
    tanh: tuple[float, ...]         # tanh x = x + x z polynomial(z), z = x² <= 0.625²

    @property
    def largest(self) -> float:
        return (2 - 2.0**-self.fraction_bits) * 2.0**(1 - self.lowest_exponent)

    @property
    def magic(self) -> float:
        """Adding it rounds to an integer, which then stands in the low bits."""
        return 1.5 * 2.0**self.fraction_bits


FORMATS = {
    types.float32: Format(
        23, -126,
        (0.0013170356396585703, 0.00967229064553976, 0.05551072582602501, 0.2402222603559494,
         0.6931467056274414, 1.0),
        (0.0002081791462842375, 0.0012692166492342949, 0.009652195498347282, 0.05549602210521698,
         0.24022720754146576, 0.6931471824645996, 1.0),
        (0.002292744815349579, -0.008343945257365704, 0.02176891826093197, -0.053959257900714874,
         0.13333304226398468, -0.3333333432674408)),
    types.float64: Format(
        52, -1022,
        (4.4549605981865186e-10, 7.072585949269223e-09, 1.0178062445845774e-07, 1.321544258792169e-06,
         1.525273382983612e-05, 0.0001540353044173605, 0.0013333558146416936, 0.009618129107606888,
         0.0555041086648216, 0.24022650695910097, 0.6931471805599453, 1.0),
        (6.123092916826387e-10, 6.634445866251414e-09, 1.0236023803275179e-07, 1.3210583477765189e-06,
         1.5252998899728418e-05, 0.00015403521219107733, 0.001333355834393728, 0.009618129105151757,
         0.05550410866498067, 0.24022650695909673, 0.6931471805599453, 1.0),
        (6.485163482793113e-06, -3.12011014257974e-05, 9.257116129556769e-05, -0.0002375906496055562,
         0.0005896606577757043, -0.0014557754120478055, 0.0035921217511549622, -0.008863235103240878,
         0.021869488519008305, -0.05396825396789699, 0.13333333333333042, -0.3333333333333333)),
}


def _format(x: Lanes) -> Format:
    return next(f for scalar, f in FORMATS.items() if FLOATS[scalar] == x.value.type.element)


def _polynomial(x: Lanes, coefficients: tuple[float, ...]) -> Lanes:
    y = x.like(coefficients[0])
    for c in coefficients[1:]:
        y = y.fma(x, c)
    return y


def _avx512(name: str, x: Lanes, argument: ir.Value) -> Lanes:
    """An instruction of AVX-512 on x and one argument, all lanes, in the current rounding mode."""
    vector, b = x.value.type, x.builder
    suffix = "ps" if vector.element == FLOATS[types.float32] else "pd"
    arguments = [x.value, argument, x.value, ir.IntType(vector.count)(-1), I32(4)]
    kind = ir.FunctionType(vector, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(b.module, kind, f"llvm.x86.avx512.mask.{name}.{suffix}.512")
    return Lanes(b, b.call(function, arguments))


def exp2_by_instructions(x: Lanes) -> Lanes:
    """2^x = 2^floor(x) 2^f, 0 <= f < 1."""
    downwards = I32(1)
    f = _avx512("reduce", x, downwards)
    return _avx512("scalef", _polynomial(f, _format(x).unit), x.value)


def exp2_by_bits(x: Lanes) -> Lanes:
    """2^x = 2^n 2^f, n = x rounded, |f| <= 1/2. A product, and not a sum of exponents, keeps a NaN whatever its payload."""
    kind = _format(x)
    bias = 1.0 - kind.lowest_exponent
    # The least n makes the exponent of 2^n 0, which is that of the number 0. NaN stays: `maximum_of` gives its second then.
    x = maximum_of(x.like(-bias), x)
    shifted = x + (kind.magic + bias)
    f = x - (shifted - (kind.magic + bias))
    bits = shifted.bits()
    power = x.from_bits(x.builder.shl(bits, bits.type([kind.fraction_bits] * bits.type.count)))
    return _polynomial(f, kind.near) * power


def exp2_of(x: Lanes) -> Lanes:
    """2^x. An integer x gives the exact power."""
    return exp2_by_instructions(x) if TARGET.splits_floats else exp2_by_bits(x)


def kept_finite(x: Lanes, finite: ir.Value) -> Lanes:
    """x; where it is infinite and should be `finite`, the largest number of its sign."""
    overflowed = x.builder.and_(x.magnitude().equals(float("inf")), finite)
    return x.like(_format(x).largest).with_sign_of(x).where(overflowed, x)


def rounded_of(x: Lanes) -> Lanes:
    """x rounded to an integer; +-inf and NaN as they are."""
    big = 2.0 ** _format(x).fraction_bits
    size = x.magnitude()
    return ((size + big) - big).with_sign_of(x).where(size < big, x)


def tanh_of(x: Lanes) -> Lanes:
    """Near 0 an odd polynomial, elsewhere 1 - 2 / (e^2x + 1), which loses nothing there."""
    size = x.magnitude()
    z = size * size
    near = (size * z).fma(_polynomial(z, _format(x).tanh), size)
    # From 20 on the result is 1 in both types; without the limit exp2 would leave its range. NaN stays: it is not greater.
    power = exp2_of(size.like(20.0).where(size > 20.0, size) * (2 * LOG2_E))
    far = size.like(1.0) - size.like(2.0) / (power + 1.0)
    return far.where(size.not_less(0.625), near).with_sign_of(x)


exp2 = lanewise(exp2_of)
tanh = lanewise(tanh_of)
rounded = lanewise(rounded_of)
exp2_less = lanewise(lambda x, m: exp2_of(x - m))
