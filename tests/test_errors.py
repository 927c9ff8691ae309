"""Every rule of checks.py says the argument, the rule and what was given."""

import numpy as np
import pytest

from fastattn import attention, attention_varlen, causal, compile, merge_states, threads, window

x = np.ones((2, 4, 5, 8), "f4")
y = x[0].transpose(1, 0, 2).copy()                  # (T, H, D)


def varlen(cu_q=(0, 5), cu_k=(0, 5), q=y, k=y, v=y, **options):
    return attention_varlen(q, k, v, cu_q, cu_k, **options)


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


WRONG = [
    (lambda: attention(np.ma.masked_array(x), x, x), TypeError, "q: masked arrays are not supported"),
    (lambda: attention(x[0, 0].view(np.matrix), x[0, 0], x[0, 0]), TypeError, "q must be an array; got a np.matrix"),
    (lambda: attention(x, x.astype(int), x), TypeError, "k must be float32 or float64; got int64"),
    (lambda: attention(x, x, x.astype(object)), TypeError, "v must be float32 or float64; got object"),
    (lambda: attention(x, x, x.astype(complex)), TypeError, "v must be float32 or float64; got complex128"),
    (lambda: attention(x.astype("f2"), x, x), TypeError, r"q must be float32 or float64; got float16; convert it, as in x.astype\(np.float32\)"),
    (lambda: attention([[1.0], [2.0, 3.0]], x, x), ValueError, "q must be an array; its lists differ in length"),
    (lambda: attention("abc", x, x), TypeError, "q must be float32 or float64"),
    (lambda: attention(None, x, x), TypeError, "q must be float32 or float64; got object"),
    (lambda: attention(x, x.astype("f8"), x), TypeError, "one dtype; got float32, float64, float32"),
    (lambda: attention(x, x[0], x), ValueError, r"must all be \(B, H, S, D\), all"),
    (lambda: attention(x[0, 0, 0], x[0, 0, 0], x[0, 0, 0]), ValueError, r"must all be \(B, H, S, D\), all"),
    (lambda: attention(x, x[:1], x[:1]), ValueError, r"one batch size; got q \(2, 4, 5, 8\), k \(1, 4, 5, 8\)"),
    (lambda: attention(x, x, x[:, :2]), ValueError, "same heads and the same keys"),
    (lambda: attention(x, x, x[:, :, :3]), ValueError, "same heads and the same keys"),
    (lambda: attention(x, x[..., :3], x), ValueError, "same channels"),
    (lambda: attention(x, x[:, :3], x[:, :3]), ValueError, "heads of q must be a multiple"),
    (lambda: attention(x, x, x, scale="1"), TypeError, "scale must be a finite number, for float32 at most 1.7e.38; got '1'"),
    (lambda: attention(x, x, x, scale=np.nan), ValueError, "scale must be a finite number, .* got nan"),
    (lambda: attention(x, x, x, scale=10**400), ValueError, "scale must be a finite number"),
    (lambda: attention(x, x, x, scale=True), TypeError, "scale must be a finite number, .* got True"),
    (lambda: attention(x, x, x, scale=3e38), ValueError, "at most 1.7e.38; got 3e.38"),
    (lambda: attention(x, x, x, softcap=0), ValueError, "softcap must be a positive finite number, .* got 0"),
    (lambda: attention(x, x, x, softcap=1e-40), ValueError, "for float32 from 1.2e-38 to 1.7e.38; got 1e-40"),
    (lambda: attention(x, x, x, softcap=[1, 2]), TypeError, "softcap must be a positive finite number, .* got list"),
    (lambda: attention(x, x, x, alibi=[1.0]), ValueError, r"alibi must be \(Hq,\)"),
    (lambda: attention(x, x, x, sink=["a"] * 4), TypeError, "sink must be numbers"),
    (lambda: attention(x, x, x, sink=np.ma.masked_array(np.ones(4))), TypeError, "sink: masked arrays"),
    (lambda: attention(x, x, x, sink=[0, 0, -1e300, 0]), ValueError, "sink must be within the range of float32; got -1e.300"),
    (lambda: attention(x, x, x, bias=np.ones((5, 5))), TypeError, "bias must have q's dtype; got float64"),
    (lambda: attention(x, x, x, bias=np.ones((3, 5), "f4")), ValueError, "bias must broadcast"),
    (lambda: attention(x, x, x, bias=np.ones((1, 2, 4, 5, 5), "f4")), ValueError, "bias must broadcast"),
    (lambda: attention(x, x, x, mask=np.ones((3, 5), bool)), ValueError, "mask must broadcast"),
    (lambda: attention(x, x, x, mask=np.ones((3, 1, 1, 5), bool)), ValueError, "mask must broadcast"),
    (lambda: attention(x, x, x, mask=np.ones((1, 3, 5, 5), bool)), ValueError, "mask must broadcast"),
    (lambda: attention(x, x, x, mask=np.ones((2, 5), bool)), ValueError, r"keys of each sequence are mask\[:, None, None\], padding"),
    (lambda: attention(x, x, x, mask="causal"), TypeError, "not its name, but the mask itself: mask=fastattn.causal"),
    (lambda: attention(x, x, x, mask=window), TypeError, "call it with its arguments: mask=window"),
    (lambda: attention(x, x, x, mask=[causal, window(1)]), TypeError, "several are joined with &"),
    (lambda: ~causal, TypeError, "a mask has no ~; .* invert a boolean array"),
    (lambda: causal | window(3), TypeError, "masks are joined with &"),
    (lambda: np.ones((5, 5), bool) | causal, TypeError, "masks are joined with &"),
    (lambda: compile(channels=-1), ValueError, "channels must be at least 0; got -1"),
    (lambda: compile(dtypes="int32"), TypeError, "dtypes must be float32 or float64; got int32"),
    (lambda: compile(channels=[2.5]), TypeError, "channels must be an integer; got float"),
    (lambda: compile(channels=["a"]), TypeError, "channels must be an integer; got str"),
    (lambda: attention(x, x, x, out=[1]), TypeError, "out must be a plain NumPy array; got list"),
    (lambda: attention(x, x, x, out=np.ma.masked_array(x)), TypeError, "out must be a plain NumPy array; got MaskedArray"),
    (lambda: attention(x, x, x, out=x.astype(">f4")), TypeError, "out must have q's dtype in native byte order; got >f4"),
    (lambda: attention(x, x, x, out=np.zeros(x.shape)), TypeError, "out must have q's dtype"),
    (lambda: attention(x, x, x, out=np.zeros((2, 4, 5, 7), "f4")), ValueError, "out must have the shape of the result"),
    (lambda: attention(x, x, x, out=frozen(x)), ValueError, "out must be writeable"),
    (lambda: attention(x, x, x, out=np.lib.stride_tricks.as_strided(x.copy(), x.shape, (0, 160, 32, 4))), ValueError,
     "out must not overlap itself"),
    # Rows of 8 numbers, 4 apart.
    (lambda: attention(x, x, x, out=np.lib.stride_tricks.as_strided(x.copy(), x.shape, (640, 160, 16, 4))), ValueError,
     "out must not overlap itself"),
    (lambda: attention(x, x, x, threads=0), ValueError, "threads must be at least 1"),
    (lambda: threads("2"), TypeError, "threads must be an int"),
    (lambda: varlen(q=x), ValueError, r"must be packed, \(T, H, D\)"),
    (lambda: varlen(v=y[:3]), ValueError, "same heads and the same keys"),
    (lambda: varlen(q=y.astype("f8")), TypeError, "one dtype"),
    (lambda: varlen(cu_q=[0.0, 5.0]), TypeError, "cu_seqlens_q must be integers; got float64"),
    (lambda: varlen(cu_k=[False, True]), TypeError, "cu_seqlens_k must be integers; got bool"),
    (lambda: varlen(cu_q=5), ValueError, r"cu_seqlens_q must be \(B \+ 1,\)"),
    (lambda: varlen(cu_q=[]), ValueError, r"cu_seqlens_q must be \(B \+ 1,\) with B >= 0; got \(0,\)"),
    (lambda: varlen(cu_q=[1, 5]), ValueError, "cu_seqlens_q must begin with 0; got 1"),
    (lambda: varlen(cu_q=[0, 4, 3], cu_k=[0, 4, 5]), ValueError, "must not decrease; sequence 1 goes from 4 to 3"),
    (lambda: varlen(cu_q=[0, 6]), ValueError, "cu_seqlens_q must end within the 5 rows of q; got 6"),
    (lambda: varlen(cu_k=np.array([0, 2**63 + 1], "u8")), ValueError, "cu_seqlens_k must be below 2.63"),
    (lambda: varlen(cu_q=[0, 2**62]), ValueError, "must end within"),
    (lambda: varlen(cu_q=[0, 2, 5]), ValueError, "must be equally long; got"),
    (lambda: merge_states([], []), ValueError, "as many, and at least one; got 0 and 0"),
    (lambda: merge_states([x], [x]), ValueError, r"outs must have one shape \(..., Dv\)"),
    (lambda: merge_states([x[0, 0, 0, 0]], [x[0, 0, 0, 0]]), ValueError, r"outs must have one shape \(..., Dv\)"),
    (lambda: merge_states([x, x], [x[..., 0], x[..., 0].astype("f8")]), TypeError, "outs and lses must have one dtype"),
    (lambda: compile(dtypes=["int32"]), TypeError, "dtypes must be float32 or float64; got int32"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_what_does_not_fit_says_why(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_hostile_cu_seqlens_are_refused():
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(5000):
        starts = np.sort(rng.integers(0, 6, rng.integers(1, 5)))
        starts[0] = 0
        bad = starts.copy()
        how = rng.integers(4)
        if how == 0:
            bad[0] = rng.choice([-1, 1, 2**40])
        elif how == 1:
            bad[-1] = rng.choice([6, 2**31, 2**62, -(2**62)])
        elif how == 2:
            bad = np.append(bad, -1)
        else:
            bad = np.append(bad, [5, 4])
        with pytest.raises(ValueError, match="cu_seqlens_"):
            varlen(*((bad, starts) if rng.integers(2) else (starts, bad)))
        refused += 1
    assert refused == 5000
