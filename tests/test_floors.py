"""House rules: who imports whom, and that every compiled function goes through jit.py."""

import ast
from pathlib import Path

import pytest

import fastattn

PACKAGE = Path(fastattn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

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
    ("passes.launch",),
    ("masks", "checks"),
    ("api",),
    ("",),                                          # fastattn itself: what is public
    ("data", "data.words", "data.model", "data.make", "demo", "cli"),
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
PACKAGES = {"simd", "micro", "tiles", "passes"}     # nothing but a docstring


def module(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path):
    """The modules of the package that a file imports."""
    own = module(path).split(".") if path.name == "__init__.py" else module(path).split(".")[:-1]
    own = [part for part in own if part]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = own[:len(own) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                longer = ".".join([*base, alias.name])
                yield longer if longer in FLOOR else ".".join(base)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_imports_only_from_lower_floors(path):
    name = module(path)
    if name in PACKAGES:
        assert not list(imported(path))
        return
    for other in imported(path):
        assert FLOOR[other] <= FLOOR[name], f"{name} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_one_way_to_compile(path):
    tree = ast.parse(path.read_text())
    options = {keyword.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords}
    assert not options & {"fastmath", "parallel", "cache"}
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not names & {"njit", "jit", "cfunc", "vectorize", "guvectorize", "generated_jit", "prange"}
    assert "reference" not in {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_the_reference_knows_nothing_of_the_library():
    for path in (PACKAGE.parent / "reference").glob("*.py"):
        assert "fastattn" not in {name.split(".")[0] for name in _absolute_imports(path)}


def _absolute_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
