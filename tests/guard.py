"""Guard pages: what reads or writes outside an array ends the process, or changes a byte that is looked at afterwards.

    ....  |  slack, A5 A5 A5 A5 | the array |  ....         "tail": a read past the end faults
    ....  |  the array | slack, A5 A5 A5 A5 |  ....         "head": a read before the beginning faults
    pages that nobody may touch on both sides; writes into the slack show in `untouched`

For processes of their own: a fault is signal 11.
"""

import ctypes
import mmap

import numpy as np

PAGE, SLACK = mmap.PAGESIZE, 0xA5
_NONE, _READ = 0, 1
_libc = ctypes.CDLL(None, use_errno=True)


def _protect(address, size, access):
    if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), access):
        raise OSError(ctypes.get_errno(), "mprotect")


def memory(size, where):
    """`size` bytes at the end ("tail") or the beginning ("head") of pages between pages that nobody may touch.

    Returns the bytes, the slack beside them and a function that makes both read-only. Bytes and slack keep the pages alive.
    """
    body = -(-max(size, 1) // PAGE) * PAGE
    mapping = mmap.mmap(-1, body + 2 * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    pages = np.frombuffer(mapping, np.uint8)[PAGE:PAGE + body]
    pages[:] = SLACK
    _protect(base, PAGE, _NONE)
    _protect(base + PAGE + body, PAGE, _NONE)
    start = body - size if where == "tail" else 0
    slack = pages[:start] if where == "tail" else pages[size:]
    return pages[start:start + size], slack, lambda: _protect(base + PAGE, body, _READ)


def guarded(x, where="tail", *, readonly=False):
    """A copy of x with x's strides and gaps, flush against a forbidden page; and whether all around it is untouched.

    readonly: a write, even to the array itself, faults too.
    """
    steps = [step * (n - 1) for step, n in zip(x.strides, x.shape, strict=True)] if x.size else []
    first, size = -sum(step for step in steps if step < 0), sum(map(abs, steps)) + x.itemsize * bool(x.size)
    raw, slack, freeze = memory(size, where)
    array = np.ndarray(x.shape, x.dtype, raw, first, x.strides if x.size else None)
    array[...] = x
    gap = np.ones(size, bool)                           # the bytes in between that are not the array's
    np.ndarray((*x.shape, x.itemsize), bool, gap, first, (*x.strides, 1) if x.size else None)[...] = False
    if readonly:
        freeze()
        array.flags.writeable = False

    def untouched():
        return bool((slack == SLACK).all() and (raw[gap] == SLACK).all())

    return array, untouched


class NumPy:
    """NumPy, but what a module allocates with it ends at a forbidden page: results, runs, scratch memory, numbers of heads."""

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=float):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return memory(size, "tail")[0].view(dtype).reshape(shape)

    def zeros(self, shape, dtype=float):
        x = self.empty(shape, dtype)
        x[...] = 0
        return x

    def ascontiguousarray(self, x, dtype=None):
        return guarded(np.ascontiguousarray(x, dtype))[0]
