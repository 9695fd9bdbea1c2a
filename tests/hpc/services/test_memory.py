"""What a service frees stays with it for the next page: a replay like the one before needs nothing from the kernel."""

import pathlib
import resource

import pytest

from py_chronolog_client.clock import SystemClock
from py_chronolog_client.engine.base import WriterOptions
from tests.support.services import Role, deployed

pytestmark = pytest.mark.slow

EVENTS, RECORD_BYTES = 200_000, 128


def fetched_bytes(role: Role) -> int:
    """Return how much memory the kernel has given to a process so far."""
    fields = pathlib.Path(f"/proc/{role.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[7]) * resource.getpagesize()


def test_a_replay_takes_the_buffers_of_the_one_before(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with deployed(tmp_path / "d", monkeypatch) as deployment:
        engine = deployment.engine()
        engine.create_chronicle("c", {})
        writer = engine.open_writer("c", "s", {}, WriterOptions(1, SystemClock()))
        for _ in range(EVENTS // 1000):
            writer.log_events([b"x" * RECORD_BYTES] * 1000)
        writer.close()
        roles = [deployment.player, *deployment.keepers]
        needed = []
        for _ in range(6):
            before = [fetched_bytes(role) for role in roles if role is not None]
            assert sum(map(len, engine.scan("c", "s"))) == EVENTS
            after = [fetched_bytes(role) for role in roles if role is not None]
            needed.append([end - start for start, end in zip(before, after, strict=True)])
        engine.close()
    for least in map(min, zip(*needed, strict=True)):
        assert least < EVENTS * RECORD_BYTES / 16
