"""The blocks of a client as a sender ships them: always the same for a seed, so that any process can make them again."""

import random
from collections.abc import Iterator

from py_chronolog_client.testing.contract.base import Row
from tests.store import independent

CLIENT = 0x1122334455667788
MANY = 400


class Client:
    """A client, and what it logs.

    Attributes:
        client_id: whose id it has.
        events: (time, record) of all its events.
        blocks: (number of its first event, block) of all events blocks.
    """

    def __init__(
        self, client_id: int, seed: int, blocks: int, *, events: int = 40, record_bytes: int = 200
    ) -> None:
        numbers = random.Random(seed)
        self.client_id = client_id
        self.events: list[tuple[int, bytes]] = []
        self.blocks: list[tuple[int, bytes]] = []
        time_ns = 0
        for _ in range(blocks):
            logged = []
            for _ in range(numbers.randrange(1, events)):
                time_ns += numbers.randrange(3)
                logged.append((time_ns, numbers.randbytes(numbers.randrange(record_bytes))))
            first = len(self.events)
            self.blocks.append((first, independent.events_block(client_id, first, logged)))
            self.events += logged

    @property
    def rows(self) -> list[Row]:
        return [(time, self.client_id, number, record) for number, (time, record) in enumerate(self.events)]

    def blocks_from(self, sequence: int, *, has_client: bool) -> Iterator[bytes]:
        """Yield what somebody lacks who has the events below `sequence`: the first record, blocks, the goodbye."""
        if not has_client:
            yield independent.client_record(self.client_id)
        yield from (block for first, block in self.blocks if first >= sequence)
        yield independent.close_record(self.client_id, len(self.events))
