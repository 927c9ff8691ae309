"""Small entry points of a test's own: a function of addresses, numbers and shapes, compiled and called as the kernels are."""

import ctypes

from numba import types

from fastattn.jit import native


def call(function, *arguments):
    """function(*arguments) compiled: integers are int64, Numba types (shapes) are passed as types alone."""
    kinds = tuple(x if isinstance(x, types.Type) else types.int64 for x in arguments)
    c_kinds = [ctypes.c_void_p if isinstance(x, types.Type) else ctypes.c_int64 for x in arguments]
    entry = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *c_kinds)(native(function, kinds))
    result, unused = ctypes.c_int64(), ctypes.c_void_p()
    entry(ctypes.addressof(result), ctypes.addressof(unused),
          *(None if isinstance(x, types.Type) else x for x in arguments))
    return result.value
