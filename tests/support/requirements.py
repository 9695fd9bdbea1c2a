"""What a machine may lack: a test that needs it is skipped, or fails where CHRONOLOG_REQUIRE lists it.

CHRONOLOG_REQUIRE is a comma-separated list of the names in `KNOWN`. Continuous integration sets it, so that
a machine which has lost its MPI cannot pass by skipping everything that uses MPI.
"""

import os

import pytest

KNOWN = frozenset({"mpi", "namespaces", "openssl", "slurm", "strace"})


def required() -> frozenset[str]:
    """Return the names in CHRONOLOG_REQUIRE.

    Raises:
        ValueError: A name is unknown; a typing error there would silently allow the skips again.
    """
    names = frozenset(filter(None, (n.strip() for n in os.environ.get("CHRONOLOG_REQUIRE", "").split(","))))
    if unknown := names - KNOWN:
        raise ValueError(
            f"CHRONOLOG_REQUIRE names {', '.join(sorted(unknown))}; known are {', '.join(sorted(KNOWN))}"
        )
    return names


def require(what: str, reason: str | None) -> None:
    """Go on if `reason` is None, else skip the test for this reason, or fail it if `what` is required.

    Args:
        what: One of `KNOWN`.
        reason: Why `what` cannot be used here and what would help, or None if it can be used.
    """
    if what not in KNOWN:
        raise ValueError(f"{what!r} is no requirement; known are {', '.join(sorted(KNOWN))}")
    if reason is None:
        return
    if what in required():
        pytest.fail(f"CHRONOLOG_REQUIRE asks for {what}, but: {reason}", pytrace=False)
    pytest.skip(reason)
