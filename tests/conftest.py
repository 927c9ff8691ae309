"""What all tests share: one private cache of compiled code for the session, and hypothesis that repeats itself."""

import functools
import os

import pytest
from hypothesis import HealthCheck, settings

from tests import processes

# Compiling takes seconds where a test takes milliseconds, so no deadline; the same examples every time, as a failure that
# comes and goes helps nobody.
settings.register_profile("fastattn", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("fastattn")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Kernels compile once, for this process and those that it starts, and the user's own cache is left alone."""
    if "FASTATTN_CACHE" not in os.environ:
        os.environ["FASTATTN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return os.environ["FASTATTN_CACHE"]


@pytest.fixture(scope="session")
def call(cache):
    """`processes.call` with that cache."""
    return functools.partial(processes.call, cache=cache)


@pytest.fixture(scope="session")
def run(cache):
    """`processes.run` with that cache."""
    return functools.partial(processes.run, cache=cache)


def pytest_terminal_summary(terminalreporter):
    """What tests have measured, such as the worst error of all problems: a number to look at, not to pass or fail."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {name} {value if isinstance(value, dict) else f'{value:.3g}'}")
