"""What Python tells the kernels: named fields of eight bytes behind one address.

A `Record` is a list of names, each an int64 ("q") or a float64 ("d"). For Python it is a ctypes structure, `job.q_h = 512`
writes the field; in a kernel the record's address is a value of the type that belongs to it, and `job.q_h` reads it there.
One address instead of fifty arguments: a call costs 1 us less, and every thread reads the same record.
"""

from __future__ import annotations

import ctypes
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import models, register_model


class Record(types.Type):
    """The Numba type of a record, and `memory`, the ctypes structure that is one: JOB.memory(Sq=5), all else 0."""

    def __init__(self, name: str, fields: str) -> None:
        """`fields`: names, each followed by :d if it is a float64."""
        pairs = [field.partition(":") for field in fields.split()]
        self.kinds = {field: kind or "q" for field, _, kind in pairs}
        self.places = {field: 8 * i for i, field in enumerate(self.kinds)}
        numbers = {"q": ctypes.c_int64, "d": ctypes.c_double}
        fields_ = [(field, numbers[kind]) for field, kind in self.kinds.items()]
        # __slots__: a name that is no field raises. `keeps`: what must live as long. Fields wrap silently at 64 bits.
        self.memory: Any = type(name, (ctypes.Structure,), {"__slots__": ("keeps",), "_fields_": fields_})
        super().__init__(name=name)


@register_model(Record)
class _RecordModel(models.PrimitiveModel):
    def __init__(self, dmm, record):
        super().__init__(dmm, record, ir.IntType(64))


@infer_getattr
class _RecordAttributes(AttributeTemplate):
    key = Record

    def generic_resolve(self, record, name):
        return {"q": types.int64, "d": types.float64}.get(record.kinds.get(name))


@lower_getattr_generic(Record)
def _read_field(context, builder, record, address, name):
    kind = ir.IntType(64) if record.kinds[name] == "q" else ir.DoubleType()
    at = builder.add(address, ir.IntType(64)(record.places[name]))
    return builder.load(builder.inttoptr(at, kind.as_pointer()))
