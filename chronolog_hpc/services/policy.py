"""How long events stay where: what the attributes `TieringPolicy` and `Retention` mean.

A story has those that it was created with, and those of its chronicle that it has not itself. They are checked when
they are given, by the visor, so that keepers and graphers only meet what they understand.

    hot      keepers keep events until their client has closed; the grapher keeps its segments as they are
    normal   handed over in segments of 64 MiB or 10 minutes; merged into a chunk when there is as much of them
    cold     handed over every 10 s; merged at once

What a client has written is handed over when it closes, whatever the policy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from py_chronolog_client.engine.base import MAX_TIME_NS
from py_chronolog_client.errors import InvalidArgumentError

TIERING, RETENTION = "TieringPolicy", "Retention"

_NORMAL = "normal"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_EXPIRING_PARTS = 10
"""Of so many parts a story with a retention consists, at least."""
_PERIOD = re.compile(r"([1-9][0-9]{0,8})([smhd])")


class Tier(NamedTuple):
    """When something is due: a size or an age is enough."""

    seal_bytes: float
    """Of a segment that its client still writes to, before it is handed over."""
    seal_s: float
    merge_bytes: float
    """Of a story's segments, before they are merged into a chunk."""
    merge_s: float


@dataclass(frozen=True)
class Pace:
    """When keepers hand over and graphers merge, and how often they look."""

    tiers: Mapping[str, Tier]
    look_s: float = 1.0
    expire_s: float = 10.0
    """So often the grapher looks for what has expired."""


PACE = Pace(
    {
        "hot": Tier(math.inf, math.inf, math.inf, math.inf),
        _NORMAL: Tier(64 * 2**20, 600.0, 64 * 2**20, 600.0),
        "cold": Tier(64 * 2**20, 10.0, 0.0, 0.0),
    }
)


class Policy(NamedTuple):
    """What holds for a story."""

    tier: str
    retention_s: int | None
    """None: its events are kept for ever."""

    @property
    def span_ns(self) -> int:
        """Return how much time of a story a chunk of chunks holds: a chunk expires with its last event."""
        return MAX_TIME_NS if self.retention_s is None else self.retention_s * 10**9 // _EXPIRING_PARTS

    @classmethod
    def of(cls, attributes: Mapping[str, str]) -> Policy:
        """Return what the attributes of a story or chronicle say.

        Raises:
            InvalidArgumentError: that makes no sense.
        """
        tier = attributes.get(TIERING, _NORMAL).lower()
        if tier not in PACE.tiers:
            raise InvalidArgumentError(
                f"{TIERING} is {attributes[TIERING]!r:.100}, not one of {', '.join(PACE.tiers)}: leave it out for {_NORMAL}"
            )
        period = attributes.get(RETENTION)
        if period is None:
            return cls(tier, None)
        match = _PERIOD.fullmatch(period)
        if match is None:
            raise InvalidArgumentError(
                f"{RETENTION} is {period!r:.100}, not a number of seconds, minutes, hours or days such as 90s, 5m, 12h or "
                "30d: leave it out to keep events for ever"
            )
        return cls(tier, int(match[1]) * _UNITS_S[match[2]])
