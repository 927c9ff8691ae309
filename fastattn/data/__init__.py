"""The demo's data file: one attention layer of a trained model, small enough to ship. See NOTICE for its origin.

`minilm.npz` holds, under the model's own names, what turns a sentence into the first layer's attention: the embeddings
of some words and of the first 32 positions, the tables of Q, K, V and output, the biases and norms. `words` lists the
words in the order of their rows. Vectors are float32, as published. A table becomes two arrays,

    <name>.codes   uint8 (rows, 3 columns / 2)    two numbers of 12 bits in three bytes
    <name>.scale   float32 (rows,)                number = scale of its row * code, -2047 <= code <= 2047

because float16 would leave room for 390 words, and int8 moves a percentage of the demo by up to 4.4 points. Twelve bits
move one by at most 0.25 points (200 sentences of random words, all heads; `tests/test_demo.py` looks at others).

`make.py` makes the file, bit for bit the same on every machine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PATH = Path(__file__).with_name("minilm.npz")
LARGEST = 2047                                      # of 12 bits with a sign, without the lonely -2048


def pack(table: NDArray) -> tuple[NDArray, NDArray]:
    """The codes and the scales of a float32 table with an even number of columns and no row of zeros."""
    scale = np.abs(table).max(axis=1) / np.float32(LARGEST)
    code = (np.rint(table / scale[:, None]) + LARGEST).astype(np.uint16)
    a, b = code[:, 0::2], code[:, 1::2]             # aaaaaaaa bbbbaaaa bbbbbbbb, low bits first
    codes = np.stack([a & 0xFF, a >> 8 | (b & 0xF) << 4, b >> 4], axis=-1).astype(np.uint8)
    return codes.reshape(len(table), -1), scale


def unpack(codes: NDArray, scale: NDArray) -> NDArray:
    """The float32 table that `pack` rounded."""
    x, y, z = np.moveaxis(codes.reshape(len(codes), -1, 3).astype(np.int16), -1, 0)
    code = np.stack([x | (y & 0xF) << 8, y >> 4 | z << 4], axis=-1) - LARGEST
    return code.reshape(len(codes), -1) * scale[:, None]


def load() -> tuple[list[str], dict[str, NDArray]]:
    """The words of the file in the order of their rows, and every table and vector as float32 by name."""
    with np.load(PATH, allow_pickle=False) as file:
        weights = {}
        for name in file.files:
            if name.endswith(".codes"):
                table = name.removesuffix(".codes")
                weights[table] = unpack(file[name], file[table + ".scale"])
            elif not name.endswith(".scale") and name != "words":
                weights[name] = file[name]
        return [word.decode() for word in file["words"]], weights
