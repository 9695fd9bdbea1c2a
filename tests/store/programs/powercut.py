"""Write with durability "node" to a file system, cut its power, mount it again, and look what is there.

Arguments: a directory, how many times, a seed. Has to run as root in a mount namespace of its own; the loop device goes
with the last mount.
"""

import fcntl
import os
import pathlib
import random
import signal
import subprocess
import sys
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from py_chronolog_client.clock import SystemClock  # noqa: E402
from py_chronolog_client.engine.base import ScanReport, WriterOptions  # noqa: E402
from py_chronolog_client.engine.embedded import EmbeddedEngine  # noqa: E402
from py_chronolog_client.errors import DamageError  # noqa: E402
from py_chronolog_client.store import owner  # noqa: E402

FS_IOC_SHUTDOWN = 0x8004587D
WITHOUT_LOG_FLUSH = (2).to_bytes(4, "little")
IMAGE_BYTES = 24 << 20


def record_of(sequence: int) -> bytes:
    return b"%d " % sequence + bytes([sequence % 251]) * (sequence * 7919 % 4000)


def write(store: pathlib.Path, answers: int, seed: int) -> None:
    """Log and flush until the power is gone, and tell after each flush how far it has come."""
    chance = random.Random(seed)
    engine = EmbeddedEngine(store)
    engine.create_chronicle("c", {})
    writer = engine.open_writer("c", "s", {}, WriterOptions(1, SystemClock(), "node"))
    sequence = 0
    while True:
        for _ in range(chance.choice([1, 5, 200])):
            if not writer.log_event(record_of(sequence)):
                return
            sequence += 1
        acknowledged = writer.flush()
        os.write(answers, acknowledged.to_bytes(8, "little"))


def mount(image: pathlib.Path, directory: pathlib.Path) -> None:
    subprocess.run(["mount", "-o", "loop", str(image), str(directory)], check=True)


def cycle(image: pathlib.Path, mounted: pathlib.Path, seed: int) -> None:
    chance = random.Random(seed)
    store = mounted / "store"
    reads, answers = os.pipe()
    writer = os.fork()
    if not writer:
        os.close(reads)
        try:
            write(store, answers, seed)
        finally:
            os._exit(0)
    os.close(answers)
    promised = 0
    for _ in range(chance.randrange(1, 12)):  # at which flush, and how long after it
        promised = int.from_bytes(os.read(reads, 8), "little")
    signal.sigtimedwait([], chance.random() * 0.003)
    root = os.open(mounted, os.O_RDONLY)
    fcntl.ioctl(root, FS_IOC_SHUTDOWN, WITHOUT_LOG_FLUSH)
    os.close(root)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    os.set_blocking(reads, False)
    while answer := os.read(
        reads, 8
    ):  # what it had been told before the cut, or was told by an error after it
        promised = max(promised, int.from_bytes(answer, "little"))
    os.close(reads)
    subprocess.run(["umount", str(mounted)], check=True)
    mount(image, mounted)
    found, damages = look(store, promised)
    print(f"seed {seed}: {promised} promised, {found} found, {[str(damage) for damage in damages]}")
    subprocess.run(["rm", "-rf", str(store)], check=True)


def look(store: pathlib.Path, promised: int) -> tuple[int, list[DamageError]]:
    """Replay as a machine that was booted since; return how many events there are, and what is damaged."""
    found, report = 0, ScanReport()
    with mock.patch.object(owner, "boot_id", lambda: b"\x5a" * 16):
        engine = EmbeddedEngine(store, create=False)
        for page in engine.scan("c", "s", verify=True, report=report):
            for sequence, record in zip(page.sequences.tolist(), page.records(), strict=True):
                assert record == record_of(sequence), f"event {sequence} is torn"
                assert sequence >= found, f"event {sequence} stands twice"
                assert sequence == found or found >= promised, f"{found} is missing, {promised} were promised"
                found = sequence + 1
        engine.close()
    assert found >= promised, f"{promised} were promised, {found} are there"
    return found, report.damages


def main(directory: pathlib.Path, cycles: int, seed: int) -> None:
    image, mounted = directory / "image", directory / "mounted"
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    mounted.mkdir()
    mount(image, mounted)
    try:
        for number in range(cycles):
            cycle(image, mounted, seed + number)
    finally:
        subprocess.run(["umount", str(mounted)], check=False)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
