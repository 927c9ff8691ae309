"""Every operation of simd/vec.py against NumPy, on small tiles of every shape, with NaN, inf, -0.0 and subnormals in the lanes."""

import numpy as np
import numpy.testing as npt
import pytest
from numba import types

from fastattn.micro.score import between
from fastattn.simd import vec
from fastattn.simd.vec import (
    INF,
    Shape,
    add,
    any_lane,
    arrive,
    byte,
    bytes_of,
    column_of,
    counted,
    dot,
    dot_part,
    double_of,
    fetch,
    fetch_far,
    fetch_to_write,
    fill,
    lane_of,
    lanes_of,
    lanewise,
    load,
    load_mask_table,
    load_offsets,
    load_part,
    load_table,
    max_across,
    maximum,
    multiply,
    number,
    numbered,
    put_ladder,
    put_number,
    put_word,
    rank1,
    rank1_part,
    row_of,
    rowmax,
    rows_of,
    rowsum,
    scale_rows,
    scaled,
    size_of,
    square_of,
    store,
    store_part,
    store_table,
    subtract,
    sum_across,
    swap_neighbours,
    take,
    transpose,
    vecs_of,
    word,
    zeros,
)
from tests.entry import call
from tests.problems import DTYPES, F32

SCALARS = {np.dtype(np.float32): types.float32, np.dtype(np.float64): types.float64}
both = pytest.mark.parametrize("dtype", DTYPES, ids=str)
tiles = pytest.mark.parametrize(("rows", "vecs"), [(1, 1), (3, 1), (2, 4), (4, 4)])
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-40, -1e-310, 1e30]


def shape_of(dtype, rows=1, vecs=1):
    return Shape(SCALARS[dtype], rows, vecs)


def width(shape):
    return shape.vecs * shape.lanes


def integers(seed, shape, dtype):
    """Small whole numbers: their products and sums are exact, fused or not."""
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(dtype)


def specials(seed, shape, dtype):
    """NaN and the like, in every combination of lanes."""
    with np.errstate(under="ignore", over="ignore"):
        return np.random.default_rng(seed).choice(SPECIAL, shape).astype(dtype)


def at(x):
    return x.ctypes.data


def same(x, y):
    """Equal, and -0.0 is not 0.0."""
    npt.assert_array_equal(x, y)
    npt.assert_array_equal(np.signbit(x[~np.isnan(x)]), np.signbit(y[~np.isnan(y)]))


# ---- memory ----------------------------------------------------------------------------------------------------------------
def copy(x, x_row, y, y_row, shape):
    store(load(shape, x, x_row), y, y_row)
    return 0


@both
@tiles
def test_load_and_store(rows, vecs, dtype):
    shape = shape_of(dtype, rows, vecs)
    x, y = specials(0, (rows, width(shape) + 3), dtype), np.full((rows, width(shape) + 1), 7, dtype)
    call(copy, at(x), x.strides[0], at(y), y.strides[0], shape)
    same(y[:, :-1], x[:, :-3])
    npt.assert_array_equal(y[:, -1], 7)
    # No alignment beyond one element, rows that go backwards.
    call(copy, at(x) + x.strides[0] * (rows - 1) + x.itemsize, -x.strides[0], at(y), y.strides[0], shape)
    same(y[:, :-1], x[::-1, 1:-2])


def copy_part(x, x_row, y, y_row, count, shape):
    store_part(load_part(shape, x, x_row, count), y, y_row, count)
    return 0


def load_part_store_whole(x, x_row, y, y_row, count, shape):
    store(load_part(shape, x, x_row, count), y, y_row)
    return 0


@both
@tiles
def test_parts_of_the_last_vector(rows, vecs, dtype):
    shape = shape_of(dtype, rows, vecs)
    x, head = specials(1, (rows, width(shape)), dtype), width(shape) - shape.lanes
    for count in range(-1, shape.lanes + 2):
        n = head + min(max(count, 0), shape.lanes)
        y = np.full_like(x, 7)
        call(copy_part, at(x), x.strides[0], at(y), y.strides[0], count, shape)
        same(y[:, :n], x[:, :n])
        npt.assert_array_equal(y[:, n:], 7)
        call(load_part_store_whole, at(x), x.strides[0], at(y), y.strides[0], count, shape)
        same(y[:, :n], x[:, :n])
        npt.assert_array_equal(y[:, n:], 0)


def copy_table(table, offset, count, y, shape):
    store(load_table(shape, table, offset, count), y, lanes_of(shape) * size_of(shape))
    return 0


def copy_mask_table(table, offset, count, y, shape):
    store(load_mask_table(shape, table, offset, count), y, lanes_of(shape) * size_of(shape))
    return 0


@both
def test_tables_of_rows(dtype):
    shape = shape_of(dtype, 4)
    x, y = specials(2, (9, shape.lanes + 8), dtype), np.empty((4, shape.lanes), dtype)
    rows = np.array([7, 0, 3, 3])
    table = at(x) + rows * x.strides[0]
    for count in range(shape.lanes + 1):
        call(copy_table, at(table), 3 * x.itemsize, count, at(y), shape)
        same(y[:, :count], x[rows, 3:3 + count])
        npt.assert_array_equal(y[:, count:], 0)
    seen = np.random.default_rng(3).integers(0, 2, (9, shape.lanes + 8)).astype(np.uint8) * np.uint8(255)
    table = at(seen) + rows * seen.strides[0]
    for count in range(shape.lanes + 1):
        call(copy_mask_table, at(table), 5, count, at(y), shape)
        npt.assert_array_equal(y[:, :count], np.where(seen[rows, 5:5 + count], 0, -np.inf))
        npt.assert_array_equal(y[:, count:], -np.inf)


def store_rows_whole(x, x_row, table, offset, shape):
    store_table(load(shape, x, x_row), table, offset, None)
    return 0


def store_rows_part(x, x_row, table, offset, count, shape):
    store_table(load(shape, x, x_row), table, offset, count)
    return 0


@both
@tiles
def test_storing_to_a_table_of_rows(rows, vecs, dtype):
    shape = shape_of(dtype, rows, vecs)
    x, whole, head = specials(4, (rows, width(shape)), dtype), width(shape), width(shape) - shape.lanes
    places = np.random.default_rng(5).permutation(9)[:rows]
    for count in (None, *range(shape.lanes + 1)):
        y = np.full((9, whole + 4), 7, dtype)
        wanted = y.copy()
        table = at(y) + places * y.strides[0]
        n = whole if count is None else head + count
        wanted[places, 3:3 + n] = x[:, :n]
        if count is None:
            call(store_rows_whole, at(x), x.strides[0], at(table), 3 * x.itemsize, shape)
        else:
            call(store_rows_part, at(x), x.strides[0], at(table), 3 * x.itemsize, count, shape)
        same(y, wanted)


def offsets(table, minus, least, most, y, shape):
    store(load_offsets(shape, table, minus, least, most), y, 0)
    return 0


@both
def test_offsets_are_held_between_limits(dtype):
    shape = shape_of(dtype)
    table = np.resize([-(2**62), -70, -1, 0, 1, 5, 64, 65, 66, 1000, 2**40, 2**62, 3, 4, 2, 60], shape.lanes)
    y = np.empty(shape.lanes, dtype)
    for minus in (0, 64, -3):
        call(offsets, at(table), minus, -1, 65, at(y), shape)
        npt.assert_array_equal(y, np.clip(table - minus, -1, 65))


# ---- make, products -----------------------------------------------------------------------------------------------------
def makes(y, x, shape):
    row = rows_of(shape) * bytes_of(shape)
    store(zeros(shape), y, vecs_of(shape) * lanes_of(shape) * size_of(shape))
    store(fill(shape, number(shape, x)), y + row, vecs_of(shape) * lanes_of(shape) * size_of(shape))
    return rows_of(shape) * 1_000_000 + vecs_of(shape) * 10_000 + lanes_of(shape) * 100 + size_of(shape)


@both
@tiles
def test_making_tiles(rows, vecs, dtype):
    shape = shape_of(dtype, rows, vecs)
    y = np.full((2, rows, width(shape)), 7, dtype)
    x = np.array([-0.0], dtype)
    assert call(makes, at(y), at(x), shape) == rows * 1_000_000 + vecs * 10_000 + shape.lanes * 100 + dtype.itemsize
    same(y[0], np.zeros_like(y[0]))
    same(y[1], np.full_like(y[1], -0.0))


def products(t, column, step, row, count, y, shape):
    W = vecs_of(shape) * lanes_of(shape) * size_of(shape)
    tile = load(shape, t, W)
    store(rank1(tile, column, step, row), y, W)
    store(rank1_part(tile, column, step, row, count), y + rows_of(shape) * W, W)
    store(scale_rows(tile, column, step), y + 2 * rows_of(shape) * W, W)
    store(scaled(tile, number(shape, column)), y + 3 * rows_of(shape) * W, W)
    return 0


@both
@tiles
def test_products(rows, vecs, dtype):
    shape = shape_of(dtype, rows, vecs)
    t, row = integers(0, (rows, width(shape)), dtype), integers(1, width(shape), dtype)
    column, y = integers(2, (rows, 3), dtype)[:, 1], np.empty((4, rows, width(shape)), dtype)
    for count in range(shape.lanes + 1):
        call(products, at(t), at(column), column.strides[0], at(row), count, at(y), shape)
        part = np.where(np.arange(width(shape)) < width(shape) - shape.lanes + count, row, 0)
        npt.assert_array_equal(y[0], t + np.outer(column, row))
        npt.assert_array_equal(y[1], t + np.outer(column, part))
        npt.assert_array_equal(y[2], t * column[:, None])
        npt.assert_array_equal(y[3], t * column[0])


def dots(t, stretch, x, y, y_row, count, out, shape):
    V = bytes_of(shape)
    tile = load(shape, t, V)
    store(dot(tile, stretch, x, y, y_row), out, V)
    store(dot_part(tile, x, y, y_row, count), out + rows_of(shape) * V, V)
    return 0


@both
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("vecs", [1, 2, 4])
def test_products_of_one_row_and_several(rows, vecs, dtype):
    shape, stretch = shape_of(dtype, rows), shape_of(dtype, 1, vecs)
    L = shape.lanes
    t, x, y = (integers(seed, size, dtype) for seed, size in enumerate([(rows, L), (vecs, L), (rows, vecs + 1, L)]))
    out = np.empty((2, rows, L), dtype)
    for count in range(L + 1):
        call(dots, at(t), stretch, at(x), at(y), y.strides[0], count, at(out), shape)
        npt.assert_array_equal(out[0], t + (x * y[:, :vecs]).sum(1))
        npt.assert_array_equal(out[1], t + np.where(np.arange(L) < count, x[0], 0) * y[:, 0])


def hide(t, first, lo, hi, y, shape):
    W = vecs_of(shape) * lanes_of(shape) * size_of(shape)
    row = row_of(shape)
    store(between(load(shape, t, W), numbered(shape, number(shape, first)), load(row, lo, 0), load(row, hi, 0)), y, W)
    return 0


@both
@tiles
def test_between_shows_the_rows_from_lo_to_hi(rows, vecs, dtype):
    shape = shape_of(dtype, rows, vecs)
    t, y, rng = specials(6, (rows, width(shape)), dtype), np.empty((rows, width(shape)), dtype), np.random.default_rng(7)
    for first in (0, -3, 5):
        lo, hi = (rng.integers(first - 2, first + rows + 3, width(shape)).astype(dtype) for _ in range(2))
        start, r = np.array([first], dtype), first + np.arange(rows)[:, None]
        call(hide, at(t), at(start), at(lo), at(hi), at(y), shape)
        same(y, np.where((lo <= r) & (r < hi), t, dtype.type(-np.inf)))


def count_up(first, y, shape):
    store(counted(shape, number(shape, first)), y, bytes_of(shape))
    return 0


@both
@tiles
def test_lanes_are_counted_in_every_register(rows, vecs, dtype):
    shape = shape_of(dtype, rows, vecs)
    first, y = np.array([-3], dtype), np.empty((rows * vecs, shape.lanes), dtype)
    call(count_up, at(first), at(y), shape)
    npt.assert_array_equal(y, np.tile(np.arange(shape.lanes) - 3, (rows * vecs, 1)))


# ---- lanewise, rows ----------------------------------------------------------------------------------------------------
fma = lanewise(lambda x, y, z: x.fma(y, z))
divide = lanewise(lambda x, y: x / y)
size = lanewise(lambda x: x.magnitude())
signed = lanewise(lambda x, y: x.magnitude().with_sign_of(y))
below = lanewise(lambda x, y: x.like(1.0).where(x < y, 0.0))
above = lanewise(lambda x, y: x.like(1.0).where(x > y, 0.0))
equal = lanewise(lambda x, y: x.like(1.0).where(x.equals(y), 0.0))
other = lanewise(lambda x, y: x.like(1.0).where(x.differs(y), 0.0))
not_below = lanewise(lambda x, y: x.like(1.0).where(x.not_less(y), 0.0))
any_inf = any_lane(lambda x: x.equals(INF))


def lanes(x, y, out, shape):
    W = vecs_of(shape) * lanes_of(shape) * size_of(shape)
    a, b, step = load(shape, x, W), load(shape, y, W), rows_of(shape) * W
    store(add(a, b), out, W)
    store(subtract(a, b), out + step, W)
    store(multiply(a, b), out + 2 * step, W)
    store(divide(a, b), out + 3 * step, W)
    store(maximum(a, b), out + 4 * step, W)
    store(size(a), out + 5 * step, W)
    store(signed(a, b), out + 6 * step, W)
    store(below(a, b), out + 7 * step, W)
    store(above(a, b), out + 8 * step, W)
    store(equal(a, b), out + 9 * step, W)
    store(other(a, b), out + 10 * step, W)
    store(not_below(a, b), out + 11 * step, W)
    return any_inf(a)


@both
@tiles
def test_lanewise(rows, vecs, dtype):
    shape = shape_of(dtype, rows, vecs)
    for seed in range(10):
        x, y = (specials(2 * seed + i, (rows, width(shape)), dtype) for i in range(2))
        out = np.empty((12, rows, width(shape)), dtype)
        assert call(lanes, at(x), at(y), at(out), shape) == bool(np.isposinf(x).any())
        with np.errstate(all="ignore"):
            nan = np.isnan(x) | np.isnan(y)
            wanted = [x + y, x - y, x * y, x / y, np.where(x > y, x, y), np.abs(x), np.copysign(x, y), x < y, x > y, x == y,
                      nan | (x != y), nan | (x >= y)]
        for found, want in zip(out, wanted, strict=True):
            # The sign of a NaN says nothing, so signs are compared elsewhere.
            same(found, want.astype(dtype))


def fused(x, y, z, out, shape):
    store(fma(load(shape, x, 0), load(shape, y, 0), load(shape, z, 0)), out, 0)
    return 0


@both
def test_fma(dtype):
    shape = shape_of(dtype)
    x, y, z = (integers(i, shape.lanes, dtype) for i in range(3))
    out = np.empty(shape.lanes, dtype)
    call(fused, at(x), at(y), at(z), at(out), shape)
    npt.assert_array_equal(out, x * y + z)


def folds(row, t, out, shape):
    W = vecs_of(shape) * lanes_of(shape) * size_of(shape)
    tile, first = load(shape, t, W), load(row_of(shape), row, W)
    store(rowsum(first, tile), out, W)
    store(rowmax(first, tile), out + W, W)
    return 0


@both
@tiles
def test_rows_fold_from_first_to_last(rows, vecs, dtype):
    shape = shape_of(dtype, rows, vecs)
    row, t = specials(0, width(shape), dtype), specials(1, (rows, width(shape)), dtype)
    out = np.empty((2, width(shape)), dtype)
    call(folds, at(row), at(t), at(out), shape)
    total, top = row.copy(), row.copy()
    with np.errstate(all="ignore"):
        for x in t:
            total, top = total + x, np.where(x > top, x, top)       # a NaN in t leaves the largest as it is
    same(out[0], total)
    same(out[1], top)
    rng = np.random.default_rng(0)
    row, t = rng.standard_normal(width(shape)).astype(dtype), rng.standard_normal((rows, width(shape))).astype(dtype)
    call(folds, at(row), at(t), at(out), shape)
    for x in t:
        row = row + x                                               # this very order: the bits depend on it
    npt.assert_array_equal(out[0], row)


def fold_lanes(t, out, shape):
    tile = load(shape, t, bytes_of(shape))
    store(sum_across(tile), out, 0)
    store(max_across(tile), out + bytes_of(shape), 0)
    return 0


@both
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16])
def test_lanes_of_every_row_are_folded(rows, dtype):
    shape = shape_of(dtype, min(rows, shape_of(dtype).lanes))
    t, out = integers(8, (shape.rows, shape.lanes), dtype), np.empty((2, shape.lanes), dtype)
    call(fold_lanes, at(t), at(out), shape)
    again = np.resize(np.arange(shape.rows), shape.lanes)           # rows come again where there are more lanes
    npt.assert_array_equal(out[0], t.sum(1)[again])
    npt.assert_array_equal(out[1], t.max(1)[again])


def less_row(t, row, out, shape):
    W = vecs_of(shape) * lanes_of(shape) * size_of(shape)
    store(subtract(load(shape, t, W), load(row_of(shape), row, 0)), out, W)
    return 0


@both
@tiles
def test_one_row_stands_for_every_row(rows, vecs, dtype):
    shape = shape_of(dtype, rows, vecs)
    t, row = integers(0, (rows, width(shape)), dtype), integers(1, width(shape), dtype)
    out = np.empty_like(t)
    call(less_row, at(t), at(row), at(out), shape)
    npt.assert_array_equal(out, t - row)


def turn(x, y, shape):
    square = square_of(shape)
    store(transpose(load(square, x, lanes_of(shape) * size_of(shape))), y, lanes_of(shape) * size_of(shape))
    return rows_of(square) + 1000 * vecs_of(square)


@both
def test_transpose(dtype):
    shape = shape_of(dtype, 2, 2)
    x = np.arange(shape.lanes**2, dtype=dtype).reshape(shape.lanes, shape.lanes)
    y = np.empty_like(x)
    assert call(turn, at(x), at(y), shape) == shape.lanes + 1000
    npt.assert_array_equal(y, x.T)


def swap(x, y, row, shape):
    store(swap_neighbours(load(shape, x, row)), y, row)
    return 0


@both
@tiles
def test_neighbours_swapped(rows, vecs, dtype):
    shape = shape_of(dtype, rows, vecs)
    x = specials(0, (rows, width(shape)), dtype)
    y = np.empty_like(x)
    call(swap, at(x), at(y), x.strides[0], shape)
    same(y, x.reshape(-1, 2)[:, ::-1].reshape(x.shape))


# ---- scalars, shapes ---------------------------------------------------------------------------------------------------
def scalars(x, words, bytes_, shape):
    put_number(shape, x + size_of(shape), number(shape, x))
    put_word(words + 8, word(words) + 1)
    return 1_000_000 * arrive(words + 16) + 1000 * take(words) + byte(bytes_)


@both
def test_scalars(dtype):
    x, words, bytes_ = np.array([1.5, 0, 2], dtype), np.array([41, 0, 7]), np.array([250], np.uint8)
    assert call(scalars, at(x), at(words), at(bytes_), shape_of(dtype)) == 7_041_250
    npt.assert_array_equal(x, [1.5, 1.5, 2])
    npt.assert_array_equal(words, [42, 42, 8])


def ladder(shape, words, first, step):
    fetch(shape, 0, 1 << 40)                    # no address is a fault
    fetch_far(shape, 0, 1 << 40)
    fetch_to_write(shape, 0, 1 << 40)
    put_ladder(words + 8, first, step)
    return 0


def test_a_ladder_is_as_long_as_a_register():
    rungs = vec.WORDS
    for first, step in ((5, 3), (2**40, -(2**33)), (-1, 0)):
        words = np.full(rungs + 2, 7)
        call(ladder, shape_of(F32, 2, 1), at(words), first, step)
        npt.assert_array_equal(words, [7, *(first + i * step for i in range(rungs)), 7])


def shapes(shape):
    return (rows_of(row_of(shape)) + 10 * vecs_of(row_of(shape)) + 100 * rows_of(lane_of(shape))
            + 1000 * vecs_of(lane_of(shape)) + 1_000_000 * size_of(double_of(shape)) + 10_000 * rows_of(column_of(shape)) + 100_000 * vecs_of(column_of(shape)))


def test_shapes_of_shapes():
    assert call(shapes, shape_of(F32, 4, 3)) == 1 + 30 + 100 + 1000 + 80_000 + 100_000 + 8_000_000


def test_no_operation_is_left_out():
    operations = {name for name, x in vars(vec).items() if isinstance(x, type(add))}
    assert len(operations) > 30
    assert operations <= set(globals())
