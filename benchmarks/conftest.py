"""What a pytest-benchmark report says of the machine, besides what it says by itself."""

from importlib.metadata import PackageNotFoundError, version

from fastattn import __version__
from fastattn.machine import TARGET, cores, cpu_model


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fastattn"] = {
        "cpu": cpu_model(), "target": TARGET.cpu, "features": TARGET.features, "vector_bytes": TARGET.vector_bytes,
        "cores": cores(), "threads": 1, "versions": {"fastattn": __version__, **dict(_versions())},
    }


def _versions():
    for name in ("numba", "llvmlite", "numpy", "torch"):
        try:
            yield name, version(name)
        except PackageNotFoundError:                # torch need not be there
            continue
