"""The floating-point state of a thread, and how it is kept out of results.

Rounding mode and flush-to-zero belong to a thread and are inherited when one starts; libraries linked with -ffast-math set
them unasked. With them the bits of a result would depend on which thread took a tile. So kernels are called through
`guarded`, which sets the default state, calls, and gives the caller its own state back, on x86 with its exception flags, so
that NumPy warns of nothing that happened here.

The kernel is called through its address: LLVM sees no link between the state and arithmetic, and would move inlined
arithmetic across the change. What NumPy computes for us is put between two calls, `default_state`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import native
from .machine import TARGET

# All exceptions masked, round to nearest, subnormals kept: MXCSR, and FPCR, where that is 0.
DEFAULT = 0x1F80 if TARGET.is_x86 else 0

I8, I32, I64 = (ir.IntType(bits) for bits in (8, 32, 64))


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic
def state(typingctx):
    """The control register of this thread."""
    def codegen(context, builder, signature, args):
        if TARGET.is_x86:
            slot = cgutils.alloca_once(builder, I32)
            _call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), builder.bitcast(slot, I8.as_pointer()))
            return builder.zext(builder.load(slot), I64)
        if TARGET.is_arm64:
            return _call(builder, "llvm.aarch64.get.fpcr", I64)
        return I64(0)

    return types.int64(), codegen


@intrinsic
def set_state(typingctx, value):
    """Set the control register of this thread."""
    def codegen(context, builder, signature, args):
        if TARGET.is_x86:
            slot = cgutils.alloca_once(builder, I32)
            builder.store(builder.trunc(args[0], I32), slot)
            _call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), builder.bitcast(slot, I8.as_pointer()))
        elif TARGET.is_arm64:
            _call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# full, wide, last, tail, cap, extra of passes/forward.py: only their types matter, and no value is read. All are passed as null
# pointers, int64 ones too: x86-64 and AArch64 pass both alike. A pass with fewer of them does not look at the others.
MARKERS = 6


@intrinsic
def call(typingctx, address, job, work, budget):
    """What the entry point at an address (`jit.native`) returns."""
    def codegen(context, builder, signature, args):
        address, *numbers = args
        pointer = I8.as_pointer()
        kind = ir.FunctionType(I32, [I64.as_pointer(), pointer.as_pointer(), I64, I64, I64] + [pointer] * MARKERS)
        result = cgutils.alloca_once_value(builder, I64(0))
        unused = cgutils.alloca_once_value(builder, ir.Constant(pointer, None))
        entry = builder.inttoptr(address, kind.as_pointer())
        builder.call(entry, [result, unused, *numbers] + [ir.Constant(pointer, None)] * MARKERS)
        return builder.load(result)

    return types.int64(address, job, work, budget), codegen


def guarded(job, work):
    """The pass that a job names (tiles/job.py), in the default floating-point state."""
    before = state()
    set_state(DEFAULT)
    done = call(job.entry, job, work, job.budget)
    set_state(before)
    return done


def swapped(value):
    """Set this thread's state; gives the one before."""
    before = state()
    set_state(value)
    return before


@functools.cache
def swapped_state() -> Callable[[int], int]:
    """`swapped`, compiled."""
    entry = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(native(swapped, (types.int64,)))

    def swap(value: int) -> int:
        before = ctypes.c_int64()
        entry(ctypes.addressof(before), None, value)
        return before.value

    return swap


@contextlib.contextmanager
def default_state() -> Iterator[None]:
    """What the block computes, it computes in the default floating-point state; afterwards this thread's is what it was."""
    swap = swapped_state()
    before = swap(DEFAULT)
    try:
        yield
    finally:
        swap(before)
