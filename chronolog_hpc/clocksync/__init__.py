"""Clock synchronisation over MPI: one time line for all ranks, and a hard window around every time.

See docs/clock.md, and `SyncedClock`.
"""

from __future__ import annotations

from chronolog_hpc.clocksync.hlc import HybridClock
from chronolog_hpc.clocksync.measure import Effort
from chronolog_hpc.clocksync.synced import OFFSET_ONLY, QUICK, Knot, SyncedClock, before

__all__ = ["OFFSET_ONLY", "QUICK", "Effort", "HybridClock", "Knot", "SyncedClock", "before"]
