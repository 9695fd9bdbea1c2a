"""Append a client's blocks to its intake and tell over a pipe what has returned, until somebody kills this.

Arguments: directory of the store, seed, descriptor of the pipe.
"""

import os
import pathlib
import struct
import sys

from py_chronolog_client.store.intake import Intake
from py_chronolog_client.store.root import StoreRoot
from tests.store import shipping

NOTE = struct.Struct("<Q")
"""What is told of each block that was taken: the number behind the last event that is there."""


def main(store: str, seed: int, pipe: int) -> None:
    root = StoreRoot.open(store, create=False)
    (directory,) = pathlib.Path(store).glob("chronicles/*/stories/*")
    intake = Intake(root, directory, shipping.CLIENT)
    client = shipping.Client(shipping.CLIENT, seed, shipping.MANY)
    os.write(pipe, NOTE.pack(intake.sequence))
    for block in client.blocks_from(intake.sequence, has_client=not intake.is_empty):
        os.write(pipe, NOTE.pack(intake.append(block)))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
