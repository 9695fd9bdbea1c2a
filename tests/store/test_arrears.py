"""What a client's files hold that a keeper does not have is counted to the event, wherever it lies."""

import os
import pathlib

from py_chronolog_client.clock import SystemClock
from py_chronolog_client.engine.base import WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.store.arrears import Arrears, arrears
from py_chronolog_client.store.files import punch_hole

CLIENT = 0x1122334455667788
RECORD = b"x" * 1000
NOTHING = Arrears(0, 0)


def test_blocks_holes_segments_and_the_tail(tmp_path: pathlib.Path) -> None:
    engine = EmbeddedEngine(tmp_path / "store")
    engine.create_chronicle("c", {})
    writer = engine.open_writer("c", "s", {}, WriterOptions(CLIENT, SystemClock()))
    directory = engine.story_directory("c", "s")
    assert arrears(directory, CLIENT, 0) == NOTHING
    assert arrears(directory, CLIENT + 1, 0) == NOTHING
    for _ in range(4):
        writer.log_events([RECORD] * 1000)
        writer.flush()
    for _ in range(10):
        writer.log_event(RECORD)
    for sequence in (0, 1, 999, 1000, 2500, 4000, 4001, 4009, 4010, 5000):
        found = arrears(directory, CLIENT, sequence)
        assert found.events == max(0, 4010 - sequence)
        assert found.events * 1000 <= found.size_bytes <= found.events * 1020 + 200
    (path,) = directory.glob("*.log")
    punch_hole(str(path), 4096, 2 * 2**20 - 2**20 % 4096)
    held_bytes = os.stat(path).st_blocks * 512
    assert held_bytes < path.stat().st_size
    assert arrears(directory, CLIENT, 3000).events == 1010
    writer.close()
    assert arrears(directory, CLIENT, 4000).events == 10
    engine.close()
