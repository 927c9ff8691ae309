"""A block of vector registers as a Numba value, and the table of what can be done with it.

`Tile(scalar, rows, vecs)` is a Numba type: rows x vecs registers, each of as many lanes as the target's vectors have. Its
LLVM data model is an array of vectors, which LLVM splits into registers, so a kernel that is a plain Python loop over
tiles runs at the machine's peak:

    t = zeros(shape)                        # 4 keys x 64 queries: 16 registers
    for _ in range(D):
        t = rank1(t, k, k_row, qt)          # t[r, :] += k[r] * qt[:]
        k += 4; qt += 256

A tile's shape is a type too: `Shape(scalar, rows, vecs)` has no value, it only tells `zeros`, `load` ... what to make.
Addresses and row distances are int64 and in bytes. Loads and stores ask for no alignment beyond one element.

    make       zeros(shape)  fill(shape, x)  numbered(shape, first): row r is first + r
    memory     load(shape, at, row)  store(t, at, row)  load_part, store_part: of each row's last vector only `count` elements
               load_table(shape, table, offset, count)  store_table(t, table, offset, count): row r at table[r] + offset
               load_mask_table: from bytes, 0 where seen, -inf where not  load_offsets: int64 less a number, as numbers
               fetch(shape, at, row), fetch_far, fetch_to_write: a cache line of each row, which need not be readable
    products   rank1(t, column, column_row, row)  rank1_part: as load_part  scale_rows(t, column, column_row)  scaled(t, x)
    lanewise   add  subtract  multiply  maximum     lanewise(f) makes more; a tile of one row stands for all rows
    rows       rowsum(row, t)  rowmax(row, t): fold t's rows into a row; down(f) makes more
    choice     any_lane(f): does f hold in any lane
    shuffles   transpose(t): rows = lanes, one vector each  swap_neighbours(t): lanes 0 and 1, 2 and 3 ...
    scalars    number  put_number  word  put_word  byte  put_ladder  take (atomic)
    shapes     rows_of  vecs_of  lanes_of  size_of  bytes_of (of a row)
               row_of  lane_of  column_of (8 rows)  square_of  double_of;
               derived(f) makes more

NaN: `maximum(x, y)` gives y where either is NaN. -0.0 counts as 0.0 in comparisons, as in IEEE 754.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.extending import intrinsic, models, register_model

from ..machine import TARGET

I8, I32, I64 = (ir.IntType(bits) for bits in (8, 32, 64))
FLOATS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
INF = float("inf")
WORDS = TARGET.vector_bytes // 8                # int64 in a register


def size(scalar: types.Type) -> int:
    """Bytes of one element."""
    return scalar.bitwidth // 8


@functools.cache
def lanes(scalar: types.Type) -> int:
    """Elements of one register."""
    return TARGET.vector_bytes // size(scalar)


class Shape(types.Type):
    """What a tile is made of, as a type without a value."""

    def __init__(self, scalar: types.Type, rows: int, vecs: int) -> None:
        self.scalar, self.rows, self.vecs = scalar, rows, vecs
        super().__init__(name=f"{type(self).__name__}({scalar}, {rows}, {vecs})")

    @property
    def lanes(self) -> int:
        return lanes(self.scalar)

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return size(self.scalar)

    @property
    def bytes(self) -> int:
        """Bytes of one row."""
        return TARGET.vector_bytes * self.vecs

    @property
    def vector(self) -> ir.VectorType:
        return ir.VectorType(FLOATS[self.scalar], self.lanes)


class Tile(Shape):
    """A block of registers: `rows` rows of `vecs` vectors."""


register_model(Shape)(models.OpaqueModel)


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, dmm, tile):
        super().__init__(dmm, tile, ir.ArrayType(tile.vector, tile.rows * tile.vecs))


# ---- one register while code is generated ----------------------------------------------------------------------------
class Lanes:
    """One vector, with the operators of arithmetic: what a lane function is written in."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def like(self, x: float | Lanes) -> Lanes:
        """A number in every lane."""
        if isinstance(x, Lanes):
            return x
        return Lanes(self.builder, ir.Constant(self.value.type, [x] * self.value.type.count))

    def __add__(self, y):
        return Lanes(self.builder, self.builder.fadd(self.value, self.like(y).value))

    def __sub__(self, y):
        return Lanes(self.builder, self.builder.fsub(self.value, self.like(y).value))

    def __mul__(self, y):
        return Lanes(self.builder, self.builder.fmul(self.value, self.like(y).value))

    def __truediv__(self, y):
        return Lanes(self.builder, self.builder.fdiv(self.value, self.like(y).value))

    def __gt__(self, y):
        return self.builder.fcmp_ordered(">", self.value, self.like(y).value)

    def __lt__(self, y):
        return self.builder.fcmp_ordered("<", self.value, self.like(y).value)

    def equals(self, y):
        return self.builder.fcmp_ordered("==", self.value, self.like(y).value)

    def differs(self, y):
        """True where x is not y, and where either is NaN."""
        return self.builder.fcmp_unordered("!=", self.value, self.like(y).value)

    def at_least(self, y):
        return self.builder.fcmp_ordered(">=", self.value, self.like(y).value)

    def not_less(self, y):
        """True where x >= y and where either is NaN."""
        return self.builder.fcmp_unordered(">=", self.value, self.like(y).value)

    def broken(self):
        """True where x is NaN or inf: there 0 x is NaN."""
        return (self * 0.0).differs(0.0)

    def fma(self, y, z):
        """x y + z, rounded once where the target has such an instruction."""
        x, y, z = self.value, self.like(y).value, self.like(z).value
        # Without it LLVM would call C's fmaf for every lane.
        if not TARGET.has_fma:
            return Lanes(self.builder, self.builder.fadd(self.builder.fmul(x, y), z))
        name = f"llvm.fma.v{x.type.count}{_suffix(x.type.element)}"
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(x.type, [x.type] * 3), name)
        return Lanes(self.builder, self.builder.call(function, [x, y, z]))

    def where(self, condition, y):
        """x where the condition holds, else y."""
        return Lanes(self.builder, self.builder.select(condition, self.value, self.like(y).value))

    def magnitude(self):
        bits = self.bits()
        keep = (1 << (bits.type.element.width - 1)) - 1
        return self.from_bits(self.builder.and_(bits, ir.Constant(bits.type, [keep] * bits.type.count)))

    def with_sign_of(self, y):
        """x >= 0 with the sign of y."""
        bits = y.bits()
        sign = ir.Constant(bits.type, [-(1 << (bits.type.element.width - 1))] * bits.type.count)
        return self.from_bits(self.builder.or_(self.bits(), self.builder.and_(bits, sign)))

    def bits(self) -> ir.Value:
        width = 32 if self.value.type.element == FLOATS[types.float32] else 64
        return self.builder.bitcast(self.value, ir.VectorType(ir.IntType(width), self.value.type.count))

    def from_bits(self, bits: ir.Value) -> Lanes:
        return Lanes(self.builder, self.builder.bitcast(bits, self.value.type))


def splat(builder: ir.IRBuilder, vector: ir.VectorType, scalar: ir.Value) -> Lanes:
    """A scalar in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, I32(0))
    zeros_ = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
    return Lanes(builder, builder.shuffle_vector(first, undefined, zeros_))


def maximum_of(x: Lanes, y: Lanes) -> Lanes:
    """The larger; y where either is NaN. One vmaxps; llvm.maxnum would take three instructions."""
    return x.where(x > y, y)


# ---- tiles while code is generated -------------------------------------------------------------------------------------
def _unpack(builder, shape, value) -> list[Lanes]:
    return [Lanes(builder, builder.extract_value(value, i)) for i in range(shape.rows * shape.vecs)]


def _pack(builder, shape, vectors) -> ir.Value:
    value = ir.Constant(ir.ArrayType(shape.vector, shape.rows * shape.vecs), ir.Undefined)
    for i, x in enumerate(vectors):
        value = builder.insert_value(value, x.value, i)
    return value


def _tile(shape) -> Tile:
    return Tile(shape.scalar, shape.rows, shape.vecs)


def _row_of(tile) -> Tile:
    return Tile(tile.scalar, 1, tile.vecs)


def _pointer(builder, address, type_):
    return builder.inttoptr(address, type_.as_pointer())


def _at(builder, shape, address, row_bytes, row, vec):
    """A pointer to vector `vec` of row `row`."""
    offset = builder.add(builder.mul(row_bytes, I64(row)), I64(TARGET.vector_bytes * vec))
    return _pointer(builder, builder.add(address, offset), shape.vector)


def _first(builder, shape, count):
    """A mask of the first `count` lanes, compared in integers as wide as the lanes: AVX2 masks with just these."""
    width = ir.IntType(shape.scalar.bitwidth)
    count = builder.select(builder.icmp_signed("<", count, I64(shape.lanes)), count, I64(shape.lanes))
    index = ir.VectorType(width, shape.lanes)
    limit = splat(builder, index, count if width == I64 else builder.trunc(count, width)).value
    return builder.icmp_signed("<", ir.Constant(index, list(range(shape.lanes))), limit)


def _masked_load(builder, pointer, vector, mask, align):
    name = f"llvm.masked.load.v{vector.count}{_suffix(vector.element)}.p0"
    kind = ir.FunctionType(vector, [vector.as_pointer(), I32, mask.type, vector])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [pointer, I32(align), mask, ir.Constant(vector, None)])


def _masked_store(builder, value, pointer, mask, align):
    name = f"llvm.masked.store.v{value.type.count}{_suffix(value.type.element)}.p0"
    kind = ir.FunctionType(ir.VoidType(), [value.type, value.type.as_pointer(), I32, mask.type])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [value, pointer, I32(align), mask])


def _suffix(element) -> str:
    return {"float": "f32", "double": "f64"}.get(str(element), str(element))


# ---- make, load, store -------------------------------------------------------------------------------------------------
@intrinsic
def zeros(typingctx, shape):
    tile = _tile(shape)

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(shape), codegen


@intrinsic
def fill(typingctx, shape, x):
    """Every element x."""
    tile = _tile(shape)

    def codegen(context, builder, signature, args):
        return _pack(builder, tile, [splat(builder, tile.vector, args[1])] * (tile.rows * tile.vecs))

    return tile(shape, tile.scalar), codegen


@intrinsic
def load(typingctx, shape, address, row_bytes):
    tile = _tile(shape)

    def codegen(context, builder, signature, args):
        places = [(r, j) for r in range(tile.rows) for j in range(tile.vecs)]
        loads = [builder.load(_at(builder, tile, args[1], args[2], r, j), align=size(tile.scalar)) for r, j in places]
        return _pack(builder, tile, [Lanes(builder, x) for x in loads])

    return tile(shape, types.int64, types.int64), codegen


@intrinsic
def store(typingctx, tile, address, row_bytes):
    def codegen(context, builder, signature, args):
        for i, x in enumerate(_unpack(builder, tile, args[0])):
            at = _at(builder, tile, args[1], args[2], *divmod(i, tile.vecs))
            builder.store(x.value, at, align=size(tile.scalar))
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), codegen


@intrinsic
def load_part(typingctx, shape, address, row_bytes, count):
    """As `load`, but of each row's last vector only the first `count` elements; the others are 0."""
    tile = _tile(shape)

    def codegen(context, builder, signature, args):
        _, address, row_bytes, count = args
        mask, loaded = _first(builder, tile, count), []
        for r in range(tile.rows):
            for j in range(tile.vecs):
                at = _at(builder, tile, address, row_bytes, r, j)
                whole = j < tile.vecs - 1
                loaded.append(builder.load(at, align=size(tile.scalar)) if whole
                              else _masked_load(builder, at, tile.vector, mask, size(tile.scalar)))
        return _pack(builder, tile, [Lanes(builder, x) for x in loaded])

    return tile(shape, types.int64, types.int64, types.int64), codegen


@intrinsic
def store_part(typingctx, tile, address, row_bytes, count):
    """As `store`, but of each row's last vector only the first `count` elements."""
    def codegen(context, builder, signature, args):
        value, address, row_bytes, count = args
        mask = _first(builder, tile, count)
        for i, x in enumerate(_unpack(builder, tile, value)):
            at = _at(builder, tile, address, row_bytes, *divmod(i, tile.vecs))
            if i % tile.vecs < tile.vecs - 1:
                builder.store(x.value, at, align=size(tile.scalar))
            else:
                _masked_store(builder, x.value, at, mask, size(tile.scalar))
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64, types.int64), codegen


@intrinsic
def load_table(typingctx, shape, table, offset, count):
    """Rows of one vector: row r at table[r] + offset, its first `count` elements; the others are 0."""
    tile = _tile(shape)

    def codegen(context, builder, signature, args):
        _, table, offset, count = args
        mask, loaded = _first(builder, tile, count), []
        for r in range(tile.rows):
            row = builder.load(_pointer(builder, builder.add(table, I64(8 * r)), I64))
            at = _pointer(builder, builder.add(row, offset), tile.vector)
            loaded.append(Lanes(builder, _masked_load(builder, at, tile.vector, mask, size(tile.scalar))))
        return _pack(builder, tile, loaded)

    return tile(shape, types.int64, types.int64, types.int64), codegen


@intrinsic
def store_table(typingctx, tile, table, offset, count):
    """Row r to table[r] + offset; of its last vector only the first `count` elements (None: all)."""
    def codegen(context, builder, signature, args):
        value, table, offset, count = args
        mask = None if signature.args[3] is types.none else _first(builder, tile, count)
        for i, x in enumerate(_unpack(builder, tile, value)):
            r, j = divmod(i, tile.vecs)
            row = builder.load(_pointer(builder, builder.add(table, I64(8 * r)), I64))
            at = _at(builder, tile, builder.add(row, offset), I64(0), 0, j)
            if mask is None or j < tile.vecs - 1:
                builder.store(x.value, at, align=size(tile.scalar))
            else:
                _masked_store(builder, x.value, at, mask, size(tile.scalar))
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64, count), codegen


@intrinsic
def load_mask_table(typingctx, shape, table, offset, count):
    """As `load_table`, from bytes: 0 where a byte is not 0, -inf where it is; -inf past `count`."""
    tile = _tile(shape)
    row_of_bytes = ir.VectorType(I8, tile.lanes)

    def codegen(context, builder, signature, args):
        _, table, offset, count = args
        mask, loaded = _first(builder, tile, count), []
        seen = Lanes(builder, ir.Constant(tile.vector, [0.0] * tile.lanes))
        for r in range(tile.rows):
            row = builder.load(_pointer(builder, builder.add(table, I64(8 * r)), I64))
            at = _pointer(builder, builder.add(row, offset), row_of_bytes)
            byte = _masked_load(builder, at, row_of_bytes, mask, 1)
            loaded.append(seen.where(builder.icmp_unsigned("!=", byte, ir.Constant(row_of_bytes, None)), -INF))
        return _pack(builder, tile, loaded)

    return tile(shape, types.int64, types.int64, types.int64), codegen


@intrinsic
def load_offsets(typingctx, shape, table, minus, least, most):
    """The int64 numbers at `table`, one for each lane, less `minus`, held between `least` and `most`, as a row of numbers."""
    tile = _tile(shape)
    words = ir.VectorType(I64, tile.lanes)

    def codegen(context, builder, signature, args):
        _, table, minus, *limits = args
        minus, least, most = (splat(builder, words, x).value for x in (minus, *limits))
        x = builder.sub(builder.load(_pointer(builder, table, words), align=8), minus)
        x = builder.select(builder.icmp_signed("<", x, least), least, x)
        x = builder.select(builder.icmp_signed(">", x, most), most, x)
        return _pack(builder, tile, [Lanes(builder, builder.sitofp(x, tile.vector))])

    return tile(shape, *[types.int64] * 4), codegen


def _fetch(write: int, nearness: int) -> Callable:
    @intrinsic
    def ask(typingctx, shape, address, row_bytes):
        def codegen(context, builder, signature, args):
            kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            data = I32(1)
            for r in range(shape.rows):
                at = builder.add(args[1], builder.mul(args[2], I64(r)))
                builder.call(function, [_pointer(builder, at, I8), I32(write), I32(nearness), data])
            return context.get_dummy_value()

        return types.void(shape, types.int64, types.int64), codegen

    return ask


# Ask for a cache line of each of the shape's rows, to read, to read later (into L2 alone) or to write. An address that nobody
# may touch is no fault.
fetch, fetch_far, fetch_to_write = _fetch(0, 3), _fetch(0, 2), _fetch(1, 3)


# ---- products ----------------------------------------------------------------------------------------------------------
def _rank1(builder, tile, value, column, column_row, row_vectors):
    scalar = FLOATS[tile.scalar]
    products = _unpack(builder, tile, value)
    for r in range(tile.rows):
        at = _pointer(builder, builder.add(column, builder.mul(column_row, I64(r))), scalar)
        x = splat(builder, tile.vector, builder.load(at, align=size(tile.scalar)))
        for j, y in enumerate(row_vectors):
            products[r * tile.vecs + j] = x.fma(y, products[r * tile.vecs + j])
    return _pack(builder, tile, products)


@intrinsic
def rank1(typingctx, tile, column, column_row, row):
    """t[r, :] += column[r] row[:], column[r] read at column + r column_row."""
    def codegen(context, builder, signature, args):
        value, column, column_row, row = args
        vectors = [Lanes(builder, builder.load(_at(builder, tile, row, I64(0), 0, j), align=size(tile.scalar)))
                   for j in range(tile.vecs)]
        return _rank1(builder, tile, value, column, column_row, vectors)

    return tile(tile, types.int64, types.int64, types.int64), codegen


@intrinsic
def rank1_part(typingctx, tile, column, column_row, row, count):
    """As `rank1`, but of row's last vector only the first `count` elements are read."""
    def codegen(context, builder, signature, args):
        value, column, column_row, row, count = args
        vectors = [Lanes(builder, builder.load(_at(builder, tile, row, I64(0), 0, j), align=size(tile.scalar)))
                   for j in range(tile.vecs - 1)]
        at = _at(builder, tile, row, I64(0), 0, tile.vecs - 1)
        last = _masked_load(builder, at, tile.vector, _first(builder, tile, count), size(tile.scalar))
        return _rank1(builder, tile, value, column, column_row, [*vectors, Lanes(builder, last)])

    return tile(tile, types.int64, types.int64, types.int64, types.int64), codegen


def _dot(builder, tile, value, k, rows):
    """t[r, :] += the sum over vectors of k's times those of a row: k[0] rows[r][0] + ... lane by lane."""
    sums = _unpack(builder, tile, value)
    for j, x in enumerate(k):
        for r, row in enumerate(rows):
            sums[r] = x.fma(row[j], sums[r])
    return _pack(builder, tile, sums)


@intrinsic
def dot(typingctx, tile, shape, x, y, y_row):
    """t[r, :] += x[0] y[r, 0] + x[1] y[r, 1] + ..., lane by lane: `shape`'s vectors of x, and of as many rows of y as t has."""
    def codegen(context, builder, signature, args):
        value, _, x, y, y_row = args
        wide = Shape(tile.scalar, tile.rows, shape.vecs)
        vectors = [[Lanes(builder, builder.load(_at(builder, wide, at, step, r, j), align=size(tile.scalar)))
                    for j in range(shape.vecs)] for at, step, r in [(x, I64(0), 0), *((y, y_row, r) for r in range(tile.rows))]]
        return _dot(builder, tile, value, vectors[0], vectors[1:])

    return tile(tile, shape, types.int64, types.int64, types.int64), codegen


@intrinsic
def dot_part(typingctx, tile, x, y, y_row, count):
    """t[r, :] += x y[r], lane by lane, of one vector of x of which only the first `count` elements are read."""
    def codegen(context, builder, signature, args):
        value, x, y, y_row, count = args
        at = _at(builder, tile, x, I64(0), 0, 0)
        last = Lanes(builder, _masked_load(builder, at, tile.vector, _first(builder, tile, count), size(tile.scalar)))
        rows = [Lanes(builder, builder.load(_at(builder, tile, y, y_row, r, 0), align=size(tile.scalar)))
                for r in range(tile.rows)]
        return _dot(builder, tile, value, [last], [[row] for row in rows])

    return tile(tile, types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def scale_rows(typingctx, tile, column, column_row):
    """t[r, :] *= column[r]."""
    def codegen(context, builder, signature, args):
        value, column, column_row = args
        vectors = _unpack(builder, tile, value)
        for r in range(tile.rows):
            at = _pointer(builder, builder.add(column, builder.mul(column_row, I64(r))), FLOATS[tile.scalar])
            x = splat(builder, tile.vector, builder.load(at, align=size(tile.scalar)))
            for i in range(r * tile.vecs, (r + 1) * tile.vecs):
                vectors[i] = vectors[i] * x
        return _pack(builder, tile, vectors)

    return tile(tile, types.int64, types.int64), codegen


@intrinsic
def numbered(typingctx, shape, first):
    """Row r is first + r in every lane."""
    tile = _tile(shape)

    def codegen(context, builder, signature, args):
        first = args[1]
        rows = [splat(builder, tile.vector, builder.fadd(first, ir.Constant(first.type, r))) for r in range(tile.rows)]
        return _pack(builder, tile, [x for x in rows for _ in range(tile.vecs)])

    return tile(shape, tile.scalar), codegen


@intrinsic
def counted(typingctx, shape, first):
    """Lane i of every row is first + i."""
    tile = _tile(shape)

    def codegen(context, builder, signature, args):
        lane = Lanes(builder, ir.Constant(tile.vector, list(range(tile.lanes))))
        return _pack(builder, tile, [splat(builder, tile.vector, args[1]) + lane] * (tile.rows * tile.vecs))

    return tile(shape, tile.scalar), codegen


# ---- lane functions ----------------------------------------------------------------------------------------------------
def _over_tiles(generate: Callable[..., tuple], arguments: int) -> Callable:
    """An intrinsic of so many tiles. Numba counts its parameters, and *tiles would be one tuple to it."""
    typed = {
        1: lambda typingctx, x: generate(x),
        2: lambda typingctx, x, y: generate(x, y),
        3: lambda typingctx, x, y, z: generate(x, y, z),
        4: lambda typingctx, x, y, z, w: generate(x, y, z, w),
    }
    return intrinsic(typed[arguments])


def _arguments(operation: Callable) -> int:
    return len(inspect.signature(operation).parameters)


def lanewise(operation: Callable[..., Lanes]) -> Callable:
    """The operation for every register of as many tiles as it has arguments.

    They have the shape of the first, or one row of it, which then stands for every row.
    """
    def generate(*tiles):
        first = tiles[0]
        if any((x.scalar, x.vecs) != (first.scalar, first.vecs) or x.rows not in (1, first.rows) for x in tiles):
            raise errors.TypingError(f"lanewise: {', '.join(map(str, tiles))} are neither alike nor rows of the first")

        def codegen(context, builder, signature, args):
            vectors = [_unpack(builder, tile, value) for tile, value in zip(tiles, args, strict=True)]
            return _pack(builder, first, [operation(*(x[i % len(x)] for x in vectors)) for i in range(first.rows * first.vecs)])

        return first(*tiles), codegen

    return _over_tiles(generate, _arguments(operation))


def down(operation: Callable[[Lanes, Lanes], Lanes]) -> Callable:
    """Fold the rows of a tile, first to last, into one row: row = operation(row, t[r])."""
    def typed(typingctx, row, tile):
        def codegen(context, builder, signature, args):
            folded = _unpack(builder, row, args[0])
            for i, x in enumerate(_unpack(builder, tile, args[1])):
                folded[i % tile.vecs] = operation(folded[i % tile.vecs], x)
            return _pack(builder, row, folded)

        return row(row, tile), codegen

    return intrinsic(typed)


def across(operation: Callable[[Lanes, Lanes], Lanes]) -> Callable:
    """Fold the lanes of each row of a tile, rows of one vector, at most as many as lanes: lane r is row r's.

    A row alone is folded onto itself. Of two, the halves of one stand where the other's are done with: a blend, and one
    shuffle that moves lanes, for both.
    """
    def typed(typingctx, tile):
        row = Tile(tile.scalar, 1, 1)

        def codegen(context, builder, signature, args):
            n, vectors = tile.lanes, [x.value for x in _unpack(builder, tile, args[0])]

            def folded(x, y, order, moved):
                a, b = (builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, n), lanes_)) for lanes_ in (order, moved))
                return operation(Lanes(builder, a), Lanes(builder, b)).value

            half = n // 2
            while half:
                if len(vectors) > half:         # rows 0 ... and half ... : lanes below half of each period, and above
                    upper = [lane // half % 2 for lane in range(n)]
                    order = [lane + n * up for lane, up in enumerate(upper)]
                    moved = [lane + (n - half if up else half) for lane, up in enumerate(upper)]
                    vectors = [folded(x, y, order, moved) for x, y in zip(vectors[:half], vectors[half:])]
                else:
                    turned = [(lane + half) % n for lane in range(n)]
                    vectors = [folded(x, x, list(range(n)), turned) for x in vectors]
                half //= 2
            return _pack(builder, row, [Lanes(builder, vectors[0])])

        return row(tile), codegen

    return intrinsic(typed)


def any_lane(condition: Callable[..., ir.Value]) -> Callable:
    """Whether the condition holds in any lane of tiles of one shape."""
    def generate(*tiles):
        def codegen(context, builder, signature, args):
            vectors = [_unpack(builder, tiles[0], value) for value in args]
            hit, *others = [condition(*x) for x in zip(*vectors, strict=True)]
            for other in others:
                hit = builder.or_(hit, other)
            bits = ir.IntType(tiles[0].lanes)
            return builder.icmp_unsigned("!=", builder.bitcast(hit, bits), bits(0))

        return types.boolean(*tiles), codegen

    return _over_tiles(generate, _arguments(condition))


add = lanewise(lambda x, y: x + y)
subtract = lanewise(lambda x, y: x - y)
multiply = lanewise(lambda x, y: x * y)
maximum = lanewise(maximum_of)
rowsum = down(lambda row, x: row + x)
# x first: a NaN in x leaves the row as it is, and shows in the sum of weights instead.
rowmax = down(lambda row, x: maximum_of(x, row))
sum_across = across(lambda x, y: x + y)
max_across = across(maximum_of)


@intrinsic
def scaled(typingctx, tile, x):
    """t x, x a scalar."""
    def codegen(context, builder, signature, args):
        factor = splat(builder, tile.vector, args[1])
        return _pack(builder, tile, [y * factor for y in _unpack(builder, tile, args[0])])

    return tile(tile, tile.scalar), codegen


def _interleave(n: int, part: int, step: int, half: int) -> list[int]:
    """Within every `part` lanes of x and y, `step` of x and `step` of y in turn, from the low (0) or the high (1) half."""
    places = [c for c in range(half * part // 2, (half + 1) * part // 2)]
    runs = [places[i:i + step] for i in range(0, len(places), step)]
    inside = [c for run in runs for c in (*run, *(n + c for c in run))]
    return [first + c for first in range(0, n, part) for c in inside]


def _swap(n: int, step: int, half: int) -> list[int]:
    """The blocks off the diagonal of x and y, `step` lanes wide, swapped: what x (0) or y (1) is then."""
    keep, give = (lambda c: c, lambda c: n + (c ^ step)) if not half else (lambda c: n + c, lambda c: c ^ step)
    return [keep(c) if bool(c & step) == bool(half) else give(c) for c in range(n)]


@intrinsic
def transpose(typingctx, tile):
    """A tile of as many rows as lanes, one vector each, transposed: one shuffle for a row and round, log2(rows) rounds.

    Within 128 bits rows r and r + s are interleaved, s = 1, 2 ...: what instructions without an index register can do.
    That leaves the rows in bit-reversed order. Then blocks are swapped: rows r and r + s give their halves of 2 s lanes.
    """
    def codegen(context, builder, signature, args):
        n, part = tile.lanes, 16 // size(tile.scalar)
        rows = [x.value for x in _unpack(builder, tile, args[0])]
        step = 1
        while step < n:
            order = functools.partial(_interleave, n, part, step) if step < part else functools.partial(_swap, n, step)
            low, high = (ir.Constant(ir.VectorType(I32, n), order(half)) for half in (0, 1))
            for r in range(n):
                if not r & step:
                    x, y = rows[r], rows[r + step]
                    rows[r], rows[r + step] = builder.shuffle_vector(x, y, low), builder.shuffle_vector(x, y, high)
            step *= 2
            if step == part:
                bits = part.bit_length() - 1
                backwards = [sum((r >> i & 1) << (bits - 1 - i) for i in range(bits)) for r in range(part)]
                rows = [rows[r // part * part + backwards[r % part]] for r in range(n)]
        return _pack(builder, tile, [Lanes(builder, x) for x in rows])

    return tile(tile), codegen


@intrinsic
def swap_neighbours(typingctx, tile):
    """Lanes 0 and 1, 2 and 3 ... of each vector change places."""
    def codegen(context, builder, signature, args):
        order = ir.Constant(ir.VectorType(I32, tile.lanes), [c ^ 1 for c in range(tile.lanes)])
        vectors = [x.value for x in _unpack(builder, tile, args[0])]
        return _pack(builder, tile, [Lanes(builder, builder.shuffle_vector(x, x, order)) for x in vectors])

    return tile(tile), codegen


# ---- scalars in memory -------------------------------------------------------------------------------------------------
@intrinsic
def number(typingctx, shape, address):
    """The element at an address."""
    def codegen(context, builder, signature, args):
        return builder.load(_pointer(builder, args[1], FLOATS[shape.scalar]), align=size(shape.scalar))

    return shape.scalar(shape, types.int64), codegen


@intrinsic
def put_number(typingctx, shape, address, x):
    """Write one element."""
    def codegen(context, builder, signature, args):
        builder.store(args[2], _pointer(builder, args[1], FLOATS[shape.scalar]), align=size(shape.scalar))
        return context.get_dummy_value()

    return types.void(shape, types.int64, shape.scalar), codegen


@intrinsic
def word(typingctx, address):
    """The int64 at an address."""
    def codegen(context, builder, signature, args):
        return builder.load(_pointer(builder, args[0], I64))

    return types.int64(types.int64), codegen


@intrinsic
def byte(typingctx, address):
    """The byte at an address."""
    def codegen(context, builder, signature, args):
        return builder.zext(builder.load(_pointer(builder, args[0], I8)), I64)

    return types.int64(types.int64), codegen


@intrinsic
def put_word(typingctx, address, x):
    """Write one int64."""
    def codegen(context, builder, signature, args):
        builder.store(args[1], _pointer(builder, args[0], I64))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def put_ladder(typingctx, address, first, step):
    """Write first, first + step ...: as many int64 as a register holds."""
    def codegen(context, builder, signature, args):
        address, first, step = args
        words = ir.VectorType(I64, WORDS)
        numbers = builder.mul(splat(builder, words, step).value, ir.Constant(words, list(range(WORDS))))
        row = builder.add(splat(builder, words, first).value, numbers)
        builder.store(row, _pointer(builder, address, words), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def take(typingctx, address):
    """The int64 at an address, or a record's first field; one more afterwards; atomic."""
    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _pointer(builder, args[0], I64), I64(1), "monotonic")

    return types.int64(address), codegen


@intrinsic
def arrive(typingctx, address):
    """As `take`; what other threads wrote before they arrived is seen by whoever arrives later."""
    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _pointer(builder, args[0], I64), I64(1), "acq_rel")

    return types.int64(address), codegen


def _attribute(name: str):
    @intrinsic
    def attribute(typingctx, shape):
        def codegen(context, builder, signature, args):
            return I64(getattr(shape, name))

        return types.int64(shape), codegen

    return attribute


rows_of, vecs_of, lanes_of, size_of, bytes_of = (_attribute(name) for name in ("rows", "vecs", "lanes", "size", "bytes"))


# ---- shapes from shapes ------------------------------------------------------------------------------------------------
def derived(make: Callable[[Shape], Shape]) -> Callable:
    """A shape made of another, for kernels."""
    def typed(typingctx, shape):
        def codegen(context, builder, signature, args):
            return context.get_dummy_value()

        return make(shape)(shape), codegen

    return intrinsic(typed)


row_of = derived(lambda shape: Shape(shape.scalar, 1, shape.vecs))
double_of = derived(lambda shape: Shape(types.float64, 1, 1))
lane_of = derived(lambda shape: Shape(shape.scalar, 1, 1))
column_of = derived(lambda shape: Shape(shape.scalar, 8, 1))
square_of = derived(lambda shape: Shape(shape.scalar, shape.lanes, 1))
