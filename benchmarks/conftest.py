"""What a pytest-benchmark report says of the machine, besides what it says by itself."""

from importlib.metadata import version

from fastattn.machine import TARGET, cpu_model


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fastattn"] = {
        "cpu": cpu_model(), "target": TARGET.cpu, "features": TARGET.features, "vector_bytes": TARGET.vector_bytes,
        "threads": 1, "versions": {name: version(name) for name in ("numba", "numpy", "llvmlite")},
    }
