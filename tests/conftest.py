"""Fixtures and profiles of all tests."""

import os
import signal

import pytest
from hypothesis import settings

from tests.support import launch, namespaces
from tests.support.counts import SOAKING
from tests.support.requirements import require, required

settings.register_profile("default", max_examples=40, deadline=None, derandomize=False, print_blob=True)
settings.register_profile("soak", settings.get_profile("default"), max_examples=2000)
settings.load_profile("soak" if SOAKING else "default")

# What a developer's shell says about stores and servers must not reach a test.
TEST_SETTINGS = ("CHRONOLOG_SOAK", "CHRONOLOG_REQUIRE", "CHRONOLOG_TEST_")


def pytest_configure() -> None:
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # a shell starts background jobs so, and children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [n for n in os.environ if n.startswith("CHRONOLOG_") and not n.startswith(TEST_SETTINGS)]:
        del os.environ[name]
    try:
        required()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header() -> str:
    counts = "full" if SOAKING else "reduced"
    return f"chronolog: {counts} counts, required: {', '.join(sorted(required())) or 'nothing'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="only with CHRONOLOG_SOAK=1 (make soak)")
    for item in items:
        if not SOAKING and item.get_closest_marker("soak"):
            item.add_marker(skip)


@pytest.fixture
def mpi() -> launch.Mpi:
    """Return `mpi(n, "script.py" | "-m", "module" | "-c", "code", *args, timeout=, env=, cwd=, check=)`.

    Skips the test where no MPI program can be started; see `launch.mpi_run`.
    """
    require("mpi", launch.mpi_problem())
    return launch.mpi_run


@pytest.fixture
def namespace() -> tuple[str, ...]:
    """Return the `unshare ...` to put before a command that mounts; skips the test where there is none."""
    require("namespaces", namespaces.namespaces_problem())
    return namespaces.namespace_command()
