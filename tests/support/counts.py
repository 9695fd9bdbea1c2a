"""How often a test repeats itself: a little by default, a lot with CHRONOLOG_SOAK=1 (`make soak`)."""

import os

SOAKING = os.environ.get("CHRONOLOG_SOAK", "0") not in ("", "0")


def soak(reduced: int, full: int) -> int:
    """Return `full` under CHRONOLOG_SOAK=1, otherwise `reduced`."""
    return full if SOAKING else reduced
