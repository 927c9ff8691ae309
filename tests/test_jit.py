"""The cache of compiled code (fastattn/jit.py): whatever happens to it, results are right and nothing is raised.

Whole calls of `attention` run in processes of their own. Where only the files matter, `warmed` gives a process that has the
machine code already, so that "compile" costs nothing there.
"""

import ctypes
import hashlib
import importlib
import itertools
import math
import multiprocessing
import os
import pwd
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numba import njit, types

import fastattn
from fastattn import attention, causal, jit, merge_states
from fastattn.machine import Target
from fastattn.passes import launch
from tests.bounds import exact, ratio
from tests.processes import child_of, finish, start

NOBODY = 65534
PACKAGE = Path(fastattn.__file__).parent
unix = pytest.mark.skipif(sys.platform == "win32", reason="rights, links and forks of Unix")


# ---- what processes do -----------------------------------------------------------------------------------------------
def answer(dtype="f4"):
    """What one call gives, how far it and its half lie from the truth (at most 1: right), and what it took."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 60, 64)).astype(dtype) for _ in range(3))
    o = attention(q, k, v, mask=causal)
    wanted = exact(q, k, v, seen=causal.materialize(60, 60))
    return {"bits": hashlib.sha256(o.tobytes()).hexdigest(), "off": ratio(o, None, wanted),
            "half off": ratio(o / 2, None, wanted), "compiled": jit._counts.compiled, "loaded": jit._counts.loaded}


def forget():
    """As if nothing had been called yet."""
    jit._addresses.clear()
    launch.compile_forward.cache_clear()
    launch._guarded.cache_clear()
    jit._counts.compiled = jit._counts.loaded = 0


def warmed():
    """Call once; from then on to compile is to look up what was loaded. Returns that, by the name of its file."""
    code, read, compile_ = {}, jit._read, jit._compile
    name = None

    def reads(path, key):
        nonlocal name
        name, found = path.name, read(path, key)
        if found:
            code[name] = found
        return found

    def compiles(function, types):
        code[name] = compile_(function, types)
        return code[name]

    jit._read, jit._compile = reads, compiles
    answer()
    jit._read = read

    def looks_up(function, types):
        key = jit._cache_key(f"{function.__module__}.{function.__qualname__}", types)
        return code[hashlib.sha256(key).hexdigest() + ".bin"]

    jit._compile = looks_up
    return code


def again(directory):
    """The answer of a process that begins now, with its cache in `directory`."""
    os.environ["FASTATTN_CACHE"] = str(directory)
    forget()
    return answer()


def right(given, **wanted):
    return given["off"] <= 1 and {name: given[name] for name in wanted} == wanted


# ---- cold and warm ---------------------------------------------------------------------------------------------------
def test_a_second_process_compiles_nothing_and_a_cache_that_is_off_leaves_no_trace(call, tmp_path):
    first, second = call(answer), call(answer)
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    off = call(answer, FASTATTN_CACHE="0", HOME=home, XDG_CACHE_HOME=home, TMPDIR=temporary)
    assert right(first)
    assert right(second, compiled=0, loaded=2, bits=first["bits"])
    assert right(off, compiled=2, loaded=0, bits=first["bits"])
    assert sorted(tmp_path.rglob("*")) == [home, temporary]


def imported():
    return [jit._counts.compiled, jit._counts.loaded, threading.active_count()]


def test_importing_compiles_nothing_and_makes_no_directory(call, tmp_path):
    assert call(imported, FASTATTN_CACHE=None, XDG_CACHE_HOME=tmp_path / "cache") == [0, 0, 1]
    assert not list(tmp_path.iterdir())


def entries():
    return jit._counts.compiled + jit._counts.loaded


def compiled_ahead():
    """The entry points that `compile` makes, and those that calls with and without each option need besides."""
    fastattn.compile(dtypes=["f4"], channels=[3])
    before = entries()
    for S, softcap, seen in itertools.product((1, 2, 40), (None, 1.0), (False, True)):
        x = np.ones((S, 3), "f4")
        o, lse = attention(x, x, x, mask=causal & np.ones((S, S), bool) if seen else causal, softcap=softcap, return_lse=True)
    merge_states([o], [lse])
    return [before, entries() - before]


def test_after_compile_calls_compile_nothing(call):
    # Four variants and two for few queries, and what sets the floating-point state for them and for merging.
    assert call(compiled_ahead) == [8, 0]


# ---- where -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def environment(monkeypatch):
    def of(**variables):
        for name in ("FASTATTN_CACHE", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
    return of


@unix
def test_the_directory_is_what_is_asked_for_or_lies_where_caches_lie(environment, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for variables, place in [
        ({"FASTATTN_CACHE": tmp_path / "a/b"}, "a/b"),
        ({"FASTATTN_CACHE": tmp_path / "c", "XDG_CACHE_HOME": tmp_path / "x", "HOME": tmp_path / "h"}, "c"),
        ({"XDG_CACHE_HOME": tmp_path / "x", "HOME": tmp_path / "h"}, "x/fastattn"),
        ({"HOME": tmp_path / "h"}, "h/.cache/fastattn"),
        ({"XDG_CACHE_HOME": "", "HOME": tmp_path / "h"}, "h/.cache/fastattn"),
        ({"XDG_CACHE_HOME": "relative", "HOME": tmp_path / "h"}, "h/.cache/fastattn"),      # the XDG rule: ignore it
    ]:
        environment(**variables)
        assert jit.cache_directory() == tmp_path / place
        assert (tmp_path / place).stat().st_mode & 0o777 == 0o700
    assert not Path("relative").exists()


@unix
def test_without_a_home_there_is_no_directory(environment, monkeypatch, tmp_path):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.chdir(tmp_path)
    for variables in ({}, {"HOME": "relative"}):
        environment(**variables)
        assert jit.cache_directory() is None
        assert fastattn.cache_info()["directory"] is None
    assert not list(tmp_path.iterdir())


def unusable(name, root, code):
    """A directory that must be left alone, with valid files for a wrong kernel in it: who can write it could put them there."""
    place = root / name
    place.mkdir(mode=0o700)
    for file, (symbol, machine_code) in code.items():
        (place / file).write_bytes(b"")
        jit._write(place / file, b"", symbol, machine_code)
    if name == "open to all":
        place.chmod(0o777)
    elif name == "open to the group":
        place.chmod(0o770)
    elif name == "another's":
        os.chown(place, NOBODY, NOBODY)
    elif name == "a link":
        place.rename(root / "target")
        place.symlink_to(root / "target")
    elif name == "a file":
        shutil.rmtree(place)
        place.write_text("not a directory")
    elif name == "below a file":
        shutil.rmtree(place)
        place.write_text("not a directory")
        return place / "cache"
    return place


UNUSABLE = ["open to all", "open to the group", "a link", "a file", "below a file"]
UNUSABLE += ["another's"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


def in_unusable_directories(root):
    """For each: the answer, and whether anything in it has changed."""
    root, code, answers = Path(root), warmed(), {}

    def content():
        return {p: (p.lstat().st_mode, p.is_file() and p.read_bytes()) for p in root.rglob("*")}

    for name in UNUSABLE:
        place = unusable(name, root, code)
        before = content()
        answers[name] = again(place) | {"untouched": content() == before}
    answers["/dev/null/cache"] = again("/dev/null/cache") | {"untouched": True}
    return answers


@unix
def test_a_directory_that_others_can_write_or_that_is_none_is_left_alone(call, tmp_path):
    for name, given in call(in_unusable_directories, str(tmp_path)).items():
        assert right(given, compiled=2, loaded=0, untouched=True), name


def in_a_directory_that_takes_nothing(root, how):
    """Reading is allowed; writing is not, or comes to nothing. The answer, and what lies there then."""
    import resource
    import signal
    warmed()
    place = Path(root) / "cache"
    place.mkdir(mode=0o700)
    if how == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
    elif os.geteuid() == 0:                             # whom no rights stop
        os.chown(place, NOBODY, NOBODY)
        place.chmod(0o500)
        os.chdir(place)                                 # whatever the rights of the directories above
        place = Path(".")
        os.seteuid(NOBODY)
    else:
        place.chmod(0o500)
    given = again(place)
    return given | {"files": sorted(p.name for p in place.iterdir())}


@unix
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_directory_that_takes_nothing_keeps_nothing(call, tmp_path, how):
    assert right(call(in_a_directory_that_takes_nothing, str(tmp_path), how), compiled=2, loaded=0, files=[])


# ---- damage ----------------------------------------------------------------------------------------------------------
def damage(kind, files):
    first, second = (file.read_bytes() for file in files)
    if kind == "swapped":
        files[0].write_bytes(second)
        files[1].write_bytes(first)
    for file in files:
        content = file.read_bytes()
        if kind == "empty":
            file.write_bytes(b"")
        elif kind == "torn":
            file.write_bytes(content[:-100])
        elif kind == "one bit":
            file.write_bytes(content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:])
        elif kind == "longer":
            file.write_bytes(content + b"\0")
        elif kind == "directories":
            file.unlink()
            file.mkdir()


DAMAGE = ["none", "empty", "torn", "one bit", "longer", "swapped", "directories"]


def with_damaged_files(root):
    warmed()
    answers = {}
    for kind in DAMAGE:
        place = Path(root) / kind
        again(place)
        damage(kind, sorted(place.iterdir()))
        answers[kind] = [again(place), again(place)]
    return answers


def test_a_damaged_file_is_compiled_anew_and_mended(call, tmp_path):
    answers = call(with_damaged_files, str(tmp_path))
    assert answers.keys() == set(DAMAGE)
    for kind, (damaged, mended) in answers.items():
        assert right(damaged, compiled=0 if kind == "none" else 2), kind
        assert right(mended, compiled=2 if kind == "directories" else 0), kind
        assert not list((tmp_path / kind).glob("tmp*")), kind


def test_of_a_file_not_a_byte_may_be_missing_or_wrong(tmp_path):
    file, key = tmp_path / "entry.bin", b"key"
    jit._write(file, key, "symbol", b"code\nand more")
    assert jit._read(file, key) == ("symbol", b"code\nand more")
    content = file.read_bytes()
    others = [content[:n] for n in range(len(content))] + [content + b"\0"]
    others += [content[:n] + bytes([content[n] ^ 1 << bit]) + content[n + 1:] for n in range(len(content)) for bit in (0, 7)]
    for other in others:
        file.write_bytes(other)
        assert jit._read(file, key) is None
    file.write_bytes(content)
    assert jit._read(file, b"another key") is None
    assert jit._read(tmp_path / "missing.bin", key) is None


def without_the_checksum(root):
    warmed()
    again(root)
    damage("torn", sorted(Path(root).iterdir()))

    def trusting(path, key):
        symbol, _, code = path.read_bytes()[32:].partition(b"\n")
        return symbol.decode(), code

    jit._read = trusting
    return again(root)


def test_the_control_without_the_checksum_a_torn_file_ends_the_process(run, tmp_path):
    assert run(without_the_checksum, str(tmp_path)).status != 0


# ---- another source ----------------------------------------------------------------------------------------------------
DOUBLED = ("micro/mix.py", "    store_table(t, table", "    store_table(add(t, t), table")


def edit(package, place, old, new):
    source = (package / "fastattn" / place).read_text(encoding="utf-8")
    assert source.count(old) == 1
    (package / "fastattn" / place).write_text(source.replace(old, new), encoding="utf-8")


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "copy/fastattn", ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    return tmp_path / "copy"


def upgraded_under_way(package):
    """Every source file is another one by the time of the first call."""
    edit(Path(package), *DOUBLED)
    return answer() | {"from": str(Path(fastattn.__file__).parent.parent)}


def test_an_edit_of_a_function_in_another_file_is_seen(call, cache, copied):
    # The kernel that Python calls stands in passes/forward.py and is not touched.
    place, old, new = DOUBLED
    call(answer)
    assert right(call(answer, package=copied), compiled=0)              # the same source, wherever it lies
    before = set(Path(cache).iterdir())
    # While a process is at work the files change: it goes on with what it has loaded, and keeps that to itself.
    old_source = call(upgraded_under_way, str(copied), package=copied)
    assert right(old_source, compiled=2, loaded=0, **{"from": str(copied)})
    assert set(Path(cache).iterdir()) == before
    new_source = call(answer, package=copied)
    assert new_source["off"] > 1 >= new_source["half off"]
    edit(copied, place, new, old)
    assert right(call(answer, package=copied), compiled=0)


CALLER = """
import numba
from . import callee

@numba.njit(cache=True)
def caller(x):
    return callee.inner(x)
"""
CALLEE = """
import numba

@numba.njit
def inner(x):
    return x * 2
"""


def what_numba_says(package):
    sys.path.insert(0, package)
    from two import caller
    return caller.caller(1)


def test_the_control_numbas_own_cache_does_not_see_the_edit(call, tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    for name, text in ("__init__", ""), ("caller", CALLER), ("callee", CALLEE):
        (folder / f"{name}.py").write_text(text)
    assert call(what_numba_says, str(tmp_path)) == 2
    (folder / "callee.py").write_text(CALLEE.replace("x * 2", "x * 3"))
    assert call(what_numba_says, str(tmp_path)) == 2                    # 3 would be right


def test_whatever_steers_the_compiler_is_in_the_key(monkeypatch):
    def key(name="f", types_=(types.int64,)):
        return jit._cache_key(name, types_)

    keys = [key(), key(name="g"), key(types_=(types.int32,)), key(types_=(types.int64, types.int64))]
    for owner, name, value in [
        (jit, "TARGET", Target("x86_64", "generic", "")),
        (jit, "OPTIONS", jit.OPTIONS | {"fastmath": True}),
        (jit, "_STAMP", "another"),
    ]:
        with monkeypatch.context() as m:
            m.setattr(owner, name, value)
            keys.append(key())
    monkeypatch.setenv("NUMBA_OPT", "1")
    keys.append(key())
    monkeypatch.setenv("NUMBA_OPT", "2")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    monkeypatch.delenv("NUMBA_OPT")
    monkeypatch.setenv("OTHER", "1")
    assert key() == keys[0]


# ---- several at once ---------------------------------------------------------------------------------------------------
def tenfold(x):
    return int(x * 10)


ENTRIES = {types.int64: (ctypes.c_int64, 7, 70), types.float64: (ctypes.c_double, 2.5, 25)}


def call_entry(scalar):
    """Whether `tenfold` compiled for the scalar gives what it should: with the other's code x is read from nowhere."""
    kind, x, wanted = ENTRIES[scalar]
    result = ctypes.c_int64()
    entry = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, kind)(jit.native(tenfold, (scalar,)))
    return entry(ctypes.addressof(result), None, x) == 0 and result.value == wanted


def racer(order, barrier):
    barrier.wait(60)
    sys.exit(0 if all([call_entry(scalar) for scalar in order]) else 3)


def races(rounds, root):
    """In each round four processes want two variants of one function from one empty directory, in either order.

    How they end, and what a fifth loads and compiles then.
    """
    context, seen = multiprocessing.get_context("fork"), []
    for n in range(rounds):
        os.environ["FASTATTN_CACHE"] = f"{root}/{n}"
        forget()
        barrier, orders = context.Barrier(4), [list(ENTRIES), list(ENTRIES)[::-1]] * 2
        racers = [context.Process(target=racer, args=(order, barrier)) for order in orders]
        for process in racers:
            process.start()
        for process in racers:
            process.join(60)
        forget()
        seen.append([*(process.exitcode for process in racers), all(map(call_entry, ENTRIES)), jit._counts.loaded,
                     jit._counts.compiled, len(os.listdir(os.environ["FASTATTN_CACHE"]))])
    return seen


@unix
def test_processes_that_race_for_one_directory_never_get_each_others_code(call, tmp_path):
    assert call(races, 5, str(tmp_path)) == [[0, 0, 0, 0, True, 2, 0, 2]] * 5


@pytest.mark.nightly
@pytest.mark.parametrize("turn", range(50))
def test_processes_that_race_with_whole_kernels(tmp_path, turn):
    orders = ["f4", "f8"] * 2
    for dtypes in (orders, orders[::-1], orders):
        together = [start(answer, dtype, cache=tmp_path) for dtype in dtypes]
        ended = [finish(process) for process in together]
        assert all(e.status == 0 and not e.complaint and right(e.value) for e in ended)
    assert all(e.value["compiled"] == 0 for e in ended)


def test_the_control_numbas_own_cache_hands_out_the_others_code(tmp_path, monkeypatch):
    # Two processes have read an empty index; both number their file 1; one index wins, the other's file stays.
    (tmp_path / "source_of_a_race.py").write_text("def tenfold(x):\n    return x * 10\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = importlib.import_module("source_of_a_race")

    def process():
        return njit(cache=True)(source.tenfold)

    ours, theirs = process(), process()
    files = ours._cache._cache_file
    save_data = files._save_data

    def late(name, data):
        others = theirs._cache._cache_file
        others._load_index = dict                       # it was empty when they looked
        theirs(2.5)
        save_data(name, data)

    files._save_data = late
    assert ours(7) == 70
    assert process()(2.5) != 25


def test_threads_that_come_together_compile_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTATTN_CACHE", str(tmp_path / "cache"))

    def tenfold_for_threads(x):
        return int(x * 10)

    barrier, addresses, before = threading.Barrier(8), [], jit._counts.compiled

    def caller():
        barrier.wait(60)
        addresses.append(jit.native(tenfold_for_threads, (types.int64,)))

    callers = [threading.Thread(target=caller) for _ in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert len(addresses) == 8
    assert len(set(addresses)) == 1
    assert jit._counts.compiled == before + 1


def reader_holds_the_lock(restored):
    """Fork while another thread is inside `native`; what the child's call gives: right, or a hang."""
    inside, over, read = threading.Event(), threading.Event(), jit._read

    def slow(path, key):
        inside.set()
        over.wait(60)
        return read(path, key)

    if not restored:
        jit._lock = threading.RLock()                   # one that no fork waits for
    jit._read = slow
    other = threading.Thread(target=answer)
    other.start()
    inside.wait(60)
    threading.Timer(0.2, over.set).start()
    ended = child_of(lambda: right(answer()), 60 if restored else 2)
    other.join(60)
    return ended


@unix
def test_a_fork_waits_for_the_compiler(call):
    call(answer)
    assert call(reader_holds_the_lock, True) is True
    assert call(reader_holds_the_lock, False) == "HANG"          # the control


# ---- Numba's interior ---------------------------------------------------------------------------------------------------
def as_another_version():
    """Numba is one whose interior is not known."""
    jit.KNOWN = False
    return answer()


def test_another_version_of_numba_compiles_by_its_own_means(call):
    assert right(call(as_another_version, FASTATTN_CACHE="0"), compiled=2, bits=call(answer)["bits"])


def beside_others():
    """Whether Numba's own contexts and runtime are as they would be without us, and what a function of others gives."""
    from numba.core.registry import cpu_target
    from numba.core.runtime import rtsys
    given, untouched = answer(), not rtsys._init and not cpu_target.typing_context._functions

    @njit
    def others(x):
        return max(x.sum(), min(2, len(x)))

    return given | {"untouched": untouched, "others": others(np.ones(3)), "runtime": type(rtsys.library).__name__}


def test_other_users_of_numba_notice_nothing(call):
    assert right(call(beside_others, FASTATTN_CACHE="0"), compiled=2, untouched=True, others=3.0, runtime="JITCodeLibrary")


def least_and_greatest(x, y):
    i, j = int(x), int(y)
    return 1000 * min(i, j) + 100 * max(i, j) + 10 * int(min(x, y) == 1) + int(max(x, y) == 1)


@pytest.mark.parametrize(("x", "y"), [(1.0, 2.0), (2.0, 1.0), (1.0, math.nan), (-1.0, 1.0), (1.0, 1.0)])
def test_min_and_max_are_pythons(x, y):
    # With NaN the first of the two, as in Python; as an integer NaN is none.
    run = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p, ctypes.c_double, ctypes.c_double)
    result = ctypes.c_int64()
    wanted = (least_and_greatest if y == y else first_of_nan)(x, y)
    run(jit.native(least_and_greatest if y == y else first_of_nan, (types.float64, types.float64)))(result, None, x, y)
    assert result.value == wanted


def first_of_nan(x, y):
    return 10 * int(min(x, y) == 1) + int(max(x, y) == 1)


# ---- what may be compiled ----------------------------------------------------------------------------------------------
def test_code_may_ask_for_nothing_that_the_loader_does_not_know():
    # LLVM would end the process.
    def gamma(x):
        return int(math.gamma(x))

    with pytest.raises(RuntimeError, match=r"gamma.* refers to \['numba_gamma'\], which compiled code may not"):
        jit.native(gamma, (types.float64,))


def test_what_is_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTATTN_CACHE", str(tmp_path / "cache"))
    nothing = fastattn.cache_info()
    assert (nothing["directory"], nothing["files"], nothing["bytes"]) == (str(tmp_path / "cache"), 0, 0)
    jit.native(lambda x: x, (types.int64,))
    (file,) = (tmp_path / "cache").glob("*.bin")
    told = fastattn.cache_info()
    assert (told["files"], told["bytes"]) == (1, file.stat().st_size)
    assert (told["compiled"], told["loaded"]) == (nothing["compiled"] + 1, nothing["loaded"])
    monkeypatch.setenv("FASTATTN_CACHE", "0")
    assert fastattn.cache_info() | {"compiled": 0, "loaded": 0} == {"directory": None, "files": 0, "bytes": 0, "compiled": 0,
                                                                   "loaded": 0}
