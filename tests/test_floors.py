"""House rules: who imports whom, and that every compiled function goes through jit.py."""

import ast
from pathlib import Path

import pytest

import fastattn

PACKAGE = Path(fastattn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
REFERENCE = sorted((PACKAGE.parent / "reference").glob("*.py"))

# Lowest first; a file imports from floors above it in this list, or from its own.
FLOORS = [
    ("machine", "jit", "fpu"),
    ("simd.vec",),
    ("simd.math",),
    ("tiles.record",),
    ("tiles.sizes",),
    ("micro.score", "micro.softmax", "micro.mix"),
    ("tiles.job", "tiles.rows", "tiles.pool"),
    ("passes.forward", "passes.merge"),
    ("passes.decode",),
    ("passes.launch",),
    ("passes.turn",),
    ("masks", "checks"),
    ("api", "rotary"),
    ("weights",),
    ("layers",),
    ("",),                                          # fastattn itself: what is public
    ("screen",),
    ("explain", "plot", "page"),
    ("data", "data.words", "data.model", "data.make", "demo", "cli", "__main__"),
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
PACKAGES = {"simd", "micro", "tiles", "passes"}     # nothing but a docstring

COMPILERS = {"njit", "jit", "cfunc", "vectorize", "guvectorize", "generated_jit", "stencil", "prange"}
OPTIONS = {"fastmath", "parallel", "cache"}


def module(path):
    """A file's name as a module of the package: "tiles.pool", "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_file_has_its_floor():
    assert {module(path) for path in FILES} == {*FLOOR, *PACKAGES}


# ---- imports ---------------------------------------------------------------------------------------------------------
def imports(source, package):
    """Full names of what a file imports, from where and what; `package`: the one that the file lies in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)


def package_of(path):
    """The package that a file lies in, with its full name."""
    return ".".join(path.parent.relative_to(PACKAGE.parent).parts)


def too_high(source, package, name):
    """What a file of that name imports from a floor above its own, of the package."""
    for other in imports(source, package):
        inside = other.removeprefix("fastattn").removeprefix(".") if other.split(".")[0] == "fastattn" else None
        while inside is not None and inside not in FLOOR and inside not in PACKAGES:
            inside = inside.rpartition(".")[0]      # a name in a module
        if inside is not None and (inside in PACKAGES or name in PACKAGES or FLOOR[inside] > FLOOR[name]):
            yield inside


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_imports_only_from_lower_floors(path):
    assert not set(too_high(path.read_text(), package_of(path), module(path)))


@pytest.mark.parametrize(("name", "source", "found"), [
    ("simd.vec", "from ..tiles import pool", "tiles.pool"),
    ("simd.vec", "from ..tiles.pool import run", "tiles.pool"),
    ("simd.vec", "from fastattn.tiles.pool import run", "tiles.pool"),
    ("simd.vec", "from fastattn.tiles import pool", "tiles.pool"),
    ("simd.vec", "import fastattn.tiles.pool as pool", "tiles.pool"),
    ("simd.vec", "def f():\n    from .math import exp2", "simd.math"),
    ("simd.vec", "from .. import attention", ""),
    ("simd.vec", "import fastattn", ""),
    ("simd.math", "from .vec import load\nfrom ..jit import kernel\nimport numba", None),
    ("api", "from . import checks\nfrom .tiles import pool\nimport numpy as np", None),
    ("", "from .api import attention", None),
    ("tiles", "from .pool import run", "tiles.pool"),
])  # fmt: skip
def test_an_import_from_above_is_found(name, source, found):
    package = "fastattn" if name in ("", "api") else f"fastattn.{name.split('.')[0]}"
    assert set(too_high(source, package, name)) == (set() if found is None else {found})


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_the_reference_knows_nothing_but_numpy_and_softmax(path):
    assert not set(beyond(path.read_text()))


def beyond(source):
    """What a file of the reference imports besides NumPy, SciPy's softmax and logsumexp, and plain Python's own."""
    allowed = {"numpy", "scipy.special.softmax", "scipy.special.logsumexp", "math", "itertools.product"}
    for name in imports(source, "reference"):
        if name not in allowed and name.split(".")[0] not in ("reference", "__future__"):
            yield name


def test_a_reference_that_asks_the_library_is_found():
    for source in ("import fastattn", "from fastattn import masks", "from fastattn.api import runs", "import torch"):
        assert set(beyond(source))
    assert not set(beyond("import numpy as np\nfrom .masks import seen_by\nfrom scipy.special import softmax"))


@pytest.mark.parametrize("path", FILES, ids=module)
def test_the_library_knows_nothing_of_the_reference(path):
    roots = {name.split(".")[0] for name in imports(path.read_text(), package_of(path))}
    assert not roots & {"reference", "tests", "benchmarks"}


# ---- one way to compile ----------------------------------------------------------------------------------------------
def other_ways(source):
    """Names of Numba's own compilers and of its options in a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield from OPTIONS & {keyword.arg for keyword in node.keywords}
        elif isinstance(node, ast.ImportFrom):
            yield from COMPILERS & {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("numba", "nb"):
            yield from COMPILERS & {node.attr}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_one_way_to_compile(path):
    assert not set(other_ways(path.read_text()))


@pytest.mark.parametrize("source", [
    "from numba import njit",
    "import numba\n@numba.njit\ndef f(): ...",
    "import numba as nb\nfor i in nb.prange(3): ...",
    "@kernel(fastmath=True)\ndef f(): ...",
    "@kernel(cache=True)\ndef f(): ...",
    "@kernel(parallel=False)\ndef f(): ...",
])  # fmt: skip
def test_another_way_is_found(source):
    assert set(other_ways(source))
