"""Write with durability "node" to a file system, cut its power, mount it again, and look what is there.

Arguments: a directory, how many times, a seed, and perhaps "nosync": then the writer's syncs do nothing. Has to run as
root in a mount namespace of its own; the loop device goes with the last mount. Every umount also proves that neither
writer nor reader has left a descriptor or a mapping behind.

A sync that is under way while the ioctl shuts the file system down may return success though the kernel drops what
it wrote (so does a bare pwrite and fdatasync). A power cut has nobody left to whom that is said. So a promise counts if
its flush had returned before the cut began, and a flush that began after the cut must promise nothing new.
"""

import fcntl
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import time
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
ANSWER = struct.Struct("<QQQ")
"""What the writer tells of a flush: the number that it acknowledged, when it began, when it returned (monotonic, ns)."""


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
        began_ns = time.monotonic_ns()
        acknowledged = writer.flush()
        os.write(answers, ANSWER.pack(acknowledged, began_ns, time.monotonic_ns()))


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
    data = b""
    for _ in range(chance.randrange(1, 12)):  # at which flush, and how long after it
        data += os.read(reads, ANSWER.size)
    signal.sigtimedwait([], chance.random() * 0.003)
    root = os.open(mounted, os.O_RDONLY)
    cut_began_ns = time.monotonic_ns()
    fcntl.ioctl(root, FS_IOC_SHUTDOWN, WITHOUT_LOG_FLUSH)
    cut_ended_ns = time.monotonic_ns()
    os.close(root)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    while more := os.read(reads, 4096):
        data += more
    os.close(reads)
    told = list(ANSWER.iter_unpack(data))
    promised = max(number for number, _, returned_ns in told if returned_ns < cut_began_ns)
    before = max(number for number, began_ns, _ in told if began_ns <= cut_ended_ns)
    after = max((number for number, began_ns, _ in told if began_ns > cut_ended_ns), default=0)
    assert after <= before, f"seed {seed}: {after} were promised by a device that was gone, {before} before"
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


def main(directory: pathlib.Path, cycles: int, seed: int, *defects: str) -> None:
    if "nosync" in defects:
        os.fdatasync = lambda descriptor: None
    image, mounted = directory / "image", directory / "mounted"
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    mounted.mkdir()
    mount(image, mounted)
    for number in range(cycles):
        cycle(image, mounted, seed + number)
    subprocess.run(["umount", str(mounted)], check=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
