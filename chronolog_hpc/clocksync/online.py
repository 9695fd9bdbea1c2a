"""The time on the common time line now, as cheaply as Python allows, for any thread at any moment.

Times follow a `_Course`: a function of the raw clock alone, which rises with it. Whoever evaluates it, and however
often, gets the same. So nothing has to be locked: not against other threads, not against a signal handler that comes in
between, not in a forked child. A course consists of stretches of raw time in which the offset is constant; the
one that was used last is kept for the fast path.

After a synchronisation a new course follows the old one as far as somebody may use it still: to the end of the
present stretch, a millisecond at most. Where it begins is decided when it is in its place, by the raw clock as it
is then. Who finds the old course in its place behind his reading of the raw clock was before that.
"""

from __future__ import annotations

from collections.abc import Callable

from chronolog_hpc.clientlib import ClockModel, InvalidArgumentError

_LONGEST_NS = 1_000_000


class _Course:
    """Times by one model, behind those of the course before. They stand still where they would go back."""

    def __init__(self, model: ClockModel, earlier: _Course | None) -> None:
        self._model, self._earlier = model, earlier
        self._step_ns = min(model.fresh_for_ns(), _LONGEST_NS)
        self._begins: list[tuple[int, int]] = [] if earlier else [(-(2**64), 0)]

    def begin(self, read: Callable[[], int]) -> None:
        """Decide where the course before ends, if nobody has: of several decisions the first one counts."""
        earlier = self._earlier
        if earlier is not None and not self._begins:
            earlier.begin(read)
            end_ns = earlier.at(read())[2]
            self._begins.append((end_ns, earlier.at(end_ns)[0]))

    def at(self, raw_ns: int) -> tuple[int, int, int]:
        """Return the time at a raw time, and of the stretch to which it belongs the offset and the last raw time.

        All at once: asked for one after another, they might be those of two courses.
        """
        earlier, (behind_ns, floor_ns) = self._earlier, self._begins[0]
        if raw_ns > behind_ns:
            self._earlier = (
                None  # nobody needs it any more: who read the clock earlier than that may get the floor
            )
        elif earlier is not None:
            return earlier.at(raw_ns)
        model, step_ns = self._model, self._step_ns
        start_ns = raw_ns - (raw_ns - model.base_ns) % step_ns
        offset_ns = model.time_at(start_ns) - start_ns
        last_ns = model.time_at(start_ns - step_ns) + step_ns - 1
        return max(raw_ns + offset_ns, last_ns, floor_ns), offset_ns, start_ns + step_ns - 1


def online(read: Callable[[], int]) -> tuple[Callable[[], int], Callable[[ClockModel], None]]:
    """Return `now`, and `steer`, the function that gives it a new model.

    Thread safety: `now` from any thread, signal handler or forked child; `steer` from one at a time.

    Args:
        read: returns the raw time, ns; never decreases.
    """
    course: _Course | None = None
    stretch = 0, -(2**64)  # its offset, and the last raw time for which it is right

    def now() -> int:
        offset_ns, until_ns = stretch
        if (raw_ns := read()) <= until_ns:
            return raw_ns + offset_ns
        return refresh()

    def refresh() -> int:
        nonlocal stretch
        while True:
            used = course
            if used is None:
                raise InvalidArgumentError(
                    "this clock was never synchronised: call sync() on all ranks first"
                )
            used.begin(read)
            raw_ns = read()
            time_ns, offset_ns, end_ns = used.at(raw_ns)
            if used is course:
                if time_ns == raw_ns + offset_ns:  # it does not stand still
                    stretch = offset_ns, end_ns
                return time_ns

    def steer(model: ClockModel) -> None:
        nonlocal course
        course = new = _Course(model, course)
        new.begin(read)

    return now, steer
