"""A hybrid logical clock: stamps for messages, never earlier at a receive than at its send.

Source: S. Kulkarni, M. Demirbas and others, "Logical physical clocks", OPODIS 2014, with time and counter in
one number of nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable

from chronolog_hpc.clientlib import InvalidArgumentError

_END_NS = 2**63 - 1


class HybridClock:
    """The stamps of one rank. They rise strictly, and are ahead of its clock by no more than the clocks differ.

    Thread safety: none; one thread of a rank stamps its messages.

    Attributes:
        push_ns: the farthest that a message from elsewhere has put a stamp ahead of the clock, ns.
    """

    def __init__(self, now: Callable[[], int]) -> None:
        """Take the rank's synchronised clock."""
        self._now = now
        self._last_ns = 0
        self.push_ns = 0

    def send(self) -> int:
        """Return the stamp of a message that is sent now, to go with it; ns on the common time line."""
        self._last_ns = max(self._now(), self._last_ns + 1)
        return self._last_ns

    def receive(self, stamp_ns: int) -> int:
        """Return the stamp of receiving a message with the stamp `stamp_ns`: later than that.

        Raises:
            InvalidArgumentError: that is no time of 63 bits, and would spoil all later stamps.
        """
        if not 0 <= stamp_ns < _END_NS:
            raise InvalidArgumentError(
                f"a message came with the stamp {stamp_ns}, which is no time of 63 bits"
            )
        now_ns = self._now()
        stamp_ns = max(now_ns, self._last_ns + 1, stamp_ns + 1)
        self.push_ns = max(self.push_ns, stamp_ns - now_ns)
        self._last_ns = stamp_ns
        return stamp_ns
