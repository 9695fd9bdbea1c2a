"""A clock that stands still until a test moves it."""

from __future__ import annotations

from py_chronolog_client.clock import ALWAYS, ClockModel, Reading


class ManualClock:
    """Gives the time that it was set to, as often as it is asked.

    The time may be set to anything, also back: the readings are not steady, so whoever makes timestamps from
    them has to keep them from decreasing.

    Attributes:
        now_ns: the time, in ns since 1970 UTC. Set it.
        model: the clock model of readings that are taken from now on.
        models: of all synchronisations so far.
        until: the last time for which readings that are taken from now on are right.
    """

    def __init__(self, now_ns: int = 1_000, model: ClockModel | None = None) -> None:
        """Stop the clock at `now_ns`; without a model, nobody knows how wrong it is."""
        self.now_ns = now_ns
        self.model = model or ClockModel()
        self.models: list[ClockModel] = []
        self.until = ALWAYS

    def reading(self) -> Reading:
        """Return a reading that follows `now_ns`."""
        return Reading(lambda: self.now_ns, 0, self.model, steady=False, until=self.until)
