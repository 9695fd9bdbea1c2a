"""What the kernel's clocks tell of NTP."""

from chronolog_hpc.clocksync.raw import Health, clock_changes

SECOND = 1_000_000_000


def healths(*ppm: float, step_ns: int = 0) -> list[Health]:
    """Return one look every two seconds, while CLOCK_MONOTONIC runs so much faster than the hardware."""
    found = [Health(0, 0, 10**18)]
    for rate_ppm in ppm:
        last = found[-1]
        passed_ns = 2 * SECOND + round(2 * SECOND * rate_ppm * 1e-6)
        found.append(
            Health(
                last.monotonic_ns + passed_ns,
                last.monotonic_raw_ns + 2 * SECOND,
                last.realtime_ns + passed_ns + step_ns,
            )
        )
    return found


def test_a_steady_frequency_correction_is_no_alarm() -> None:
    assert clock_changes(healths(20, 20, 20.5, 19.8, 20)) == []


def test_a_rate_that_changed_is_said_once() -> None:
    assert clock_changes(healths(20, 20, 23, 500, 20)) == [
        "NTP has changed the rate of the clock, by up to -480.0 ppm"
    ]


def test_looks_that_follow_each_other_at_once_say_nothing_about_rates() -> None:
    near = [Health(k * 1000 + k % 2 * 200, k * 1000, 10**18 + k * 1000) for k in range(10)]
    assert clock_changes(near) == []


def test_steps_of_the_wall_clock_are_said() -> None:
    (sentence,) = clock_changes(healths(20, step_ns=-5 * SECOND))
    assert sentence == f"the wall clock was stepped by {-5 * SECOND} ns, which moves no timestamp"
