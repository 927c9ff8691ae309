"""What Numba compiles for: vector width, registers, instructions; and what the machine is called, for reports.

Everything follows from *Numba's* target and not from the processor: NUMBA_CPU_NAME, NUMBA_CPU_FEATURES and
NUMBA_ENABLE_AVX may ask for less than there is, and LLVM ends the process when it meets a vector instruction that its
target does not have.

    target          vector bytes   registers
    AVX-512 F, VL, DQ         64          32
    AVX, AVX2                 32          16
    SSE2, any other           16          16
    AArch64                   16          32
"""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import codegen, config

LINE = 64                       # bytes of a cache line, on all of these


@dataclass(frozen=True)
class Target:
    """The machine that code is compiled for, as LLVM names it."""

    triple: str
    cpu: str
    features: str

    def has(self, feature: str) -> bool:
        """Whether code may use `feature` ("avx512f", "fma", ...)."""
        return f"+{feature}" in self.features.split(",")

    @functools.cached_property
    def is_x86(self) -> bool:
        return self.triple.startswith(("x86_64", "i386", "i686"))

    @functools.cached_property
    def is_arm64(self) -> bool:
        return self.triple.startswith(("aarch64", "arm64"))

    @functools.cached_property
    def vector_bytes(self) -> int:
        if self.has("avx512f") and self.has("avx512vl") and self.has("avx512dq"):
            return 64
        return 32 if self.has("avx") else 16

    @functools.cached_property
    def splits_floats(self) -> bool:
        """Whether vreduceps and vscalefps exist and take one or two slots. On Zen 4 a vscalefps takes an FMA unit for two
        cycles, and the additions that it saves have units of their own."""
        return self.vector_bytes == 64 and not self.cpu.startswith("znver")

    @functools.cached_property
    def has_fma(self) -> bool:
        return self.is_arm64 or self.has("fma")

    @functools.cached_property
    def registers(self) -> int:
        return 32 if self.vector_bytes == 64 or self.is_arm64 else 16


def numba_target() -> Target:
    """The target that Numba will hand to LLVM: what the variables say, else this machine."""
    features = config.CPU_FEATURES
    if features is None:
        features = codegen.get_host_cpu_features()
    return Target(llvm.get_process_triple(), config.CPU_NAME or llvm.get_host_cpu_name(), features)


TARGET = numba_target()


def cpu_model() -> str:
    """The processor's own name, for reports."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return TARGET.cpu
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else TARGET.cpu


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, str]:
    """What was found, for people: processor, target, vectors, versions."""
    vectors = f"{8 * TARGET.vector_bytes} bits, {TARGET.registers} registers"
    return {
        "processor": f"{cpu_model()}, {cores()} cores for this process",
        "target": f"{TARGET.cpu}, {TARGET.triple}",
        "vectors": vectors + (", fused multiply-add" if TARGET.has_fma else ", no fused multiply-add"),
        "exp2": "vreduceps, vscalefps" if TARGET.splits_floats else "by exponent bits",
        "versions": f"Python {platform.python_version()}, Numba {numba.__version__}, NumPy {np.__version__}",
    }
