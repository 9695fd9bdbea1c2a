"""A tail with its one writer, driven step by step."""

import pathlib

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.store import owner
from py_chronolog_client.store.format import TailHeader, TailState
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.tail import RESERVE_BYTES, Epoch, Tail

CLIENT_ID = 7
CAPACITY = 6
PAYLOAD_BYTES = 512


class TailWriter:
    """Appends to a tail in the order of stores that docs/format.md prescribes, and knows what it holds.

    Attributes:
        tail: the file.
        epoch: the right to write.
        base: sequence number of its first slot.
        events: (time, record) of its slots.
    """

    def __init__(self, directory: pathlib.Path, base: int = 0, elsewhere: pathlib.Path | None = None) -> None:
        tail_bytes = 4096 + 16 * CAPACITY + PAYLOAD_BYTES + RESERVE_BYTES
        layout = TailHeader.layout(CLIENT_ID, tail_bytes, CAPACITY, owner.boot_id())
        root = StoreRoot.open(directory / "store", create=True)
        path = root.path / f"{CLIENT_ID:016x}.tail"
        self.tail = Tail(root, path, elsewhere, layout, TailState(base, 0, ClockModel()))
        self.epoch = Epoch(self.tail)
        self.base = base
        self.events: list[tuple[int, bytes]] = []

    @property
    def end_sequence(self) -> int:
        return self.base + len(self.events)

    def append(self, time_ns: int, record: bytes) -> None:
        slot = len(self.events)
        end = self.tail.end(self.epoch, slot)
        self.epoch.room[end : end + len(record)] = record
        self.epoch.times[slot] = time_ns
        self.epoch.ends[slot] = end + len(record)
        self.events.append((time_ns, record))

    def roll(self, model: ClockModel | None = None) -> None:
        self.base, self.events = self.end_sequence, []
        self.tail.recycle(self.epoch, self.base, model or ClockModel())

    def close(self) -> None:
        self.epoch.revoke()
        self.tail.unmap()
