"""Micro-kernels: score, softmax, mix. Registers only; no masks, threads or checks."""
