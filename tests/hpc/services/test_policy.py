"""What the attributes of a story mean for its events."""

import pytest

from chronolog_hpc.services.policy import PACE, Policy
from py_chronolog_client.engine.base import MAX_TIME_NS
from py_chronolog_client.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("attributes", "policy"),
    [
        ({}, Policy("normal", None)),
        ({"TieringPolicy": "Hot", "Priority": "High"}, Policy("hot", None)),
        ({"TieringPolicy": "cold", "Retention": "90s"}, Policy("cold", 90)),
        ({"Retention": "5m"}, Policy("normal", 300)),
        ({"Retention": "12h"}, Policy("normal", 43200)),
        ({"Retention": "30d"}, Policy("normal", 2592000)),
    ],
)
def test_what_is_understood(attributes: dict[str, str], policy: Policy) -> None:
    assert Policy.of(attributes) == policy


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"TieringPolicy": "warm"}, "TieringPolicy is 'warm', not one of hot, normal, cold: leave it out"),
        ({"TieringPolicy": ""}, "TieringPolicy is ''"),
        *(
            ({"Retention": period}, f"Retention is {period!r}, not a number of")
            for period in ("", "0s", "5", "1.5h", "-1d", "1w", "9" * 20 + "d", "5 m")
        ),
    ],
)
def test_what_is_none_is_refused_in_a_sentence(attributes: dict[str, str], sentence: str) -> None:
    with pytest.raises(InvalidArgumentError, match=sentence):
        Policy.of(attributes)


def test_how_much_time_a_chunk_may_hold() -> None:
    assert Policy("cold", None).span_ns == MAX_TIME_NS
    assert Policy("cold", 90).span_ns == 9 * 10**9


def test_how_long_events_stay_at_keepers_and_in_segments() -> None:
    hot, normal, cold = (PACE.tiers[name] for name in ("hot", "normal", "cold"))
    assert hot.seal_s > normal.seal_s > cold.seal_s
    assert hot.merge_s > normal.merge_s > cold.merge_s == cold.merge_bytes == 0
