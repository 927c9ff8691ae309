"""The weights of an attention layer in a model's safetensors file, by the names that models give them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks

# Of q, k, v and the output, or of q, k and v in one, and the output. A bias is called as its weight.
FAMILIES = (
    ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"),                       # Llama, Mistral, Qwen
    ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight"),                     # Whisper, CLIP, BART, OPT
    ("self.query.weight", "self.key.weight", "self.value.weight", "output.dense.weight"),       # BERT, RoBERTa
    ("attention.query.weight", "attention.key.weight", "attention.value.weight", "output.dense.weight"),        # ViT
    ("q_lin.weight", "k_lin.weight", "v_lin.weight", "out_lin.weight"),                         # DistilBERT
    ("in_proj_weight", "out_proj.weight"),                                                      # torch.nn.MultiheadAttention
    ("c_attn.weight", "c_proj.weight"),                                                         # GPT-2
)
# Stored as (in, out), as a layer's arguments are. All others are torch.nn.Linear's (out, in).
AS_THEY_ARE = "c_attn.weight"


def read_weights(path: str | PathLike[str], prefix: str) -> dict[str, Any]:
    """w_q, w_k, w_v, w_o, b_q, b_k, b_v and b_o, a layer's arguments, in float32; a bias that is not there is None.

    path      a .safetensors file of float64, float32, float16 or bfloat16 tensors
    prefix    what the layer's names begin with, as "model.layers.0.self_attn"

    Raises ValueError if no family of names is complete under the prefix, TypeError for tensors of other types,
    ModuleNotFoundError without the extra `weights`.

    >>> layer = CrossAttention(**read_weights("whisper.safetensors", "model.decoder.layers.0.encoder_attn"), heads=6)
    """
    start = prefix if not prefix or prefix.endswith(".") else prefix + "."
    with _opened(path) as file:
        names = sorted(file.keys())
        there = [name.removeprefix(start) for name in names if name.startswith(start)]
        family = checks.naming(there, FAMILIES, start, names)

        def tensor(name: str) -> NDArray:
            checks.tensor_of_floats(start + name, file.get_slice(start + name).get_dtype())
            return file.get_tensor(start + name).astype(np.float32)

        weights = [tensor(name) for name in family]
        named = [name.replace("weight", "bias") for name in family]
        biases = [tensor(name) if name in there else None for name in named]
    if AS_THEY_ARE not in family:
        weights = [weight.T for weight in weights]
    if len(family) == 2:
        # array_split: parts that are not equal are for the layer to complain about, by name.
        weights[:1] = np.array_split(weights[0], 3, axis=1)
        biases[:1] = [None] * 3 if biases[0] is None else np.array_split(biases[0], 3)
    return {f"{kind}_{x}": found for kind, four in (("w", weights), ("b", biases)) for x, found in zip("qkvo", four, strict=True)}


@contextlib.contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Any]:
    try:
        import ml_dtypes  # noqa: F401    # by which NumPy knows bfloat16
        import safetensors
    except ModuleNotFoundError as error:
        how = "pip install 'fastattn[weights]'"
        raise ModuleNotFoundError(f"safetensors files need {error.name}: {how}", name=error.name) from None
    with safetensors.safe_open(path, framework="numpy") as file:
        yield file
