"""Checks on arguments, and their messages; masks.py says what is wrong with a mask, tiles/pool.py with `threads`.

Kernels trust: what passes here is read and written by address. A message names the argument, the rule, and what was given.
"""

from __future__ import annotations

import functools
import importlib
import math
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .tiles.job import Sizes

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))

Shape: TypeAlias = tuple[int, ...]


def _shapes(q: Shape, k: Shape, v: Shape) -> str:
    return f"q {q}, k {k}, v {v}"


def dtype(name: str, x: Any) -> np.dtype:
    """x as a dtype that there are kernels for."""
    found = np.dtype(x)
    if found not in FLOATS:
        raise TypeError(f"{name} must be float32 or float64; got {found}")
    return found


def plain(name: str, x: Any) -> NDArray:
    """x as a plain array. np.asarray would drop a mask silently."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; pass a plain array")
    if isinstance(x, np.matrix):
        raise TypeError(f"{name} must be an array; got a np.matrix")
    try:
        return np.asarray(x)
    except ValueError:
        raise ValueError(f"{name} must be an array; its lists differ in length") from None


def floats(name: str, x: Any) -> NDArray:
    """x as an array of native, aligned float32 or float64, whose last axis has no gaps; copied only if it is not."""
    if type(x) is not np.ndarray:
        x = plain(name, x)
    if x.dtype not in FLOATS:
        if x.dtype.newbyteorder("=") not in FLOATS:
            hint = "" if x.dtype.kind in "OSU" else "; convert it, as in x.astype(np.float32)"
            raise TypeError(f"{name} must be float32 or float64; got {x.dtype}{hint}")
        x = x.astype(x.dtype.newbyteorder("="))
    flags = x.flags
    if not flags.aligned or (not flags.c_contiguous and x.strides[-1] != x.itemsize and x.shape[-1] > 1):
        x = np.array(x, order="C")
    return x


def operands(dtypes: tuple[np.dtype, ...], shapes: tuple[Shape, ...]) -> Sizes:
    """The sizes of q, k and v that have one dtype and fit together; axes that are missing count 1."""
    _one_dtype(*dtypes)
    axes = len(shapes[0])
    if any(len(shape) != axes for shape in shapes) or not 2 <= axes <= 4:
        raise ValueError(f"q, k and v must all be (B, H, S, D), all (H, S, D) or all (S, D); got {_shapes(*shapes)}")
    q, k, v = ((1,) * (4 - axes) + shape for shape in shapes)
    if not q[0] == k[0] == v[0]:
        raise ValueError(f"q, k and v must have one batch size; got {_shapes(q, k, v)} as (B, H, S, D); np.broadcast_to "
                         f"repeats an item without a copy")
    _fit(q, k, v, "(B, H, S, D)")
    return Sizes(B=q[0], Hq=q[1], Hkv=k[1], Sq=q[2], Sk=k[2], D=q[3], Dv=v[3])


def _one_dtype(q: np.dtype, k: np.dtype, v: np.dtype) -> None:
    if not q == k == v:
        raise TypeError(f"q, k and v must have one dtype; got {q}, {k}, {v}")


def _fit(q: Shape, k: Shape, v: Shape, layout: str) -> None:
    """Heads, keys and channels of operands that have as many axes, heads on the second."""
    Hq, Hkv = q[1], k[1]
    if k[:-1] != v[:-1]:
        raise ValueError(f"k and v must have the same heads and the same keys; got {_shapes(q, k, v)} as {layout}")
    if q[-1] != k[-1]:
        raise ValueError(f"q and k must have the same channels; got {_shapes(q, k, v)} as {layout}")
    if Hq % Hkv if Hkv else Hq:
        raise ValueError(f"the heads of q must be a multiple of the heads of k and v; got {_shapes(q, k, v)} as {layout}")


def number(name: str, x: Any, rule: str, holds: Callable[[float], bool]) -> float:
    """x as a float that keeps the rule."""
    if isinstance(x, (str, bytes, bool, np.bool_)):
        raise TypeError(f"{name} must be {rule}; got {x!r}")
    try:
        value = float(x)
    except OverflowError:
        value = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be {rule}; got {type(x).__name__}") from None
    if not holds(value):
        raise ValueError(f"{name} must be {rule}; got {x!r}")
    return value


@functools.cache
def _rules(dtype: np.dtype) -> dict[str, tuple[str, Callable[[float], bool]]]:
    """What scale and softcap must be. Half the range is left for log2 e. To ask NumPy and to write it down takes 15 us."""
    least, most = float(np.finfo(dtype).tiny), float(np.finfo(dtype).max) / 2
    return {"scale": (f"a finite number, for {dtype} at most {most:.2g}", lambda scale: abs(scale) <= most),
            "softcap": (f"a positive finite number, for {dtype} from {least:.2g} to {most:.2g}",
                        lambda cap: least <= cap <= most)}


def scale(x: Any, dtype: np.dtype) -> float:
    """What scores are multiplied by."""
    return number("scale", x, *_rules(dtype)["scale"])


def softcap(x: Any, dtype: np.dtype) -> float:
    """The cap of cap tanh(s / cap)."""
    return number("softcap", x, *_rules(dtype)["softcap"])


def per_head(name: str, x: Any, Hq: int, dtype: np.dtype) -> NDArray | None:
    """One number for each query head, contiguous and within dtype's range, but float64: the kernel rounds it."""
    if x is None:
        return None
    values = plain(name, x)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be numbers; got {values.dtype}")
    if values.shape != (Hq,):
        raise ValueError(f"{name} must be (Hq,), one number for each head of q; got {values.shape} for Hq = {Hq}")
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(values, np.float64)
    outside = np.isfinite(values) & ~(np.abs(numbers) <= np.finfo(dtype).max)
    if outside.any():
        raise ValueError(f"{name} must be within the range of {dtype}; got {values[outside][0]}")
    return numbers


def bias(x: Any, shape: tuple[int, int, int, int], dtype: np.dtype) -> NDArray | None:
    """The bias with 4 axes, not expanded along keys."""
    if x is None:
        return None
    x = floats("bias", x)
    if x.dtype != dtype:
        raise TypeError(f"bias must have q's dtype; got {x.dtype}, q has {dtype}")
    return broadcast("bias", x, shape)


def broadcast(name: str, x: NDArray, shape: tuple[int, int, int, int]) -> NDArray:
    """x (B, Hq, Sq, Sk or 1) by NumPy's rule."""
    try:
        if np.broadcast_shapes(x.shape, shape) != shape:
            raise ValueError
    except ValueError:
        raise ValueError(f"{name} must broadcast to (B, Hq, Sq, Sk) = {shape}; got {x.shape}") from None
    keys = x.shape[-1] if x.ndim else 1
    return np.broadcast_to(x, (*shape[:3], keys))


def out(x: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Whether the result may be written to x."""
    if type(x) is not np.ndarray:
        raise TypeError(f"out must be a plain NumPy array; got {type(x).__name__}")
    if x.dtype != dtype:
        raise TypeError(f"out must have the dtype of the result, {dtype}, in native byte order; got {x.dtype}")
    if x.shape != shape:
        raise ValueError(f"out must have the shape of the result, {shape}; got {x.shape}")
    if not x.flags.writeable:
        raise ValueError("out must be writeable; it is read-only")
    if not x.size:
        return
    reach = x.itemsize
    for step, count in sorted((abs(step), count) for step, count in zip(x.strides, x.shape, strict=True) if count > 1):
        if step < reach:
            raise ValueError(f"out must not overlap itself; got strides {x.strides} for shape {x.shape}")
        reach = step * count


def cumulative(name: str, x: Any, rows: int, of: str) -> NDArray:
    """x as a private int64 copy of B + 1 starts: 0 first, never decreasing, the last at most `rows`.

    Copied before it is checked, and the copy is what is used: nobody can change it in between.
    """
    starts = integers(name, x)
    if starts.ndim != 1 or not starts.size:
        raise ValueError(f"{name} must be (B + 1,) with B >= 0; got {starts.shape}")
    if starts[0] != 0:
        raise ValueError(f"{name} must begin with 0; got {starts[0]}")
    down = np.flatnonzero(starts[1:] < starts[:-1])
    if down.size:
        b = int(down[0])
        raise ValueError(f"{name} must not decrease; sequence {b} goes from {starts[b]} to {starts[b + 1]}")
    if starts[-1] > rows:
        raise ValueError(f"{name} must end within the {rows} rows of {of}; got {starts[-1]}")
    return starts


def packed_operands(q: Any, k: Any, v: Any) -> tuple[NDArray, NDArray, NDArray]:
    """q, k and v of packed sequences, (T, H, D), as arrays of one dtype that fit together."""
    q, k, v = floats("q", q), floats("k", k), floats("v", v)
    _one_dtype(q.dtype, k.dtype, v.dtype)
    if not q.ndim == k.ndim == v.ndim == 3:
        raise ValueError(f"q, k and v must be packed, (T, H, D); got {_shapes(q.shape, k.shape, v.shape)}")
    _fit(q.shape, k.shape, v.shape, "(T, H, D)")
    return q, k, v


def states(outs: Any, lses: Any) -> tuple[list[NDArray], list[NDArray]]:
    """States to be merged: at least one, all of one shape and dtype."""
    outs = [floats(f"outs[{n}]", o) for n, o in enumerate(outs)]
    lses = [floats(f"lses[{n}]", lse) for n, lse in enumerate(lses)]
    if not outs or len(outs) != len(lses):
        raise ValueError(f"outs and lses must be as many, and at least one; got {len(outs)} and {len(lses)}")
    for n, (o, lse) in enumerate(zip(outs, lses, strict=True)):
        if o.shape != outs[0].shape or o.ndim < 1 or lse.shape != o.shape[:-1]:
            raise ValueError(f"outs must have one shape (..., Dv) and lses its (...); outs[0] is {outs[0].shape}, "
                             f"outs[{n}] {o.shape}, lses[{n}] {lse.shape}; pairs (o, lse) are passed as merge_states(*zip(a, b))")
        if o.dtype != outs[0].dtype or lse.dtype != o.dtype:
            raise TypeError(f"outs and lses must have one dtype; outs[0] has {outs[0].dtype}, outs[{n}] {o.dtype}, "
                            f"lses[{n}] {lse.dtype}")
    return outs, lses


# ---- layers ------------------------------------------------------------------------------------------------------------
def layer_heads(heads: Any, kv_heads: Any) -> tuple[int, int]:
    """The heads of q, and those of k and v, which are as many if None."""
    Hq = integer("heads", heads, 1)
    Hkv = Hq if kv_heads is None else integer("kv_heads", kv_heads, 1)
    if Hq % Hkv:
        raise ValueError(f"heads must be a multiple of kv_heads; got {Hq} and {Hkv}")
    return Hq, Hkv


def channels_of_a_head(d_model: Any, heads: int) -> int:
    """D of heads that share d_model numbers."""
    if integer("d_model", d_model, 1) % heads:
        raise ValueError(f"d_model must be a multiple of heads; got {d_model} and {heads}")
    return d_model // heads


def weights(w: Mapping[str, Any], heads: Mapping[str, int], groups: tuple[str, ...]) -> dict[str, NDArray]:
    """The weights w_q, w_k, w_v (n, columns), and w_o if it is not None, that fit these heads.

    heads: how many share the columns of each; groups: "qkv" have one n, as they read the same words.
    """
    found = {x: floats(f"w_{x}", weight) for x, weight in w.items() if x != "o" or weight is not None}
    shapes = ", ".join(f"w_{x} {weight.shape}" for x, weight in found.items())
    if any(weight.ndim != 2 or not len(weight) for weight in found.values()):
        raise ValueError(f"weights must be (numbers of a word, columns); got {shapes}")
    if len({weight.dtype for weight in found.values()}) > 1:
        raise TypeError(f"weights must have one dtype; got {', '.join(f'w_{x} {weight.dtype}' for x, weight in found.items())}")
    for group in groups:
        if len({len(found[x]) for x in group}) > 1:
            raise ValueError(f"{' and '.join(f'w_{x}' for x in group)} must have as many rows; got {shapes}")
    for x, count in heads.items():
        if not found[x].shape[1] or found[x].shape[1] % count:
            raise ValueError(f"the columns of w_{x} must be shared by its {count} heads; got {shapes}")
    channels = {x: found[x].shape[1] // count for x, count in heads.items()}
    if channels["q"] != channels["k"]:
        raise ValueError(f"a head must have as many columns in w_q as in w_k; got {channels['q']} and {channels['k']}, {shapes}")
    if "o" in found and len(found["o"]) != heads["q"] * channels["v"]:
        raise ValueError(f"w_o must have a row for each channel of each head, {heads['q']} times {channels['v']}; got {shapes}")
    return found


def biases(b: Mapping[str, Any], w: Mapping[str, NDArray]) -> dict[str, NDArray | None]:
    """b_q, b_k, b_v and b_o, each None or (columns,) as the weights have."""
    found = {x: None if bias is None else floats(f"b_{x}", bias) for x, bias in b.items()}
    for x, bias in found.items():
        if bias is None:
            continue
        if x not in w:
            raise ValueError(f"b_{x} is added to a product with w_{x}; w_{x} is None")
        if bias.shape != w[x].shape[1:]:
            raise ValueError(f"b_{x} must be {w[x].shape[1:]}, a number for each column of w_{x}; got {bias.shape}")
        if bias.dtype != w[x].dtype:
            raise TypeError(f"b_{x} must have the weights' dtype; got {bias.dtype}, w_{x} has {w[x].dtype}")
    return found


def naming(there: Sequence[str], families: Sequence[Sequence[str]], prefix: str, names: Sequence[str]) -> Sequence[str]:
    """The first family of names of which all are there; names: all that the file has."""
    for family in families:
        if set(family) <= set(there):
            break
    else:
        where = f"under {prefix!r} are {_some(there)}" if there else f"nothing is under {prefix!r}; the file has {_some(names)}"
        raise ValueError(f"prefix must lead to weights named as one of these: {'; '.join(map(', '.join, families))}; {where}")
    norms = [name for name in there if name.startswith(("q_norm", "k_norm", "q_layernorm", "k_layernorm"))]
    if norms:
        raise ValueError(f"prefix must lead to a layer without norms of q and k, which are not computed; got {prefix!r} with "
                         f"{', '.join(norms)}")
    return family


def _some(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") if names else "nothing"


def tensor_of_floats(name: str, dtype: str) -> None:
    """Whether a tensor of that type, as safetensors calls it, says what its numbers are."""
    if dtype not in ("F64", "F32", "F16", "BF16"):
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16; got {dtype}, whose numbers mean something only "
                        f"together with others")


def texts(x: Sequence[Any], widths: Sequence[int], dtype: np.dtype) -> list[NDArray]:
    """Texts as (B, S, n) of one B; n is each one's width, and all have the layer's dtype."""
    names = ("x", "y")[:len(x)]
    found = [floats(name, text) for name, text in zip(names, x, strict=True)]
    shapes = ", ".join(f"{name} {text.shape}" for name, text in zip(names, found, strict=True))
    for name, text, width in zip(names, found, widths, strict=True):
        if text.ndim not in (2, 3) or text.shape[-1] != width:
            raise ValueError(f"{name} must be (S, {width}) or (B, S, {width}), as the layer's weights are; got {shapes}")
        if text.dtype != dtype:
            raise TypeError(f"{name} must have the weights' dtype; got {text.dtype}, the weights have {dtype}")
    if len({text.shape[:-2] for text in found}) > 1:
        raise ValueError(f"x and y must have one batch size; got {shapes}")
    return [text if text.ndim == 3 else text[None] for text in found]


# ---- rotary embeddings -----------------------------------------------------------------------------------------------------
# Greater angles have lost, in float64, as much as float32 rounds: 2^28 times 2^-53 twice, of a frequency and of the product.
FAR = 1 << 28

_POSITIVE = ("a positive finite number", lambda x: 0 < x < math.inf)
_ENTRIES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "rope_theta": ("a finite number above 1", lambda x: 1 < x < math.inf),
    "partial_rotary_factor": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "original_max_position_embeddings": ("a finite number above 1", lambda x: 1 < x < math.inf),
    "mscale": ("a finite number, not negative", lambda x: 0 <= x < math.inf),
    "mscale_all_dim": ("a finite number, not negative", lambda x: 0 <= x < math.inf),
}


def theta(x: Any, by_scaling: float | None) -> float:
    """The base of the frequencies: the argument, the dictionary's, or 10000."""
    if x is None:
        return 10000.0 if by_scaling is None else by_scaling
    value = number("theta", x, *_ENTRIES["rope_theta"])
    if by_scaling not in (None, value):
        raise ValueError(f"theta must not be another than the scaling's rope_theta; got {value} and {by_scaling}")
    return value


def channels(x: Any, scaling: Mapping[str, Any]) -> int | None:
    """How many channels are turned; None: what D and the scaling say."""
    if x is not None and "partial_rotary_factor" in scaling:
        raise ValueError(f"channels must not be given where the scaling has a partial_rotary_factor; got {x!r}")
    if x is not None and integer("channels", x, 2) % 2:
        raise ValueError(f"channels must be even, as they are turned in pairs; got {x}")
    return x if x is None else operator.index(x)


def scaling(x: Any, kinds: Mapping[str, Mapping[str, bool]]) -> dict[str, Any]:
    """A dictionary of a model's config, without what is None, checked; kinds: what each may have, and whether it must."""
    try:
        given = {} if x is None else {name: value for name, value in dict(x).items() if value is not None}
    except (TypeError, ValueError):
        raise TypeError(f"scaling must be a dictionary, as config.json has it; got {type(x).__name__}") from None
    kind = given.pop("rope_type", given.get("type", "default"))
    given.pop("type", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"scaling's rope_type must be one of {', '.join(kinds)}; got {kind!r}")
    most, entries = given.pop("max_position_embeddings", None), kinds[kind]
    if most is not None:
        most = number("scaling's max_position_embeddings", most, *_POSITIVE)
        known = given.get("original_max_position_embeddings")
        if kind == "dynamic":
            given.setdefault("original_max_position_embeddings", most)
        elif "factor" in entries and known:
            given.setdefault("factor", most / number("scaling's original_max_position_embeddings", known, *_POSITIVE))
    missing = [name for name, must in entries.items() if must and name not in given]
    if missing:
        raise ValueError(f"scaling of rope_type {kind!r} must have {', '.join(missing)}; got {', '.join(given) or 'nothing'}")
    allowed = ("rope_theta", "partial_rotary_factor", *entries)
    unknown = [name for name in given if name not in allowed]
    if unknown:
        raise ValueError(f"scaling of rope_type {kind!r} may have {', '.join(allowed)}; got {', '.join(map(str, unknown))}")
    found = {name: _entry(name, value) for name, value in given.items()}
    if kind == "llama3" and not found["low_freq_factor"] < found["high_freq_factor"]:
        raise ValueError(f"scaling's low_freq_factor must be below its high_freq_factor; got {found['low_freq_factor']} and "
                         f"{found['high_freq_factor']}")
    return found if kind == "default" else {"rope_type": kind, **found}


def _entry(name: str, x: Any) -> Any:
    """A number of a scaling; several in a tuple; truncate is true or false."""
    if name == "truncate":
        return bool(x)
    if name in ("short_factor", "long_factor"):
        if not isinstance(x, Sequence) or isinstance(x, str):
            raise TypeError(f"scaling's {name} must be a list, a number for each pair of channels; got {type(x).__name__}")
        return tuple(number(f"each of scaling's {name}", one, *_POSITIVE) for one in x)
    return number(f"scaling's {name}", x, *_ENTRIES.get(name, _POSITIVE))


def divisors(name: str, x: tuple[float, ...], n: int) -> NDArray:
    """longrope's numbers for the pairs of n channels."""
    if len(x) != n // 2:
        raise ValueError(f"scaling's {name} must have a number for each pair of the {n} channels that are turned; got {len(x)}")
    return np.array(x)


def turned_channels(channels: int | None, scaling: Mapping[str, Any], shape: Shape) -> int:
    """How many channels of x (..., S, D) are turned."""
    if len(shape) < 2:
        raise ValueError(f"x must be (..., S, D); got {shape}")
    D = shape[-1]
    n = channels if channels is not None else int(D * scaling.get("partial_rotary_factor", 1))
    if n > D:
        raise ValueError(f"channels must be at most D; got {n} for x {shape}")
    if n % 2:
        raise ValueError(f"D must be even, or `channels` say how many are turned, in pairs; got {n} for x {shape}")
    return n


def positions(x: Any, shape: Shape) -> NDArray[np.int64] | None:
    """Where the words of x (..., S, D) stand: (S,) or (B, S), and not too far."""
    if x is None:
        return None
    found = integers("positions", x)
    if found.shape != shape[-2:-1] and (len(shape) < 3 or found.shape != (shape[0], shape[-2])):
        raise ValueError(f"positions must be (S,) or (B, S) for x (B, ..., S, D); got {found.shape} for x {shape}")
    if found.size and (found.max() > FAR or found.min() < -FAR):
        far = found.flat[np.argmax(np.abs(found))]
        raise ValueError(f"positions must be from -2^28 to 2^28; got {far}")
    return found


# ---- what masks are made of --------------------------------------------------------------------------------------------
def booleans(x: Any) -> NDArray[np.bool_]:
    """x as a boolean array."""
    seen = plain("mask", x)
    if seen.dtype != bool:
        hint = {"f": "; what is added to the scores is a bias", "i": "; use x != 0", "u": "; use x != 0",
                "U": f"; not its name, but the mask itself: mask=fastattn.{x}", "O": "; several are joined with &"}
        if isinstance(x, type):
            hint["O"] = f"; call it with its arguments: mask={x.__name__}(...)"
        what = type(x).__name__ if seen.dtype == object else f"an array of {seen.dtype}"
        raise TypeError(f"mask must be a mask (causal, window(left, right), ...) or a boolean array; got {what}"
                        f"{hint.get(seen.dtype.kind, '')}")
    return seen


def integers(name: str, x: Any) -> NDArray[np.int64]:
    """A private copy of integers that nobody can change, taken before anything is checked."""
    copy = np.array(plain(name, x))
    if copy.dtype.kind not in "iu" and copy.size:
        raise TypeError(f"{name} must be integers; got {type(x).__name__ if copy.dtype == object else copy.dtype}")
    if copy.dtype == np.uint64 and copy.size and copy.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must be below 2^63; got {copy.max()}")
    return frozen(copy)


def frozen(x: NDArray) -> NDArray[np.int64]:
    """x over bytes, which NumPy never makes writeable."""
    return np.ndarray(x.shape, np.int64, x.astype(np.int64).tobytes())


def per_sequence(name: str, x: Any) -> NDArray[np.int64]:
    """(B,) integers, none negative."""
    numbers = integers(name, x)
    if numbers.ndim != 1:
        raise ValueError(f"{name} must be (B,), one integer for each sequence; got {numbers.shape}")
    _refuse(numbers < 0, numbers, f"{name} must not be negative")
    return numbers


def at_most(name: str, x: NDArray, what: str, most: int) -> None:
    _refuse(x > most, x, f"{name} must be at most the {what} = {most}")


def _refuse(wrong: NDArray, x: NDArray, rule: str) -> None:
    if wrong.any():
        b = int(wrong.argmax())
        raise ValueError(f"{rule}; sequence {b} has {x[b]}")


def integer(name: str, x: Any, least: int) -> int:
    """One integer that is not too small."""
    try:
        n = operator.index(x)
    except TypeError:
        n = None
    if n is None or isinstance(x, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer; got {type(x).__name__}")
    if n < least:
        raise ValueError(f"{name} must be at least {least}; got {n}")
    return n


def window_side(name: str, x: Any) -> int | None:
    """How many keys a window has on one side; None, of which -1 is another name: all."""
    n = -1 if x is None else integer(name, x, -1)
    return None if n == -1 else n


def stand_together(rows: NDArray, new: NDArray) -> None:
    """Raise if an id of a row begins a segment (new) twice."""
    b, j = np.nonzero(new)
    ids = rows[b, j]
    order = np.lexsort((ids, b))
    b, j, ids = b[order], j[order], ids[order]
    again = np.flatnonzero((b[1:] == b[:-1]) & (ids[1:] == ids[:-1]))
    if again.size:
        n = again[0]
        raise ValueError(f"segment_ids: equal ids must stand together; in row {b[n]} a segment of id {ids[n]} begins at "
                         f"{j[n]} and another at {j[n + 1]}")


# ---- what is explained and drawn ---------------------------------------------------------------------------------------
def one_text(name: str, x: Any, axes: tuple[int, ...], layout: str) -> NDArray:
    """x without a batch of one; axes: how many it may have besides."""
    x = floats(name, x)
    if x.ndim == max(axes) + 1 and len(x) == 1:
        return x[0]
    if x.ndim not in axes:
        raise ValueError(f"{name} must be of one text, {layout}; got {x.shape}" +
                         (f"; explain them one by one, as in {name}[b]" if x.ndim == max(axes) + 1 else ""))
    return x


def layer_reads(layer: Any, kinds: tuple[type, ...], other: Any, wants: Callable[[Any], bool]) -> None:
    """Whether a layer is one, and has what it reads besides x: another text y or None."""
    if not isinstance(layer, kinds):
        got = f"{layer.__name__} itself" if isinstance(layer, type) else type(layer).__name__
        raise TypeError(f"layer must be a {' or a '.join(kind.__name__ for kind in kinds)}; got {got}")
    if wants(layer) != (other is not None):
        raise TypeError(f"y must be the words that x looks at if layer is a CrossAttention, and None if not; layer is a "
                        f"{type(layer).__name__}, y {'None' if other is None else type(other).__name__}")


def words(name: str, x: Any, count: int, of: str) -> tuple[str, ...]:
    """x as one word for each place; 1, 2, 3, ... if there are none."""
    if x is None:
        return tuple(str(n + 1) for n in range(count))
    if isinstance(x, str):
        raise TypeError(f"{name} must be a list of words, one for each of the {of}; got one str, {x[:40]!r}")
    found = tuple(x)
    for n, word in enumerate(found):
        if not isinstance(word, str):
            raise TypeError(f"{name} must be words, str; {name}[{n}] is {type(word).__name__}")
    if len(found) != count:
        raise ValueError(f"{name} must be as many as the {of}; got {len(found)} for {count}")
    return found


def places(name: str, x: Any, count: int, of: str) -> NDArray[np.int64]:
    """x, one integer or several, as places of `count`; negative ones count from the end."""
    found = np.atleast_1d(integers(name, x))
    if found.ndim != 1:
        raise ValueError(f"{name} must be one integer or a list of them; got {found.shape}")
    wrong = (found < -count) | (found >= count)
    if wrong.any():
        raise ValueError(f"{name} must be from {-count} to {count - 1}, as there are {count} {of}; got {found[wrong][0]}")
    return np.where(found < 0, found + count, found)


def place(name: str, x: Any, count: int, of: str) -> int:
    """x, one integer, as a place of `count`; a negative one counts from the end."""
    return int(places(name, integer(name, x, -sys.maxsize), count, of)[0])


def chosen(name: str, x: Any, rows: NDArray[np.int64]) -> int:
    """x as one of the rows that were chosen."""
    if (found := integer(name, x, 0)) not in rows:
        raise ValueError(f"{name} must be one of the rows that are kept, {np.array2string(rows, threshold=8)}; got {found}")
    return found


def scores_kept(rows: int, Hq: int, Sk: int, most: int) -> None:
    """Whether so many scores may be kept."""
    asked = rows * Sk * Hq
    if asked > most:
        raise ValueError(f"rows: a picture of {rows:,} rows x {Sk:,} keys x {Hq} heads has {asked:,} scores, and at most "
                         f"{most:,} are kept; choose at most {most // (Hq * Sk):,} rows, as in rows=range(0, {rows}, "
                         f"{-(-asked // most)}). Result, entropy and largest weights are there of every row, whatever is chosen")


def drawable(sizes: Sequence[int]) -> None:
    """Whether there is anything to draw; sizes are heads, rows and keys."""
    if 0 in sizes:
        raise ValueError("there is nothing to draw: of {} heads, {} rows and {} keys none may be 0".format(*sizes))


def fits_page(Hq: int, Sq: int, Sk: int, most: int, words: int) -> None:
    """Whether a page can hold so many words, and at least one weight for each row of each head."""
    if Hq * Sq > most or max(Sq, Sk) > words:
        fit = min(most // Hq, words)
        raise ValueError(f"a page holds at most {words:,} words and {most:,} words x heads; got {Sq:,} words that look at "
                         f"{Sk:,}, {Hq} heads. Explain a part of the text, as in q[:, :{fit}], or draw some rows with plot()")


def extra(module: str, name: str) -> Any:
    """A module that an extra of the package brings."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this needs {module.split('.')[0]}: pip install 'fastattn[{name}]'") from error
