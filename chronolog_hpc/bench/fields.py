"""The one list of what a benchmark reports, from which JSON and text are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Field:
    """One figure.

    Attributes:
        key: its place in the JSON, with dots between the levels.
        label: its name in the text.
        unit: in the text.
        note: what it means, in the text.
        scale: the value in the text is the value in the JSON times this.
        digits: digits behind the point in the text.
    """

    key: str
    label: str
    unit: str
    note: str = ""
    scale: float = 1.0
    digits: int = 0

    def text(self, value: float) -> str:
        """Return the value as the text shows it."""
        return f"{value * self.scale:,.{self.digits}f}".replace(",", " ")


_ALL = "all ranks, flush included"
_CALL = "one call, separate pass"

FIELDS = (
    Field("write.events", "write events", "events"),
    Field("write.bytes", "write volume", "MB", "records only", 1e-6, 3),
    Field("write.seconds", "write time", "s", _ALL, 1, 6),
    Field("write.events_per_s", "write rate", "events/s", _ALL),
    Field("write.bytes_per_s", "write rate", "MB/s", "records only", 1e-6, 1),
    Field("write.latency_ns.p50", "latency p50", "ns", _CALL),
    Field("write.latency_ns.p90", "latency p90", "ns", _CALL),
    Field("write.latency_ns.p99", "latency p99", "ns", _CALL),
    Field("write.latency_ns.p99_9", "latency p99.9", "ns", _CALL),
    Field("write.latency_ns.max", "latency max", "ns", _CALL),
    Field("replay.seconds", "replay time", "s", "as columns, in order", 1, 6),
    Field("replay.events", "replay events", "events"),
    Field("replay.events_per_s", "replay rate", "events/s", "as columns, in order"),
    Field("replay.objects_per_s", "replay rate", "events/s", "iterated as Event objects, records read"),
    Field("verified.expected", "verified expected", "events"),
    Field(
        "verified.replayed",
        "verified replayed",
        "events",
        "every byte, client id, time and position compared",
    ),
    Field("verified.missing", "verified missing", "events"),
    Field("verified.duplicated", "verified duplicated", "events"),
    Field("verified.out_of_order", "verified out of order", "events"),
    Field("verified.corrupted", "verified corrupted", "events"),
)
"""Figures of the whole job."""

RANK_FIELDS = (
    Field("events_per_s", "events/s of a rank", "events/s"),
    Field("seconds", "write time of a rank", "s", "", 1, 6),
    Field("anonymous_before_bytes", "anonymous memory before", "MiB", "before writing", 2**-20, 1),
    Field(
        "anonymous_peak_bytes",
        "anonymous memory peak",
        "MiB",
        "while writing, at the end of each round",
        2**-20,
        1,
    ),
    Field(
        "high_water_bytes",
        "resident memory peak",
        "MiB",
        "VmHWM after writing, mapped files included",
        2**-20,
        1,
    ),
)
"""Figures of each rank in `write.per_rank` of which the text shows the smallest and the largest."""

COMPARISON_FIELDS = (
    Field("raw_ns", "raw buffered file", "ns/event", "", 1, 1),
    Field("log_event_ns", "log_event", "ns/event", "", 1, 1),
    Field("log_events_ns", "log_events", "ns/event", "", 1, 1),
    Field("log_event_ratio", "log_event / raw", "x", "", 1, 3),
    Field("log_events_ratio", "log_events / raw", "x", "", 1, 3),
)
"""Figures in `baseline`, each a median with its smallest and largest value over the rounds."""


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn keys with dots into nested dictionaries, in the order of `values`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        place = tree
        for step in path:
            place = place.setdefault(step, {})
        place[name] = value
    return tree


def look_up(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value at a key with dots."""
    value: Any = tree
    for step in key.split("."):
        value = value[step]
    return value
