"""Client ids: 63 random bits, so that nobody needs to be asked for one."""

from __future__ import annotations

import os


def new_client_id() -> int:
    """Return a client id, 0 to 2**63 - 1, that no other client will ever have."""
    return int.from_bytes(os.urandom(8), "little") >> 1
