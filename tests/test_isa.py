"""Every instruction set: one source, right under whatever target Numba is told to compile for, and never an abort of LLVM.

What Numba compiles for is decided by variables when a process starts, so each target has a process of its own.
"""

import numpy as np
import pytest
from numba import types
from numba.core import codegen

import fastattn
from fastattn import attention, causal, lengths, window
from fastattn.jit import native
from fastattn.machine import TARGET
from fastattn.simd.math import exp2
from fastattn.simd.vec import Shape, load, store
from fastattn.tiles.job import address
from tests import test_math
from tests.bounds import exact, ratio
from tests.problems import F32, F64, L, Problem, W, many_channels, numbers, problem

HOST = set(codegen.get_host_cpu_features().split(","))
X86 = pytest.mark.skipif(not TARGET.is_x86, reason="variables for x86")

AVX2 = "+avx,+avx2,+fma"
AVX512 = AVX2 + ",+avx512f,+avx512dq,+avx512vl,+avx512bw,+avx512cd"

# What a variable says, and how many bytes a vector has then.
SSE2_TARGET = {"NUMBA_CPU_NAME": "generic"}, 16
AVX2_TARGET = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2}, 32
AVX512_TARGET = {"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": AVX512}, 64
TARGETS = {"SSE2": SSE2_TARGET, "AVX2": AVX2_TARGET, "AVX-512": AVX512_TARGET}

OTHERS = {
    "Zen 4": ({"NUMBA_CPU_NAME": "znver4", "NUMBA_CPU_FEATURES": AVX512}, 64),         # exp2 in another way
    "AVX switched off": ({"NUMBA_ENABLE_AVX": "0"}, 16),
    "AVX without FMA": ({"NUMBA_CPU_NAME": "sandybridge", "NUMBA_CPU_FEATURES": "+avx"}, 32),
    "half an AVX-512": ({"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": "+avx512f"}, 16),
    "no features": ({"NUMBA_CPU_FEATURES": ""}, 16),
    "a name without features": ({"NUMBA_CPU_NAME": "x86-64"}, None),
    "no JIT": ({"NUMBA_DISABLE_JIT": "1"}, None),
    "no optimisation": ({"NUMBA_OPT": "0"}, None),
    "bounds checks": ({"NUMBA_BOUNDSCHECK": "1"}, None),
    "debug information": ({"NUMBA_DEBUGINFO": "1"}, None),
    "other vectorisers": ({"NUMBA_SLP_VECTORIZE": "1", "NUMBA_LOOP_VECTORIZE": "0"}, None),
    "no place for Numba's cache": ({"NUMBA_CACHE_DIR": "/dev/null/cache"}, None),
    "no such threading layer": ({"NUMBA_THREADING_LAYER": "none"}, None),
}
PUSH = ("Zen 4", "AVX switched off", "half an AVX-512", "no JIT")


def needs(variables):
    wanted = {f for f in variables.get("NUMBA_CPU_FEATURES", "").split(",") if f}
    if wanted - HOST:
        pytest.skip(f"this machine has no {', '.join(sorted(wanted - HOST))}")


# ---- problems ----------------------------------------------------------------------------------------------------------
def around_the_edges(dtype, Dv, extra):
    """Problems with Sq and Sk on either side of each edge of a tile, of a vector and of a block."""
    rng = np.random.default_rng(0)
    tile, lane = W(dtype), L(dtype)
    sizes = [(1, 1), (lane - 1, 15), (lane + 1, 17), (tile, 64), (tile - 1, 65), (tile + 1, 63), (3, 129), (2 * tile + 1, 16),
             (7, 200), (2, 0)]
    for n, (Sq, Sk) in enumerate(sizes):
        D = (1, lane, lane + 1, 2 * lane - 1)[n % 4]
        Hkv, group = (1, 2, 1)[n % 3], (3, 1, 2)[n % 3]
        q = numbers(rng, (2, Hkv * group, Sq, D), dtype, 2)
        k, v = numbers(rng, (2, Hkv, Sk, D), dtype), numbers(rng, (2, Hkv, Sk, Dv), dtype)
        mask = (None, causal, window(5, 2), causal & lengths([Sk, Sk // 2]))[n % 4]
        options = {"mask": mask}
        if extra:
            bias = numbers(rng, (1, Hkv * group, Sq, Sk), dtype)
            bias[rng.random(bias.shape) < 0.2] = -np.inf
            options |= {"softcap": 3.0, "bias": bias, "alibi": rng.random(Hkv * group), "sink": rng.random(Hkv * group)}
        yield Problem(q, k, v, options)


def worst(problems):
    """The largest error over its bound, and how many problems there were."""
    ratios = []
    for p in problems:
        o, lse = p.run()
        ratios.append(ratio(o, lse, exact(p.q, p.k, p.v, **p.formula)))
    return max(ratios), len(ratios)


def suite(count):
    """Two variants around the edges; then `count` random problems of all sixteen."""
    rng = np.random.default_rng(1)
    found = [worst(around_the_edges(F32, many_channels(F32), True)), worst(around_the_edges(F64, 3, False))]
    if count:
        found.append(worst(problem(rng) for _ in range(count)))
    return {"worst": max(w for w, _ in found), "vector bytes": TARGET.vector_bytes}


def first_call():
    return {"worst": worst(around_the_edges(F32, 64, False))[0], "vector bytes": TARGET.vector_bytes}


def elementary():
    """exp2 and tanh keep to their figures."""
    test_math.test_exp2_float32()
    test_math.test_tanh_float32()
    return TARGET.has_fma


# ---- tests -------------------------------------------------------------------------------------------------------------
@X86
@pytest.mark.parametrize("count", [0, pytest.param(20_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("target", TARGETS)
def test_every_instruction_set_is_right(call, target, count):
    variables, vector_bytes = TARGETS[target]
    needs(variables)
    found = call(suite, count, limit=240 if count == 0 else 7200, **variables)
    assert found["worst"] <= 1
    assert found["vector bytes"] == vector_bytes


@X86
@pytest.mark.parametrize(("target", "fused"), [("SSE2", False), ("AVX2", True), ("AVX-512", True)])
def test_exp2_and_tanh_are_as_exact_as_stated(call, target, fused):
    variables, _ = TARGETS[target]
    needs(variables)
    assert call(elementary, **variables) == fused


@X86
@pytest.mark.parametrize("what", [*PUSH, *(pytest.param(w, marks=pytest.mark.nightly) for w in OTHERS if w not in PUSH)])
def test_import_and_first_call_are_right_whatever_numba_is_told(call, what):
    variables, vector_bytes = OTHERS[what]
    needs(variables)
    found = call(first_call, **variables)
    assert found["worst"] <= 1
    assert found["vector bytes"] == (vector_bytes or TARGET.vector_bytes)


@X86
@pytest.mark.nightly
def test_a_processor_that_llvm_does_not_know(run):
    ended = run(first_call, NUMBA_CPU_NAME="nonsense")
    assert ended.status == 0
    assert set(ended.complaint.splitlines()) <= {
        "'nonsense' is not a recognized processor for this target (ignoring processor)"}
    assert ended.value["worst"] <= 1


# ---- the control -------------------------------------------------------------------------------------------------------
def power(shape, at):
    store(exp2(load(shape, at, 0)), at, 0)
    return 0


def power_of_two(ungated):
    """exp2 alone; ungated: with the instructions of AVX-512, whatever the target."""
    import ctypes
    if ungated:
        TARGET.__dict__["splits_floats"] = True
    shape = Shape(types.float32, 1, 1)
    x, unused = np.full(TARGET.vector_bytes // 4, 3, np.float32), ctypes.c_int64()
    entry = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 4)(native(power, (shape, types.int64)))
    entry(ctypes.addressof(unused), 0, 0, address(x))
    return x.tolist()


@X86
def test_the_control_an_instruction_that_the_target_lacks_ends_the_process(run):
    variables, vector_bytes = SSE2_TARGET
    assert run(power_of_two, False, FASTATTN_CACHE="0", **variables).value == [8.0] * (vector_bytes // 4)
    assert run(power_of_two, True, FASTATTN_CACHE="0", **variables).status != 0


def off_by_one():
    """The suite's eyes: the last key left out."""
    def blind(p):
        o, lse = attention(p.q, p.k[:, :, :-1], p.v[:, :, :-1], return_lse=True)
        return ratio(o, lse, exact(p.q, p.k, p.v))

    return min(blind(p) for p in around_the_edges(F32, 64, False) if p.k.shape[2] and p.seen is None)


def test_the_control_a_key_that_is_left_out_is_noticed(call):
    assert call(off_by_one) > 1


def test_processes_of_their_own_import_this_very_package(call):
    # And not one that happens to be installed.
    assert call(where) == fastattn.__file__


def where():
    return fastattn.__file__
