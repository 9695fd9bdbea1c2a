"""What names in a story's directory mean. The handshake of acquiring and destroying is in test_catalog.py."""

import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.store import acquisition

ID = "00000000000000ff"
MEANINGLESS = [
    "meta",
    "destroying",
    ".tmp-00000000000000ff.log",
    "00000000000000FF.log",
    "0000000000000ff.log",
    "000000000000000ff.log",
    "00000000000000ff.log~",
    "00000000000000ff.0.log",
    "00000000000000ff.01.log",
    "00000000000000ff.-1.log",
    "00000000000000ff.1234567890.log",
    "00000000000000ff.1.2.log",
    "00000000000000ff.tail",
    "00000000000000ff",
    "00000000000000ff.log\n",
    "0000000000000\u0660ff.log",
]


@given(
    segments=st.dictionaries(
        st.integers(0, 2**64 - 1), st.sets(st.integers(0, 10**9 - 1), min_size=1, max_size=4)
    ),
    others=st.sets(st.sampled_from(MEANINGLESS)),
)
def test_segments_are_told_by_their_names(
    tmp_path_factory: pytest.TempPathFactory, segments: dict[int, set[int]], others: set[str]
) -> None:
    directory = tmp_path_factory.mktemp("story")
    for client_id, numbers in segments.items():
        for number in numbers:
            (directory / f"{client_id:016x}{f'.{number}' if number else ''}.log").touch()
    for name in others:
        (directory / name).touch()
    found = acquisition.segments(directory)
    assert found == {client_id: sorted(numbers) for client_id, numbers in segments.items()}
    assert list(found) == sorted(found) == acquisition.clients(directory)


@pytest.mark.parametrize("name", MEANINGLESS)
def test_other_names_mean_nothing(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).touch()
    assert acquisition.segments(tmp_path) == {}
    assert acquisition.clients(tmp_path) == []


def test_a_directory_that_is_gone(tmp_path: pathlib.Path) -> None:
    for look in (acquisition.segments, acquisition.clients, acquisition.holders):
        with pytest.raises(FileNotFoundError):
            look(tmp_path / "gone")
    assert acquisition.living_destroyer(tmp_path / "gone") is None


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({}, "an unknown process"),
        ({"client_id": 255}, f"client {ID}, an unknown process"),
        (
            {"client_id": 255, "pid": 7, "host": "n1", "user": "ada"},
            f"client {ID}, process 7 on n1 of user ada",
        ),
        ({"pid": "x" * 1000, "client_id": "no number"}, f"process {'x' * 100} on ? of user ?"),
    ],
)
def test_owners_are_named_in_a_few_words(description: dict[str, Any], words: str) -> None:
    assert acquisition.named(description) == words
