"""The one way from Python to machine code, and our cache of it.

`kernel` marks a function that other kernels call, `inlined` one that becomes part of them. `native` compiles an entry
point, a kernel that Python calls, for one list of argument types, and gives its address; that tuple alone tells one compiled
variant from another.

Options, for every kernel: nogil by nature (entry points are plain C functions, called through ctypes, which releases the
GIL), error_model="numpy" (no ZeroDivisionError branches), no bounds checks, no fastmath flag: with nnan and ninf a mask of
-inf is undefined, and reassoc folds the (x + magic) - magic that rounds in exp2.

The cache
    Numba's own cache=True forgets callees in other files, decorator options and globals, and its index file races
    between processes. Ours holds one file for each (entry point, argument types, target, source of the whole package,
    versions of Numba, llvmlite, NumPy and Python, every NUMBA_* variable). A file is
    SHA-256(key + content) + content, written under a temporary name and renamed; there is no index. The directory must
    be ours, not a link, and not writable by others, since who can write it can run code in this process. Whatever goes wrong
    means "compile", never an exception.
    The content is an ELF object, loaded by LLVM without Numba's compiler (about 2 ms; typing and lowering take seconds).
    It may refer to no symbol but those in SYMBOLS: LLVM ends the process when it meets an unknown one.

    FASTATTN_CACHE=0 turns it off, FASTATTN_CACHE=<directory> moves it; default: $XDG_CACHE_HOME/fastattn or
    ~/.cache/fastattn.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import codegen, compiler, config, dispatcher, registry, typed_passes, untyped_passes
from numba.core.compiler_lock import global_compiler_lock

from .machine import TARGET

OPTIONS = {"nopython": True, "nogil": True, "error_model": "numpy", "boundscheck": False,
           "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

# What compiled code may ask of the process: C's memory functions, which LLVM makes of loops, and its logarithm.
SYMBOLS = frozenset({"memset", "memcpy", "memmove", "log", "log2"})

_PACKAGE = Path(__file__).parent


def kernel(function: Callable) -> Callable:
    """A function that other kernels may call; compiled into them, never called from Python.

    A dispatcher of our own making, and not @njit, which NUMBA_DISABLE_JIT=1 turns into nothing.
    """
    return _Dispatcher(function, targetoptions=OPTIONS)


def inlined(function: Callable) -> Callable:
    """A kernel that becomes part of its callers whatever LLVM thinks of it: a call of 14 or 25 arguments takes 30 cycles or
    more, which shows where what is called takes 400 (B 32, S 64, D 32 on one core of a Zen 3: 28 % faster)."""
    return _Dispatcher(function, targetoptions={**OPTIONS, "forceinline": True})


# ---- the cache -----------------------------------------------------------------------------------------------------
def source_stamp() -> str:
    """A hash of every source file of the package and of the versions that decide what a compiler makes of it."""
    digest = hashlib.sha256(repr((numba.__version__, llvmlite.__version__, np.__version__, sys.version)).encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        source = path.read_bytes()
        digest.update(repr((path.relative_to(_PACKAGE).as_posix(), len(source))).encode() + source)
    return digest.hexdigest()


# Taken before the package's modules load and again before the first use of the cache: if an upgrade changed the files
# in between, what runs is not what lies on disk, and there is no cache.
_STAMP = source_stamp()


def private_directory(path: Path) -> Path | None:
    """`path`, made if need be with rights for its owner only; None unless it is a directory of ours that others cannot write."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = path.lstat()
        ours = not hasattr(os, "geteuid") or state.st_uid == os.geteuid()
        if stat.S_ISDIR(state.st_mode) and ours and not state.st_mode & 0o022:
            return path
    except OSError:
        pass
    return None


def cache_directory() -> Path | None:
    """Where compiled code is kept; None if FASTATTN_CACHE=0, or if no private directory is to be had."""
    asked = os.environ.get("FASTATTN_CACHE", "")
    if asked == "0":
        return None
    try:
        if asked:
            return private_directory(Path(asked).expanduser())      # a Dockerfile's ENV leaves ~ as it is
        home = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not home.is_absolute():                  # then, says XDG, it is to be ignored
            home = Path.home() / ".cache"
        return private_directory(home / "fastattn") if home.is_absolute() else None
    except (RuntimeError, ValueError):              # no home; a NUL in the path
        return None


@dataclass
class Counts:
    """What `native` did in this process."""

    loaded: int = 0
    compiled: int = 0


_counts = Counts()


def cache_info() -> dict[str, object]:
    """The cache of compiled code: its directory (None: off), files and bytes there, entry points loaded and compiled."""
    directory = cache_directory()
    files = list(directory.glob("*.bin")) if directory else []
    return {
        "directory": str(directory) if directory else None,
        "files": len(files),
        "bytes": sum(f.stat().st_size for f in files if f.exists()),
        "loaded": _counts.loaded,
        "compiled": _counts.compiled,
    }


def _cache_key(name: str, types: tuple) -> bytes:
    steering = sorted((k, v) for k, v in os.environ.items() if k.startswith("NUMBA_"))
    return repr((name, types, TARGET, OPTIONS, _STAMP, steering)).encode()


def _read(path: Path, key: bytes) -> tuple[str, bytes] | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    check, payload = content[:32], content[32:]
    if hashlib.sha256(key + payload).digest() != check:
        return None
    symbol, _, code = payload.partition(b"\n")
    return symbol.decode(), code


def _write(path: Path, key: bytes, symbol: str, code: bytes) -> None:
    payload = symbol.encode() + b"\n" + code
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(key + payload).digest() + payload)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError:                                 # a full disk, a directory that went away: run without
        pass


# ---- machine code --------------------------------------------------------------------------------------------------
# Numba optimises and compiles each function by itself, with all that it calls, so a kernel six calls down is compiled six
# times (three times as long). These classes leave LLVM's work to the entry point, once for all that it calls.
class _Library(codegen.AOTCodeLibrary):
    """Code that is linked as it is ..."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def machine_code(self) -> bytes:
        """... until the whole of it is optimised."""
        self.finalize()
        super()._optimize_final_module()
        declared = {f.name for f in self._final_module.functions if f.is_declaration}
        foreign = {name for name in declared if not name.startswith("llvm.")} - SYMBOLS
        if foreign:
            raise RuntimeError(f"{self.name} refers to {sorted(foreign)}, which compiled code may not")
        return self.emit_native_object()


class _Codegen(codegen.AOTCPUCodegen):
    """Code for this process: the target machine that Numba's JIT has, and libraries of ours."""

    _library_class = _Library

    def _customize_tm_features(self) -> str:
        return TARGET.features

    def _customize_tm_options(self, options: dict) -> None:
        options.update(cpu=TARGET.cpu, features=TARGET.features, jit=True, codemodel="jitdefault",
                       reloc="static" if TARGET.is_x86 else "default")


class _Target(registry.CPUTarget):
    """Numba's CPU target, with our code generation."""

    @functools.cached_property
    def target_context(self) -> Any:
        return registry.cpu_target.target_context.subtarget(_internal_codegen=_Codegen("fastattn"))

    @property
    def typing_context(self) -> Any:
        return registry.cpu_target.typing_context


_target = _Target("cpu")


class _Compiler(dispatcher._FunctionCompiler):
    def _customize_flags(self, flags: Any) -> Any:
        flags.no_compile = True                     # no executable of each function
        return flags

    def _compile_core(self, args: tuple, return_type: Any) -> Any:
        result = super()._compile_core(args, return_type)
        key = object()                              # what callers know it by; elsewhere the executable's address
        self.targetdescr.target_context.insert_user_function(key, result.fndesc, [result.library])
        return result._replace(entry_point=key)


# Numba's own list has as many passes again, for closures, rewrites and parallel loops, and after each it looks where every
# variable is used last: together a fifth of the time. A branch that an argument's type decides, `if tail is None`, is cut
# off before types are inferred: once as it stands, once where the variable was assigned to.
PASSES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.DeadBranchPrune,
    untyped_passes.ReconstructSSA,
    untyped_passes.DeadBranchPrune,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.IRLegalization,
    typed_passes.AnnotateTypes,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)


class _Pipeline(compiler.CompilerBase):
    def define_pipelines(self) -> list[compiler.PassManager]:
        passes = compiler.PassManager("fastattn")
        for one in PASSES:
            passes.add_pass(one, one.__name__)
        passes.finalize()
        return [passes]


def _compiler(function: Callable, options: dict = OPTIONS) -> _Compiler:
    return _Compiler(function, _target, options, {}, _Pipeline)


class _Dispatcher(dispatcher.Dispatcher):
    targetdescr = _target

    def __init__(self, function: Callable, targetoptions: dict) -> None:
        super().__init__(function, targetoptions=targetoptions)
        self._compiler = _compiler(function, targetoptions)

    def get_call_template(self, args: tuple, kws: dict) -> tuple:
        # Numba would make a function for each literal that it is called with, and for each guess of a type that it has
        # on the way: 24 of 54 functions, and a third of the time.
        return super().get_call_template(tuple(map(numba.types.unliteral, args)), kws)

    def add_overload(self, cres: Any) -> None:
        self.overloads[tuple(cres.signature.args)] = cres       # for callers that are compiled; none is Python


@global_compiler_lock
def _compile(function: Callable, types: tuple) -> tuple[str, bytes]:
    """The symbol and the object code of `function` for arguments of `types`."""
    # NUMBA_DISABLE_JIT=1 would turn Numba's own min and max, which it compiles by @jit, into functions that it cannot call.
    disabled, config.DISABLE_JIT = config.DISABLE_JIT, 0
    try:
        result = _compiler(function).compile(types, numba.types.int64)
        return result.fndesc.llvm_func_name, result.library.machine_code()
    finally:
        config.DISABLE_JIT = disabled


def _machine() -> llvm.TargetMachine:
    """The target machine as Numba sets it up for code that is loaded into this process."""
    return llvm.Target.from_triple(TARGET.triple).create_target_machine(
        cpu=TARGET.cpu, features=TARGET.features, opt=3, reloc="static" if TARGET.is_x86 else "default",
        codemodel="jitdefault", jit=True)


def _load(symbol: str, code: bytes) -> tuple[int, object]:
    """The address of `symbol` in object code made ready to run, and what must live as long as the code is used."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine.get_function_address(symbol), engine


_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    # No fork while code is compiled or loaded: the child would wait for a thread that it does not have.
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

_engines: list[object] = []                         # code must outlive every caller, so it is never unloaded
_addresses: dict[tuple, int] = {}
_stamp_holds: bool | None = None


def native(function: Callable, types: tuple) -> int:
    """The address of `function` compiled for `types`, as int32 f(int64 *result, void **unused, arguments...).

    `function` returns an int64 and raises nothing; it may call kernels. Loaded from the cache where that has it.
    """
    global _stamp_holds
    key = (function.__module__, function.__qualname__, types)
    address = _addresses.get(key)
    if address is not None:
        return address
    with _lock:
        if key in _addresses:
            return _addresses[key]
        if _stamp_holds is None:
            _stamp_holds = source_stamp() == _STAMP
        directory = cache_directory() if _stamp_holds else None
        text = _cache_key(f"{function.__module__}.{function.__qualname__}", types)
        path = directory / (hashlib.sha256(text).hexdigest() + ".bin") if directory else None
        found = _read(path, text) if path else None
        if found is None:
            found = _compile(function, types)
            _counts.compiled += 1
            if path:
                _write(path, text, *found)
        else:
            _counts.loaded += 1
        address, engine = _load(*found)
        _engines.append(engine)
        _addresses[key] = address
        return address
