"""fastattn and its rivals, each adapted to compute exactly the mathematics of a case.

A library may offer several ways to ask for one thing: a flag or a mask, a boolean mask or an additive one, one operator or
another. Each way is tried, and what is compared is the fastest that is right, so that nobody loses by our choice.

What is not timed: the import, building a graph or a session, compiling, making masks, changing layouts and handing over
arrays. What is timed: one call, with the result allocated as the library does it by itself. Everything runs in the case's
dtype: no library may compute in bfloat16 or TF32 behind our back, which `cases.error_limit` would show.

    fastattn       attention
    numpy          the plain formula, batched matmul, in place where that is faster
    torch          scaled_dot_product_attention: is_causal, enable_gqa; else a boolean or additive mask
    onnxruntime    MultiHeadAttention, Attention (ONNX 23), and for causal GroupQueryAttention
    openvino       ScaledDotProductAttention; k and v of grouped heads repeated beforehand, as it has no such notion
    jax            jax.nn.dot_product_attention, jitted, on its own (B, S, H, D) layout; the formula for float64 and Dv != D
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import F64, Case


@dataclass(frozen=True)
class Way:
    """One way to ask a library: `run()` is what is timed, `read` makes (B, Hq, Sq, Dv) of what it gives."""

    name: str
    run: Callable[[], Any]
    read: Callable[[Any], NDArray] = np.asarray


Ways = Callable[[Case, NDArray, NDArray, NDArray, int], Iterator[Way]]


def additive(case: Case) -> NDArray:
    """The mask as numbers to add to scores: 0 where a key is seen, -inf where not."""
    return np.where(case.seen(), 0, -np.inf).astype(case.dtype)


def rows_of_words(x: NDArray) -> NDArray:
    """(B, H, S, D) as (B, S, H, D), contiguous."""
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3))


# ---- us ----------------------------------------------------------------------------------------------------------------
def fastattn_mask(case: Case) -> Any:
    """The case's mask in fastattn's words; None: every key."""
    import fastattn

    parts = [fastattn.causal] * case.mask.causal
    if case.mask.before is not None:
        parts.append(fastattn.window(case.mask.before))
    if case.mask.lengths is not None:
        parts.append(fastattn.lengths(case.mask.lengths))
    mask = None
    for part in parts:
        mask = part if mask is None else mask & part
    return mask


def ours(case: Case, q: NDArray, k: NDArray, v: NDArray, threads: int) -> Iterator[Way]:
    from fastattn import attention

    mask = fastattn_mask(case)
    yield Way("attention", lambda: attention(q, k, v, mask=mask, threads=threads))


# ---- rivals ------------------------------------------------------------------------------------------------------------
def numpy(case: Case, q: NDArray, k: NDArray, v: NDArray, threads: int) -> Iterator[Way]:
    group, scale = case.Hq // case.Hkv, q.dtype.type(1 / math.sqrt(case.D))
    q = q.reshape(case.B, case.Hkv, group, case.Sq, case.D)
    k, v = k[:, :, None], v[:, :, None]
    hidden = None if case.sees_all else additive(case)[:, :, None]

    def run():
        s = q @ k.swapaxes(3, 4)
        s *= scale
        if hidden is not None:
            s += hidden
        s -= s.max(axis=4, keepdims=True)
        p = np.exp(s, out=s)
        p /= p.sum(axis=4, keepdims=True)
        return p @ v

    yield Way("formula", run, lambda o: o.reshape(case.B, case.Hq, case.Sq, case.Dv))


def torch(case: Case, q: NDArray, k: NDArray, v: NDArray, threads: int) -> Iterator[Way]:
    import torch

    torch.set_num_threads(threads)
    q, k, v = (torch.from_numpy(x) for x in (q, k, v))
    options = {"is_causal": case.square_causal, "enable_gqa": case.Hq != case.Hkv}

    def way(name, **mask):
        return Way(name, lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, **options, **mask),
                   lambda o: o.numpy())

    if case.sees_all or case.square_causal:
        yield way("is_causal" if case.square_causal else "no mask")
    else:
        yield way("boolean mask", attn_mask=torch.from_numpy(case.seen()))
        yield way("additive mask", attn_mask=torch.from_numpy(additive(case)))


def onnxruntime(case: Case, q: NDArray, k: NDArray, v: NDArray, threads: int) -> Iterator[Way]:
    if case.dtype == F64:
        raise NotImplementedError("no float64")
    import onnx
    import onnxruntime

    B, Hq, Sq, Dv = case.B, case.Hq, case.Sq, case.Dv
    seen_apart = not (case.sees_all or case.square_causal)

    def flat(x):
        return rows_of_words(x).reshape(x.shape[0], x.shape[2], -1)

    def way(name, inputs, read, *, domain="com.microsoft", version=1, outputs=("o",), **attributes):
        operator = name.split()[0]
        given = {label: x for label, x in inputs.items() if x is not None}
        infos = [onnx.helper.make_tensor_value_info(label, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
                 for label, x in given.items()]
        results = [onnx.helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in outputs]
        node = onnx.helper.make_node(operator, [label if x is not None else "" for label, x in inputs.items()], outputs,
                                     domain=domain, scale=1 / math.sqrt(case.D), **attributes)
        graph = onnx.helper.make_graph([node], "attention", infos, results)
        model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[
            onnx.helper.make_opsetid("", 23), *([onnx.helper.make_opsetid(domain, version)] if domain else [])])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        # A binding: 3 us a call, where run_with_ort_values takes 37 and run, which copies o, 6.
        binding = session.io_binding()
        for label, x in given.items():
            binding.bind_cpu_input(label, x)
        for label in outputs:
            binding.bind_output(label)
        return Way(name, lambda: session.run_with_iobinding(binding), lambda _: read(binding.get_outputs()[0].numpy()))

    def words_first(o):
        return o.reshape(B, Sq, Hq, Dv).transpose(0, 2, 1, 3)

    mask = additive(case) if seen_apart else None
    # ONNX's own operator: grouped heads, booleans, (B, H, S, D).
    for kind in ((None,) if mask is None else ("boolean", "additive")):
        seen = None if mask is None else case.seen() if kind == "boolean" else mask
        yield way(f"Attention {kind or ''}".strip(), {"q": q, "k": k, "v": v, "mask": seen}, lambda o: o,
                  domain="", is_causal=int(case.square_causal))
    if case.Hq == case.Hkv:
        heads = {"num_heads": Hq, "unidirectional": int(case.square_causal)}
        bias = {"qkv_bias": None, "padding": None, "bias": mask}
        yield way("MultiHeadAttention", {"q": flat(q), "k": flat(k), "v": flat(v), **bias}, words_first, **heads)
        if Dv == case.D:                        # k and v as (B, H, S, D): transpositions less in the call
            yield way("MultiHeadAttention BNSH", {"q": flat(q), "k": k, "v": v, **bias}, words_first, **heads)
        if case.mask.lengths is not None and not case.mask.causal:
            padding = np.array(case.mask.lengths, np.int32)
            yield way("MultiHeadAttention padding",
                      {"q": flat(q), "k": flat(k), "v": flat(v), "qkv_bias": None, "padding": padding}, words_first, **heads)
    if case.mask.causal and case.mask.lengths is None and case.Sq == case.Sk and Dv == case.D:
        lengths = {"seqlens_k": np.full(B, case.Sk - 1, np.int32), "total": np.array(case.Sk, np.int32)}
        # Its window counts the query's own key.
        size = {} if case.mask.before is None else {"local_window_size": case.mask.before + 1}
        yield way("GroupQueryAttention", {"q": flat(q), "k": flat(k), "v": flat(v), "past_k": None, "past_v": None, **lengths},
                  words_first, outputs=("o", "present_k", "present_v"), num_heads=Hq, kv_num_heads=case.Hkv, **size)


def openvino(case: Case, q: NDArray, k: NDArray, v: NDArray, threads: int) -> Iterator[Way]:
    if case.dtype == F64:
        raise NotImplementedError("no float64: the CPU plugin computes it in float32")
    import openvino
    from openvino import opset13

    k, v = (np.repeat(x, case.Hq // case.Hkv, axis=1) for x in (k, v))

    def way(name, mask):
        arrays = [q, k, v, *([] if mask is None else [mask])]
        parameters = [opset13.parameter(x.shape, x.dtype) for x in arrays]
        node = opset13.scaled_dot_product_attention(*parameters, causal=case.square_causal)
        model = openvino.Core().compile_model(openvino.Model([node], parameters), "CPU", {
            "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False})
        request = model.create_infer_request()
        for i, x in enumerate(arrays):
            request.set_input_tensor(i, openvino.Tensor(x, shared_memory=True))
        # The request owns none of the arrays: `read` keeps them.
        return Way(name, request.infer, lambda _, arrays=arrays: request.get_output_tensor().data)

    if case.sees_all or case.square_causal:
        yield way("causal" if case.square_causal else "no mask", None)
    else:
        yield way("boolean mask", case.seen())
        yield way("additive mask", additive(case))


def jax(case: Case, q: NDArray, k: NDArray, v: NDArray, threads: int) -> Iterator[Way]:
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    q, k, v = (jax.numpy.asarray(rows_of_words(x)) for x in (q, k, v))

    def jitted(name, attention):
        call = jax.jit(attention)
        return Way(name, lambda: call(q, k, v).block_until_ready(), lambda o: np.asarray(o).transpose(0, 2, 1, 3))

    def way(name, **options):
        return jitted(name, lambda q, k, v: jax.nn.dot_product_attention(q, k, v, **options))

    def formula():
        hidden = None if case.sees_all else jax.numpy.asarray(additive(case))

        def attention(q, k, v):
            s = jax.numpy.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(case.D)
            p = jax.nn.softmax(s if hidden is None else s + hidden)
            return jax.numpy.einsum("bhij,bjhd->bihd", p, v)

        return jitted("formula", attention)

    if case.dtype == F64 or case.Dv != case.D:
        # dot_product_attention takes its softmax in float32, and no v of another width.
        yield formula()
    elif case.Sq == case.Sk or not case.mask.causal:
        lengths = case.mask.lengths and jax.numpy.asarray(case.mask.lengths, "int32")
        window = None if case.mask.before is None else (case.mask.before, 0)
        yield way("options", is_causal=case.mask.causal, local_window_size=window, key_value_seq_lengths=lengths)
    if not (case.sees_all or case.square_causal):
        yield way("boolean mask", mask=jax.numpy.asarray(case.seen()))


OURS = "fastattn"
CONTENDERS: dict[str, Ways] = {OURS: ours, "numpy": numpy, "torch": torch, "onnxruntime": onnxruntime,
                               "openvino": openvino, "jax": jax}
# What one imports besides the library itself.
NEEDS = {"onnxruntime": ("onnxruntime", "onnx")}


def installed() -> dict[str, str | None]:
    """The version of each contender; None where it, or what it needs, is not installed."""
    return {name: _version(name) if all(importlib.util.find_spec(x) for x in NEEDS.get(name, (name,))) else None
            for name in CONTENDERS}


def _version(name: str) -> str:
    if name == OURS:                            # may run from a checkout
        from fastattn import __version__

        return __version__
    return importlib.metadata.version(name)
