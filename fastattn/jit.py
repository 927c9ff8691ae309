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
from typing import Any, ClassVar

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import (
    cgutils,
    codegen,
    compiler,
    compiler_machinery,
    config,
    cpu,
    dispatcher,
    imputils,
    interpreter,
    ir_utils,
    registry,
    ssa,
    target_extension,
    transforms,
    typed_passes,
    typing,
    untyped_passes,
    utils,
)
from numba.core.analysis import dead_branch_prune
from numba.core.compiler_lock import global_compiler_lock
from numba.core.typing import templates
from numba.extending import models, register_model

from .machine import TARGET

OPTIONS = {"nopython": True, "nogil": True, "error_model": "numpy", "boundscheck": False,
           "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}

# What compiled code may ask of the process: C's memory functions, which LLVM makes of loops, and its logarithm.
SYMBOLS = frozenset({"memset", "memcpy", "memmove", "log", "log2"})

# Whether this is Numba's interior as the section "machine code" knows it. Another version gets Numba's own contexts and passes:
# a first call of 9 s instead of 6 (Zen 3, one busy core; figures below are shares of those 9), but nothing that may have moved.
KNOWN = numba.__version__.startswith("0.68.")

_PACKAGE = Path(__file__).parent


def kernel(function: Callable) -> Kernel:
    """A function that other kernels may call; compiled into them, never called from Python.

    Not @njit, which NUMBA_DISABLE_JIT=1 turns into nothing.
    """
    return Kernel(function, OPTIONS)


def inlined(function: Callable) -> Kernel:
    """A kernel that becomes part of its callers whatever LLVM thinks of it: a call of 14 or 25 arguments takes 30 cycles or
    more, which shows where what is called takes 400 (B 32, S 64, D 32 on one core of a Zen 3: 28 % faster)."""
    return Kernel(function, {**OPTIONS, "forceinline": True})


class Kernel:
    """What a kernel's name stands for: Numba makes its dispatcher when it meets the name in a function that it compiles.

    At import 36 of them took 20 ms.
    """

    def __init__(self, function: Callable, options: dict) -> None:
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        self.py_func, self.options = function, options

    @functools.cached_property
    def dispatcher(self) -> Any:
        return _Dispatcher(self.py_func, targetoptions=self.options)

    @property
    def _numba_type_(self) -> Any:
        return numba.types.Dispatcher(self.dispatcher)


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
# times (three times as long). These classes leave LLVM's work to the entry point, once for all that it calls. Joining the code
# of a function and of what it calls with every function on the way, Numba's habit, would still take 8 %.
#
# All of it belongs to a target of our own (`_Kernels`) with contexts of our own, so other users of Numba in this process meet
# nothing of it, and it is used with the compiler's lock held.
class _Library(codegen.AOTCodeLibrary):
    """A function's code as text, which is put together with that of all that it calls ..."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._texts: list[str] = []

    def add_ir_module(self, ir_module: Any) -> None:
        self._texts.append(cgutils.normalize_ir_text(str(ir_module)))

    def add_linking_library(self, library: Any) -> None:
        if library not in self._linking_libraries:
            self._linking_libraries.append(library)

    def _all(self) -> list[Any]:
        """It, and what it calls."""
        found = [self]
        for library in found:
            found += [called for called in library._linking_libraries if called not in found]
        return found

    def machine_code(self) -> bytes:
        """... when the entry point asks for it: optimised once, as a whole."""
        module, called = self._final_module, llvm.parse_assembly("")
        libraries = self._all()
        for library in libraries:
            for text in getattr(library, "_texts", ()):
                (module if library is self else called).link_in(llvm.parse_assembly(text))
        for function in called.functions:
            if not function.is_declaration:
                function.linkage = "linkonce_odr"           # may go where it has been inlined
        module.link_in(called)
        for library in libraries:
            if not isinstance(library, _Library):           # Numba's own, where it is not KNOWN
                module.link_in(library._get_module_for_linking(), preserve=True)
        module.data_layout = self._codegen._data_layout
        self._optimize_final_module()
        module.verify()
        self._finalize_final_module()
        declared = {f.name for f in module.functions if f.is_declaration}
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


class _Kernels(target_extension.CPU):
    """Our name among Numba's targets, by which it asks for this module's contexts and dispatchers, and not for its own."""


class _Function(numba.types.Function):
    """A function of Numba's, or an intrinsic: its signature for a list of types is looked for once, and not in every round of
    inference and again for the code: 230 times and not 4,100, 12 %."""

    def __init__(self, templates: Any) -> None:
        super().__init__(templates)
        self._signatures: dict[tuple, Any] = {}

    def augment(self, other: Any) -> _Function | None:
        return _Function(self.templates + other.templates) if other.typing_key == self.typing_key else None

    def get_call_type(self, context: Any, args: tuple, kws: dict) -> Any:
        if kws:
            return super().get_call_type(context, args, kws)
        key = tuple(args)
        signature = self._signatures.get(key)
        if signature is None:
            signature = self._signatures[key] = super().get_call_type(context, args, kws)
        return signature


register_model(_Function)(models.OpaqueModel)


# min and max of two numbers. Numba makes functions of them that take a tuple: four of 51, 5 %.
_types, _code = templates.Registry(), imputils.Registry("fastattn")


@_types.register_global(min)
@_types.register_global(max)
class _OfTwo(templates.ConcreteTemplate):
    metadata: ClassVar = {"target": "fastattn"}     # type: ignore[misc]    # before Numba's, which are for every target
    cases: ClassVar = [typing.signature(x, x, x) for x in (numba.types.int64, numba.types.float32, numba.types.float64)]


def _of_two(function: Callable, sign: str) -> None:
    def integers(context: Any, builder: Any, signature: Any, args: tuple) -> Any:
        x, y = args
        return builder.select(builder.icmp_signed(sign, y, x), y, x)

    def floats(context: Any, builder: Any, signature: Any, args: tuple) -> Any:
        x, y = args
        return builder.select(builder.fcmp_ordered(sign, y, x), y, x)      # as in Python, x where either is NaN

    _code.lower(function, numba.types.int64, numba.types.int64)(integers)
    for x in numba.types.float32, numba.types.float64:
        _code.lower(function, x, x)(floats)


_of_two(min, "<")
_of_two(max, ">")


class _TypingContext(typing.Context):
    """What the types of kernels may ask for: numbers, and math."""

    def insert_global(self, value: Any, kind: Any) -> None:
        super().insert_global(value, _Function(kind.templates) if type(kind) is numba.types.Function else kind)

    def load_additional_registries(self) -> None:
        # Nothing for arrays: NumPy's ufuncs were tried for each sum of two integers, 4,700 times, 6 %.
        from numba.core.typing import mathdecl
        self.install_registry(mathdecl.registry)
        self.install_registry(_types)


class _TargetContext(cpu.CPUContext):
    """How kernels become LLVM's code."""

    @global_compiler_lock
    def init(self) -> None:
        self.is32bit = utils.MACHINE_BITS == 32
        code: Any = _Codegen("fastattn")
        self._internal_codegen = code
        self._sizes: dict[Any, int] = {}

    def load_additional_registries(self) -> None:
        # Numba's list, with strings, random numbers and others to import, is gone through for every intrinsic: 10 %.
        from numba.cpython import builtins, mathimpl, numbers, rangeobj, tupleobj  # noqa: F401
        self.install_registry(mathimpl.registry)
        self.install_registry(_code)

    def post_lowering(self, module: Any, library: Any) -> None:
        """Numba's runtime, which counts references, is not linked; there are none."""

    def get_abi_sizeof(self, kind: Any) -> int:
        # For debuggers only, and LLVM is asked by a module of text, for every variable: 2 %.
        size = self._sizes.get(kind)
        if size is None:
            size = self._sizes[kind] = super().get_abi_sizeof(kind)
        return size


class _Target(registry.CPUTarget):
    """Numba's CPU target, with contexts of our own."""

    @functools.cached_property
    def target_context(self) -> Any:
        if KNOWN:
            return _TargetContext(self.typing_context, "fastattn")
        numbas = registry.cpu_target.target_context
        numbas.refresh()                            # its runtime is compiled by its own means, and not by ours
        return numbas.subtarget(_internal_codegen=_Codegen("fastattn"))

    @functools.cached_property
    def typing_context(self) -> Any:
        return _TypingContext() if KNOWN else registry.cpu_target.typing_context


_target = _Target("fastattn")


class _Compiler(dispatcher._FunctionCompiler):
    def _customize_flags(self, flags: Any) -> Any:
        flags.no_compile = True                     # no executable of each function
        return flags

    def _compile_core(self, args: tuple, return_type: Any) -> Any:
        result = super()._compile_core(args, return_type)
        key = object()                              # what callers know it by; elsewhere the executable's address
        self.targetdescr.target_context.insert_user_function(key, result.fndesc, [result.library])
        return result._replace(entry_point=key)


# Numba's own list has three times as many passes, for closures, rewrites, arrays and parallel loops.
class _Interpreter(interpreter.Interpreter):
    def post_process(self, peepholes: list, code: Any) -> Any:
        """Nothing: that is for with blocks, calls of very many arguments and the like. It takes 3 %."""
        return code


@compiler_machinery.register_pass(mutates_CFG=True, analysis_only=False)
class _Translated(untyped_passes.TranslateByteCode):
    """Numba's code of a function."""

    _name = "fastattn_translated"

    def run_pass(self, state: Any) -> bool:
        state.func_ir = _Interpreter(state.func_id).interpret(state.bc)
        return True


@compiler_machinery.register_pass(mutates_CFG=True, analysis_only=False)
class _Simplified(untyped_passes.ReconstructSSA):
    """Each variable has one value, and branches that an argument's type decides, `if tail is None`, are cut off before types
    are inferred: once as it stands, once where the variable was assigned to.

    Numba has four passes for it, and looks after each where every variable is used last: 6 % of the time.
    """

    _name = "fastattn_simplified"

    def run_pass(self, state: Any) -> bool:
        code = state.func_ir
        code.blocks = transforms.canonicalize_cfg(code.blocks)
        dead_branch_prune(code, state.args)
        ssa.reconstruct_ssa(code)
        code._definitions = ir_utils.build_definitions(code.blocks)
        dead_branch_prune(code, state.args)
        return True


@compiler_machinery.register_pass(mutates_CFG=True, analysis_only=False)
class _Lowerable(typed_passes.PreLowerStripPhis):
    """Ready to become LLVM's code. Numba's next pass would say where each variable dies, half of all statements and 7 %; nothing
    here has references that must be counted then."""

    _name = "fastattn_lowerable"

    def run_pass(self, state: Any) -> bool:
        state.func_ir = self._strip_phi_nodes(state.func_ir)
        state.func_ir._definitions = ir_utils.build_definitions(state.func_ir.blocks)
        state.type_annotation = None
        return True


PASSES = (
    _Translated,
    untyped_passes.FixupArgs,
    _Simplified,
    typed_passes.NopythonTypeInference,
    _Lowerable,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)


class _Pipeline(compiler.CompilerBase):
    def define_pipelines(self) -> list[compiler.PassManager]:
        if not KNOWN:
            return [compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)]
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
        self._templates: dict[tuple, tuple] = {}

    def get_call_template(self, args: tuple, kws: dict) -> tuple:
        # Numba would make a function for each literal that it is called with, and for each guess of a type that it has
        # on the way: 24 of 54 functions, and a third of the time. And it would ask again in every round.
        key = tuple(map(numba.types.unliteral, args))
        template = self._templates.get(key)
        if template is None:
            template = super().get_call_template(key, kws)
            if not kws:
                self._templates[key] = template
        return template

    def add_overload(self, cres: Any) -> None:
        self.overloads[tuple(cres.signature.args)] = cres       # for callers that are compiled; none is Python


def _own(**options: Any) -> Callable:
    """How Numba compiles functions of its own for kernels, such as min and max."""
    return lambda function: _Dispatcher(function, targetoptions=OPTIONS)


target_extension.target_registry["fastattn"] = _Kernels
target_extension.dispatcher_registry[_Kernels] = _Dispatcher
target_extension.jit_registry[_Kernels] = _own


@global_compiler_lock
def _compile(function: Callable, types: tuple) -> tuple[str, bytes]:
    """The symbol and the object code of `function` for arguments of `types`."""
    disabled = config.DISABLE_JIT
    if not KNOWN:
        # Numba's own min and max, which it compiles by @jit then, would be functions that it cannot call.
        config.DISABLE_JIT = 0
    try:
        with target_extension.target_override("fastattn" if KNOWN else "cpu"):
            result = _compiler(function).compile(types, numba.types.int64)
        return result.fndesc.llvm_func_name, result.library.machine_code()
    finally:
        config.DISABLE_JIT = disabled


def _machine() -> llvm.TargetMachine:
    """The target machine as Numba sets it up for code that is loaded into this process."""
    llvm.initialize_native_target()                 # of Numba's, what does so may not be there yet
    llvm.initialize_native_asmprinter()
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
