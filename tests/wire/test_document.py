"""docs/protocol.md says what the package does: its tables, its limits, its example."""

import re
from typing import Any

import pytest

from py_chronolog_client.wire import frames, heads, messages, pages
from tests.wire import example
from tests.wire.feeding import hints

TEXT = example.DOCUMENT.read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("|")
]
TYPES: dict[str, Any] = {
    "u64": int,
    "code": messages.Code,
    "port": messages.Port,
    "ms": messages.Milliseconds,
    "bool": bool,
    "str": str,
    "bytes": bytes,
    "[str]": list[str],
    "{str: str}": dict[str, str],
}


def documented() -> dict[str, dict[str, Any]]:
    found = {}
    for row in ROWS:
        cells = row[1:] if row[0] in ("client", "service") else row
        match = re.fullmatch(r"`([A-Z]\w+)`", cells[0])
        if match:
            pairs = re.findall(r"(\w+): (\{str: str\}|\[str\]|\w+)", cells[1])
            found[match[1]] = {name: TYPES[kind] for name, kind in pairs}
    return found


def test_every_message_with_its_fields_in_their_order() -> None:
    found = documented()
    assert found.keys() == messages.KINDS.keys()
    for name, kind in messages.KINDS.items():
        assert list(found[name].items()) == list(hints(kind).items()), name


@pytest.mark.parametrize(
    "number",
    [
        frames.MAX_HEAD_BYTES,
        frames.MAX_BODY_BYTES,
        frames.MAX_GREETING_BYTES,
        heads.MAX_ITEMS,
        pages.MAX_PAGE_BYTES,
    ],
)
def test_the_limits(number: int) -> None:
    assert f"{number:,}".replace(",", " ") in TEXT


def test_the_worked_example() -> None:
    assert f"```text\n{example.dump()}\n```" in TEXT, "run python -m tests.wire.example"


def test_the_worked_example_by_the_other_implementation() -> None:
    """The bytes of the document are those that follow from its prose."""
    nonces = example.CLIENT_NONCE, example.SERVICE_NONCE
    other = example.independent
    expected = [
        {"type": "Hello", "protocol": 1, "name": "ada", "nonce": nonces[0]},
        {"type": "Challenge", "nonce": nonces[1]},
        {"type": "Proof", "mac": other.mac(example.SECRET, b"client", "ada", *nonces, b"")},
        {
            "type": "Welcome",
            "mac": other.mac(example.SECRET, b"service visor", "ada", *nonces, b""),
            "service": "visor",
        },
        {"type": "StoryAttributes", "chronicle": "run", "story": "steps"},
        {"type": "Attributes", "attributes": {"unit": "K"}},
    ]
    assert [data for _, data in example.said()] == [other.frame(message) for message in expected]
