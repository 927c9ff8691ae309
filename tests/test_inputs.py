"""What goes in comes out unharmed: inputs are never modified, overlaps are never silently wrong, junk is refused."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest

import fastattn
from fastattn import attention, attention_varlen, causal, merge_states
from tests.problems import DTYPES, F32, numbers, problem

ROOT = Path(__file__).parents[1]
rng = np.random.default_rng(0)


# ---- inputs stay what they are ----------------------------------------------------------------------------------------------
def checksum(x):
    base = x
    while isinstance(getattr(base, "base", None), np.ndarray):
        base = base.base                                # the gaps are the user's too
    return hashlib.sha256(base.tobytes()).digest()


def test_no_input_is_modified():
    rng = np.random.default_rng(1)
    for _ in range(1000):
        p = problem(rng)
        inputs = [p.q, p.k, p.v, *(x for x in p.options.values() if isinstance(x, np.ndarray))]
        before = [checksum(x) for x in inputs]
        o, lse = p.run()
        states = [o, o.copy()], [lse, lse.copy()]
        merge_states(*states)
        assert [checksum(x) for x in inputs] == before
        npt.assert_array_equal(states[0][0], states[0][1])


def test_read_only_inputs_will_do():
    x = numbers(rng, (2, 30, 8), F32)
    wanted = attention(x, x, x, mask=causal)
    x.flags.writeable = False
    npt.assert_array_equal(attention(x, x, x, mask=causal), wanted)


class Subclass(np.ndarray):
    """Indexed and summed in its own way, which is none of our business."""

    def __getitem__(self, index):
        raise AssertionError

    __array_wrap__ = __array_ufunc__ = __getitem__


def test_a_subclass_is_the_array_that_it_holds():
    x, heads = numbers(rng, (3, 30, 8), F32), np.array([0.5, 1, 2])
    mask, bias = rng.random((30, 30)) < 0.5, numbers(rng, (30, 30), F32)
    given = [y.view(Subclass) for y in (x, x, x, mask, bias, heads)]
    found, wanted = (attention(q, k, v, mask=causal & m, bias=b, sink=s, alibi=s)
                     for q, k, v, m, b, s in (given, (x, x, x, mask, bias, heads)))
    assert type(found) is np.ndarray
    npt.assert_array_equal(found, wanted)


# ---- out may be any memory -----------------------------------------------------------------------------------------------
class Wrapped:
    """What becomes an array over the same memory when asked to, as a torch tensor does."""

    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return self.x


@pytest.mark.parametrize("wrap", [lambda x: x, memoryview, Wrapped], ids=["array", "memoryview", "__array__"])
@pytest.mark.parametrize("name", ["q", "k", "v", "bias", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_may_be_an_input(name, wrap, dtype):
    # Several tiles of queries, so that rows of o are written before others' inputs are read.
    S = 200
    inputs = {n: numbers(np.random.default_rng(i), (S, S), dtype, 0.3) for i, n in enumerate(("q", "k", "v", "bias"))}
    wanted = attention(*(inputs[n] for n in "qkv"), bias=inputs["bias"])
    shared = inputs["v" if name == "all" else name].copy()
    if name == "all":
        wanted = attention(shared, shared, shared, bias=shared)
        inputs = dict.fromkeys(inputs, wrap(shared))
    else:
        inputs[name] = wrap(shared)
    assert attention(*(inputs[n] for n in "qkv"), bias=inputs["bias"], out=shared) is shared
    npt.assert_array_equal(shared, wanted)


@pytest.mark.parametrize("shift", [1, 7, 200, 201])
def test_out_may_overlap_an_input_in_part(shift):
    memory = numbers(rng, (400 * 8 + shift,), F32)
    k, out = memory[:400 * 8].reshape(400, 8), memory[shift:].reshape(400, 8)
    q, v = numbers(rng, (400, 8), F32), numbers(rng, (400, 8), F32)
    wanted = attention(q, k, v)
    attention(q, k, v, out=out)
    npt.assert_array_equal(out, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)      # float64 is what kernels read them as, without a copy
@pytest.mark.parametrize("name", ["sink", "alibi"])
def test_out_may_overlap_numbers_of_heads(name, dtype):
    q = numbers(rng, (1, 4, 90, 1), dtype)
    x = q[0].swapaxes(0, 1)
    for at in (0, 100, 356):
        out = np.zeros((1, 4, 90, 1), dtype)
        heads = out.reshape(-1)[at:at + 4]
        heads[:] = [0.5, 1, 2, 3]
        wanted = attention(q, q, q, **{name: heads.copy()})
        npt.assert_array_equal(attention(q, q, q, **{name: heads}, out=out), wanted)
        heads[:] = [0.5, 1, 2, 3]
        wanted = attention_varlen(x, x, x, [0, 40, 90], [0, 40, 90], **{name: heads.copy()})
        packed = out.reshape(90, 4, 1)
        npt.assert_array_equal(attention_varlen(x, x, x, [0, 40, 90], [0, 40, 90], **{name: heads}, out=packed), wanted)


def test_out_may_overlap_a_boolean_mask():
    q, k = numbers(rng, (300, 16), F32), numbers(rng, (64, 16), F32)
    out = np.zeros((300, 16), np.float32)
    mask = out.view(np.bool_)[::-1]                     # read from the end, written from the beginning
    mask[...] = rng.random((300, 64)) < 0.5
    wanted = attention(q, k, k, mask=mask.copy())
    npt.assert_array_equal(attention(q, k, k, mask=mask, out=out), wanted)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_out_of_packed_sequences_may_be_an_input(name):
    inputs = {n: numbers(np.random.default_rng(i), (300, 2, 8), F32) for i, n in enumerate("qkv")}
    wanted = attention_varlen(*inputs.values(), [0, 100, 280], [0, 130, 290])
    assert attention_varlen(*inputs.values(), [0, 100, 280], [0, 130, 290], out=inputs[name]) is inputs[name]
    npt.assert_array_equal(inputs[name], wanted)


# ---- junk ------------------------------------------------------------------------------------------------------------------
def junk(rng):
    """Something that somebody might pass for an array, a number, a mask."""
    shapes = [(), (0,), (3,), (2, 3), (3, 2), (0, 3), (1, 2, 3), (2, 3, 0), (2, 2, 3, 4), (1, 1, 1, 1, 1), (2, 4, 3, 4)]
    kinds = ["f4", "f8", ">f4", ">f8", "f2", "i4", "i8", "u8", "?", "c8", "O", "S3", "U2", "M8[s]", "m8[s]", "V5",
             [("a", "f4")], "g"]
    shape = shapes[rng.integers(len(shapes))]
    few = [
        lambda: None, lambda: True, lambda: 0, lambda: -1, lambda: 3, lambda: 2**63, lambda: 10**400, lambda: 0.5,
        lambda: float("nan"), lambda: float("inf"), lambda: 1j, lambda: "abc", lambda: b"abc", lambda: [], lambda: [1, 2],
        lambda: [[1.0], [2.0, 3.0]], lambda: {}, lambda: set(), lambda: object(), lambda: len, lambda: np, lambda: int,
        lambda: range(3), lambda: np.float32(1), lambda: np.int8(3), lambda: np.bool_(True), lambda: (x for x in "ab"),
        lambda: np.ma.masked_array([1.0, 2.0], [True, False]), lambda: np.matrix([[1.0, 2.0]]), lambda: memoryview(b"abcd"),
        lambda: fastattn.causal, lambda: fastattn.window(1, 2), lambda: fastattn.lengths([1, 2]),
        lambda: fastattn.packed([1, 1, 2]), lambda: fastattn.causal & np.ones((2, 3), bool), lambda: fastattn.prefix(2),
    ]
    if rng.random() < 0.5:
        return few[rng.integers(len(few))]()
    if rng.random() < 0.5:
        return rng.standard_normal(shape).astype(rng.choice(["f4", "f8"]))
    x = np.zeros(shape, kinds[rng.integers(len(kinds))])
    if rng.random() < 0.2:
        x = np.lib.stride_tricks.as_strided(x, shape, rng.choice([0, x.itemsize], len(shape)) if shape else ())
    if rng.random() < 0.2:
        x.flags.writeable = False
    return x


def test_junk_is_refused_and_ends_nothing():
    # In a process of its own: what is looked for is a crash.
    found = subprocess.run([sys.executable, "-X", "faulthandler", "-m", "tests.test_inputs", "20000", "0"], cwd=ROOT,
                           capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    refused, done = map(int, found.stdout.split())
    assert refused > 10_000
    assert done > 500                                   # not only junk: some of it makes sense


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 11))
def test_junk_at_length(seed):
    found = subprocess.run([sys.executable, "-X", "faulthandler", "-m", "tests.test_inputs", "100000", str(seed)],
                           cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def main(count, seed):
    import warnings

    # Casts of NumPy's own, of complex numbers and the like.
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(seed)
    refused = done = 0
    options = ("mask", "bias", "alibi", "softcap", "sink", "scale", "return_lse", "out", "threads")
    for _ in range(count):
        good = rng.standard_normal((2, 3, 4)).astype("f4")
        # One call in two has but one or two things wrong with it, and so gets further.
        rate = rng.choice([0.15, 0.6])

        def pick(right, rate=rate):
            return junk(rng) if rng.random() < rate else right

        chosen = {name: junk(rng) for name in options if rng.random() < 0.15}
        if "threads" in chosen and type(chosen["threads"]) is int:
            chosen["threads"] = min(chosen["threads"], 4)
        kind = rng.integers(0, 5)
        try:
            if kind < 2:
                attention(pick(good), pick(good), pick(good), **chosen)
            elif kind == 2:
                chosen.pop("bias", None)
                attention_varlen(pick(good), pick(good), pick(good), pick([0, 1, 2]), pick([0, 2, 2]), **chosen)
            elif kind == 3:
                merge_states(pick([good, good]), pick([good[..., 0], good[..., 0]]))
            else:
                make = [fastattn.window, fastattn.lengths, fastattn.packed, fastattn.prefix][rng.integers(0, 4)]
                mask = make(*(junk(rng) for _ in range(rng.integers(1, 3))))
                attention(good, good, good, mask=mask & pick(fastattn.causal))
            done += 1
        except (TypeError, ValueError, IndexError):
            refused += 1
    return refused, done


if __name__ == "__main__":
    print(*main(*map(int, sys.argv[1:])))  # noqa: T201
