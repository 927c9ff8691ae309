"""fastattn by itself on every case, under pytest-benchmark:

    taskset -c 1 pytest benchmarks --benchmark-enable --benchmark-json=forward.json

Without --benchmark-enable each case runs once, at a small size, and is compared with the formula like any test.
"""

import functools

import numpy as np
import numpy.testing as npt
import pytest

from fastattn import attention

from .cases import CASES, error_limit, formula, named
from .peak import Peak
from .rivals import fastattn_mask


@functools.cache
def peak(dtype):
    return Peak(dtype)


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_forward(name, benchmark):
    case, = named([name])
    case = case.small() if benchmark.disabled else case
    q, k, v = case.inputs()
    mask, benchmark.group = fastattn_mask(case), str(case.mask)
    attention(q, k, v, mask=mask, threads=1)        # compiled, whatever is timed
    o = benchmark(attention, q, k, v, mask=mask, threads=1)
    npt.assert_allclose(o, formula(case, q, k, v), rtol=0, atol=error_limit(case))
    assert o.dtype == np.dtype(case.dtype)
    if benchmark.disabled:
        return
    rate = case.flops / benchmark.stats.stats.min / 1e9
    peak(case.dtype).measure()
    benchmark.extra_info.update(shape=str(case), mask=str(case.mask), dtype=case.dtype, gflops=rate,
                                of_peak=rate / peak(case.dtype).best, peak_gflops=peak(case.dtype).best)
