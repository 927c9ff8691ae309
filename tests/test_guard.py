"""Nothing is read or written outside an array: random problems with every array flush against forbidden pages.

Each run is a process of its own, `python -m tests.test_guard <what> <where> <count> <seed>`, as a fault ends it.
"""

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import types

import fastattn
from fastattn import api, attention, attention_varlen, checks, masks, merge_states, rope, rotary
from fastattn.simd.vec import Shape, load, load_part, store, store_part
from fastattn.tiles import job
from tests.entry import call
from tests.guard import NumPy, guarded
from tests.problems import few_channels, many_channels, numbers, problem
from tests.test_isa import TARGETS, needs

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="mprotect")


def run(*arguments, **environment):
    return subprocess.run([sys.executable, "-W", "error", "-m", "tests.test_guard", *map(str, arguments)], cwd=ROOT,
                          env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.parametrize("what", ["forward", "varlen", "turning"])
@pytest.mark.parametrize("where", ["tail", "head"])
def test_nothing_outside_the_arrays_is_touched(what, where):
    count = {"forward": 5000, "varlen": 1000, "turning": 1000}[what]
    found = run(what, where, count, 0)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [str(count)]


@pytest.mark.nightly
@pytest.mark.parametrize("what", ["forward", "varlen", "turning"])
@pytest.mark.parametrize("where", ["tail", "head"])
@pytest.mark.parametrize("seed", range(1, 11))
def test_nothing_outside_the_arrays_is_touched_at_length(what, where, seed):
    found = run(what, where, 50_000, seed)
    assert found.returncode == 0, found.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("what", ["forward", "varlen", "turning"])
@pytest.mark.parametrize("where", ["tail", "head"])
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_outside_the_arrays_is_touched_with_any_instruction_set(what, where, target):
    variables, _ = TARGETS[target]
    needs(variables)
    found = run(what, where, 10_000, 0, **variables)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("what", ["load whole", "store whole"])
def test_a_kernel_that_goes_beyond_dies(what):
    # A part of a vector, touched as a whole: no comparison of results could find it.
    assert run("parts", "tail", 1, 0).returncode == 0
    died = run(what, "tail", 1, 0)
    assert died.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in died.stderr


def test_a_write_beside_an_array_is_seen():
    x, untouched = guarded(np.zeros(5, np.float32), "head")
    assert untouched()
    ctypes.c_float.from_address(x.ctypes.data + x.nbytes).value = 1
    assert not untouched()


def test_a_write_into_a_gap_is_seen():
    x, untouched = guarded(np.zeros((3, 6), np.float32)[:, 1:4])
    assert untouched()
    ctypes.c_float.from_address(x.ctypes.data + 12).value = 1          # behind the first row
    assert not untouched()


# ---- in the process of its own ---------------------------------------------------------------------------------------------
class Arrays:
    """Guarded copies, and whether anything beside them was touched."""

    def __init__(self, where):
        self.where, self.checks = where, []

    def __call__(self, x, readonly=True):
        if not isinstance(x, np.ndarray):
            return x
        array, untouched = guarded(x, self.where, readonly=readonly)
        self.checks.append(untouched)
        return array

    def untouched(self):
        return all(check() for check in self.checks)


def assert_same(found, wanted):
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(x, y)


def out_like(rng, o):
    """Rows with and without gaps."""
    wide = np.zeros((*o.shape[:-1], o.shape[-1] + int(rng.integers(0, 3))), o.dtype)
    return wide[..., :o.shape[-1]]


def forward(rng, where):
    p, here = problem(rng), Arrays(where)
    if rng.random() < 0.05:
        p.v = p.v[..., :0]
    options = {name: here(np.asarray(x)) if name in ("alibi", "sink") else here(x) for name, x in p.options.items()}
    wanted = p.run()
    out = here(out_like(rng, wanted[0]), readonly=False)
    assert_same(attention(here(p.q), here(p.k), here(p.v), out=out, return_lse=True, **options), wanted)
    assert here.untouched()
    assert_same(merge_states([here(out), here(out)], [here(wanted[1])] * 2), merge_states([out, out], [wanted[1]] * 2))


def varlen(rng, where):
    here, dtype = Arrays(where), np.dtype(rng.choice([np.float32, np.float64]))
    B, Hkv, group, D = int(rng.integers(0, 5)), *(int(n) for n in rng.integers(1, 4, 3))
    Dv = many_channels(dtype) if rng.random() < 0.2 else int(rng.choice(few_channels(dtype)))
    cu_q, cu_k = (np.cumsum(np.r_[0, rng.integers(0, 40, B)]) for _ in range(2))
    q = numbers(rng, (cu_q[-1] + int(rng.integers(0, 3)), Hkv * group, D), dtype)
    k, v = (numbers(rng, (cu_k[-1], Hkv, n), dtype) for n in (D, Dv))
    options = {"mask": [None, fastattn.causal, fastattn.window(3, 2), fastattn.prefix(4)][rng.integers(0, 4)]}
    if rng.random() < 0.3:
        options["sink"] = rng.standard_normal(Hkv * group)
    wanted = attention_varlen(q, k, v, cu_q, cu_k, return_lse=True, **options)
    out = here(out_like(rng, wanted[0]), readonly=False)
    found = attention_varlen(here(q), here(k), here(v), here(cu_q), here(cu_k), return_lse=True, out=out, **options)
    assert_same(found, wanted)
    assert here.untouched()


def turning(rng, where):
    here, dtype = Arrays(where), np.dtype(rng.choice([np.float32, np.float64]))
    D = int(rng.choice([*few_channels(dtype), many_channels(dtype)]))
    n, S = 2 * int(rng.integers(1, D // 2 + 1)) if D > 1 else 0, int(rng.integers(0, 40))
    x = numbers(rng, (int(rng.integers(1, 4)), int(rng.integers(1, 4)), S, D), dtype)
    turn = rope(channels=n, interleaved=bool(rng.integers(2))) if n else rope(scaling={"partial_rotary_factor": 0.5})
    at = [None, rng.integers(0, 99, S), rng.integers(0, 99, (len(x), S))][rng.integers(0, 3)]
    wanted = turn(x, at)
    rotary._table.cache_clear()                         # the next one ends at a forbidden page
    out = here(out_like(rng, x), readonly=False)
    assert_same([turn(here(x), here(at), out=out)], [wanted])
    out[...] = x
    assert_same([turn(out, here(at), out=out)], [wanted])
    assert here.untouched()


def copy_parts(x, y, count, row):
    store_part(load_part(row, x, 0, count), y, 0, count)
    return 0


def copy_loading_whole(x, y, count, row):
    store_part(load(row, x, 0), y, 0, count)
    return 0


def copy_storing_whole(x, y, count, row):
    store(load_part(row, x, 0, count), y, 0)
    return 0


def copies(rng, where, kernel):
    """Fewer numbers than a register has, from one guarded array to another."""
    row = Shape(types.float32, 1, 1)
    for count in range(1, row.lanes):
        x, y = (guarded(np.arange(n, n + count, dtype=np.float32), where)[0] for n in (1, 100))
        call(kernel, x.ctypes.data, y.ctypes.data, count, row)
        np.testing.assert_array_equal(x, y)


WHAT = {
    "forward": forward,
    "varlen": varlen,
    "turning": turning,
    "parts": lambda *a: copies(*a, copy_parts),
    "load whole": lambda *a: copies(*a, copy_loading_whole),
    "store whole": lambda *a: copies(*a, copy_storing_whole),
}


def main(what, where, count, seed):
    faulthandler.enable()
    rng = np.random.default_rng(int(seed))
    # What the library allocates is guarded too.
    for module in (api, checks, masks, job, rotary):
        module.np = NumPy()
    for _ in range(int(count)):
        WHAT[what](rng, where)
    return int(count)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))  # noqa: T201
