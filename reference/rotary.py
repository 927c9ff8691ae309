"""Where a word stands, as an angle: rotary position embedding, and how models stretch it to longer texts."""

from __future__ import annotations

import numpy as np


class rope:
    """x with each pair (a, b) of channels turned by the angle position * frequency. The arguments are fastattn's."""

    def __init__(self, theta=None, scaling=None, *, channels=None, interleaved=False):
        self.scaling = {} if scaling is None else scaling
        self.theta = self.scaling.get("rope_theta", 10000.0) if theta is None else theta
        self.channels, self.interleaved = channels, interleaved

    def __call__(self, x, positions=None):
        x = np.array(x, float)
        S, D = x.shape[-2:]
        p = np.arange(S) if positions is None else np.asarray(positions)
        n = int(D * self.scaling.get("partial_rotary_factor", 1)) if self.channels is None else self.channels
        length = p.max(initial=-1) + 1
        f, factor = FREQUENCIES[self.scaling.get("rope_type", self.scaling.get("type", "default"))](
            self.theta, np.arange(n // 2), n, length, self.scaling)

        angle = p[..., None] * f                                            # (S, n / 2) or (B, S, n / 2)
        if p.ndim == 2:
            angle = angle.reshape(len(p), *[1] * (x.ndim - 3), S, n // 2)
        cos, sin = factor * np.cos(angle), factor * np.sin(angle)
        # Which channels are pairs:    0 1 2 3 with 4 5 6 7, or interleaved    0 2 4 6 with 1 3 5 7
        first, second = (slice(0, n, 2), slice(1, n, 2)) if self.interleaved else (slice(0, n // 2), slice(n // 2, n))
        a, b = x[..., first].copy(), x[..., second].copy()
        x[..., first] = a * cos - b * sin
        x[..., second] = b * cos + a * sin
        return x


# ---- frequencies of the pairs c, and what cos and sin are multiplied by ----------------------------------------------------
def default(theta, c, n, length, given):
    """RoFormer, arXiv:2104.09864: the first pair turns by 1 from word to word, the last almost by 1 / theta."""
    return theta ** (-2 * c / n), 1


def linear(theta, c, n, length, given):
    """Position interpolation, arXiv:2306.15595: p / factor instead of p."""
    return theta ** (-2 * c / n) / given["factor"], 1


def dynamic(theta, c, n, length, given):
    """NTK-aware, for each length anew: the last pair, c = n/2 - 1, is slower by (factor length / L - (factor - 1))."""
    L = given.get("original_max_position_embeddings", given.get("max_position_embeddings"))
    slower = given["factor"] * max(length, L) / L - (given["factor"] - 1)
    return theta ** (-2 * c / n) * slower ** (-2 * c / max(n - 2, 1)), 1


def llama3(theta, c, n, length, given):
    """Llama 3.1: what turns more than `high` times in the old length stays, less than `low` times is divided by factor."""
    f, low, high = theta ** (-2 * c / n), given["low_freq_factor"], given["high_freq_factor"]
    turns = given["original_max_position_embeddings"] / (2 * np.pi / f)
    between = (turns - low) / (high - low)
    smooth = (1 - between) * f / given["factor"] + between * f
    return np.where(turns > high, f, np.where(turns < low, f / given["factor"], smooth)), 1


def yarn(theta, c, n, length, given):
    """arXiv:2309.00071, section 3.2: fast pairs stay, slow ones are divided, with a ramp; section 3.3: scores are sharpened."""
    L = given["original_max_position_embeddings"]
    factor = stretch(given)
    # f L = 2 pi turns, solved for c
    low, high = (np.log(L / (2 * np.pi * given.get(*turns))) / np.log(theta) * n / 2
                 for turns in (("beta_fast", 32), ("beta_slow", 1)))
    if given.get("truncate", True):
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0), min(high, n - 1)
    ramp = np.clip((c - low) / (high - low if high != low else 0.001), 0, 1)

    def sharper(m):
        return 1 + 0.1 * m * np.log(max(factor, 1))

    m, m_all = given.get("mscale"), given.get("mscale_all_dim")
    sharp = sharper(m) / sharper(m_all) if m and m_all else sharper(1)
    f = theta ** (-2 * c / n)
    return f * (1 - ramp) + f / factor * ramp, given.get("attention_factor", sharp)


def longrope(theta, c, n, length, given):
    """arXiv:2402.13753: each pair has its own divisor, found by search; another one for long texts."""
    L = given["original_max_position_embeddings"]
    divisor = np.array(given["long_factor" if length > L else "short_factor"])
    sharp = 1 if "attention_factor" in given else np.sqrt(1 + np.log(max(stretch(given), 1)) / np.log(L))
    return theta ** (-2 * c / n) / divisor, given.get("attention_factor", sharp)


def stretch(given):
    """How many times longer texts may be than the model knew."""
    if "factor" in given:
        return given["factor"]
    return given["max_position_embeddings"] / given["original_max_position_embeddings"]


FREQUENCIES = {"default": default, "linear": linear, "dynamic": dynamic, "llama3": llama3, "yarn": yarn, "longrope": longrope}
