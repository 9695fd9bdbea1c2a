"""What a benchmark is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DEFAULT_EVENTS = 200_000
DEFAULT_SIZE_BYTES = 128
DEFAULT_ROUNDS = 5
BASELINE_BATCH = 1000
"""Batch of `log_events` in the comparison with the baseline, where none is asked for."""

MAX_SIZE_BYTES = 64 * 2**20
MAX_BATCH = 2**17
MAX_BATCH_BYTES = 128 * 2**20
"""Readers see a batch of up to so many bytes whole or not at all."""
MAX_PAYLOAD_FILE_BYTES = 256 * 2**20
MAX_SEED = 2**64 - 1

StoryMode = Literal["shared", "per-rank"]


class SpecError(ValueError):
    """A benchmark that cannot be run as asked; the message says in one sentence why, and what to do."""


@dataclass(frozen=True)
class Spec:
    """The parameters of the main job.

    Attributes:
        events: events that each rank logs.
        size_bytes: size of a generated record; without meaning where there is a payload file.
        story: one story of all ranks, or one story for each.
        payload: file whose lines are logged, again and again, instead of generated records.
        batch: 1: each event by `log_event`; more: so many by each `log_events`.
        store: directory of the store, which is kept; None for a fresh one that is removed.
        json: file for the results; it must not be there.
        seed: 0 to 2**64 - 1; generated records depend on it.
        baseline_rounds: rounds of the comparison with a plain buffered file; 0 leaves it out.
    """

    events: int = DEFAULT_EVENTS
    size_bytes: int = DEFAULT_SIZE_BYTES
    story: StoryMode = "shared"
    payload: str | None = None
    batch: int = 1
    store: str | None = None
    json: str | None = None
    seed: int = 0
    baseline_rounds: int = DEFAULT_ROUNDS

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _check_range("events", self.events, 1, 2**48)
        _check_range("size", self.size_bytes, 1, MAX_SIZE_BYTES)
        _check_range("batch", self.batch, 1, MAX_BATCH)
        _check_range("seed", self.seed, 0, MAX_SEED)
        _check_range("baseline-rounds", self.baseline_rounds, 0, 1000)
        for name in ("payload", "store", "json"):
            value = getattr(self, name)
            if value is not None and (not value or "\0" in value):
                raise SpecError(f"--{name} {value!r} is no path")


def _check_range(name: str, value: int, minimum: int, maximum: int) -> None:
    if not minimum <= value <= maximum:
        raise SpecError(f"--{name} {value} is not between {minimum} and {maximum}")
