"""A whole layer, from words to words, beside torch.nn.MultiheadAttention: pytest benchmarks/test_layers.py --benchmark-enable

d_model 512, 8 heads, no mask, float32, one thread; OPENBLAS_NUM_THREADS=1 keeps BLAS to one too, whose threads are not ours to
set. torch is asked as in use: eval, inference_mode, need_weights=False. In test mode sizes are small.
"""

import functools

import numpy as np
import numpy.testing as npt
import pytest

from fastattn import SelfAttention

D_MODEL, HEADS = 512, 8
SHAPES = [(1, 512), (1, 2048), (16, 128)]
# Four products in a row, of numbers of size 1.
LIMIT = 1e-5


def ours(w, x, request):
    layer = SelfAttention(*(w[name].T for name in "qkvo"), heads=HEADS)
    return lambda: layer(x, threads=1)


def torchs(w, x, request):
    torch = pytest.importorskip("torch", reason="needs torch")
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)
    layer = torch.nn.MultiheadAttention(D_MODEL, HEADS, bias=False, batch_first=True).eval()
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.from_numpy(np.concatenate([w[name] for name in "qkv"])))
        layer.out_proj.weight.copy_(torch.from_numpy(w["o"]))
    words = torch.from_numpy(x)

    def run():
        with torch.inference_mode():
            return layer(words, words, words, need_weights=False)[0].numpy()

    return run


def formula(w, x):
    """In float64."""
    x = x.astype(float)
    q, k, v = ((x @ w[name].T).reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2) for name in "qkv")
    p = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(D_MODEL // HEADS))
    o = p / p.sum(axis=3, keepdims=True) @ v
    return o.swapaxes(1, 2).reshape(x.shape) @ w["o"].T


@pytest.mark.parametrize("contender", [ours, torchs])
@pytest.mark.parametrize(("B", "S"), SHAPES)
def test_layer(B, S, contender, benchmark, request):
    rng = np.random.default_rng(0)
    if benchmark.disabled:
        B, S = min(B, 2), S // 16
    w = {name: (rng.standard_normal((D_MODEL, D_MODEL)) / np.sqrt(D_MODEL)).astype(np.float32) for name in "qkvo"}
    x = rng.standard_normal((B, S, D_MODEL), dtype=np.float32)
    run, benchmark.group = contender(w, x, request), f"({B}, {S}, {D_MODEL}), {HEADS} heads"
    run()                                               # compiled, and memory found
    y = benchmark(run)
    npt.assert_allclose(y, formula(w, x), rtol=0, atol=LIMIT)
    if not benchmark.disabled:
        flops = 8 * B * S * D_MODEL**2 + 4 * B * S * S * D_MODEL
        benchmark.extra_info.update(flops=flops, gflops=flops / benchmark.stats.stats.min / 1e9)
