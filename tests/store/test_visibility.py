"""What has returned is seen: at once, by other processes, on other hosts as far as that can be, in copies, by colleagues.

The writer says over a pipe what has returned; whoever reads then must find it at the first look. Nobody waits.
"""

import contextlib
import json
import logging
import os
import pathlib
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator

import pytest

import py_chronolog_client as chronolog
from py_chronolog_client.engine.base import ScanReport
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import NotAuthorizedError
from py_chronolog_client.store import storylog
from py_chronolog_client.testing.contract.base import rows_of
from tests.store.holding import NOBODY, as_nobody, as_user
from tests.store.programs import visible
from tests.store.writing import CHRONICLE, STORY, acquire, connect, files, read, seeded
from tests.support import processes
from tests.support.counts import soak
from tests.support.launch import python_argv
from tests.support.namespaces import run_in_tmpfs

assert storylog, "imported now: another user perhaps may not"
ORDERS = ["event", "batch", "big", "flush", "clock"]
DEADLINE_S = soak(60, 900)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


class Writer:
    """A process that logs when it is told to."""

    def __init__(self, store: pathlib.Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, visible.__file__, str(store)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=processes.child_environment(environment),
        )
        self._timer = threading.Timer(DEADLINE_S, self.process.kill)
        self._timer.start()
        self.answer()

    def answer(self) -> int:
        """Return how many events have returned."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the writer has died"
        return int(line)

    def order(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def do(self, line: str) -> int:
        self.order(line)
        return self.answer()

    def end(self) -> None:
        self._timer.cancel()
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def writing_to(store: pathlib.Path, **environment: str) -> Iterator[Writer]:
    writer = Writer(store, **environment)
    try:
        yield writer
    finally:
        writer.end()


@contextlib.contextmanager
def everybodys_directory() -> Iterator[pathlib.Path]:
    """Make a directory that other users can reach, which tmp_path is not."""
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        directory.chmod(0o755)
        yield directory


def records(count: int) -> list[bytes]:
    return [visible.record(number) for number in range(count)]


def found_by(engine: EmbeddedEngine) -> list[bytes]:
    return [event.record for event in read(engine)]


@pytest.fixture
def store(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "store"


@pytest.fixture
def tails(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "tails").mkdir()
    return tmp_path / "tails"


# -- at once --


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_has_returned_is_seen_at_the_first_look(
    store: pathlib.Path, tails: pathlib.Path, elsewhere: bool
) -> None:
    """By a new reader, by one that has looked before, in a snapshot, and by a follower: across roll-overs of every kind."""
    chance = seeded("visibility", random.randrange(2**32))
    with writing_to(store, CHRONOLOG_TAIL_DIR=str(tails) if elsewhere else "") as writer:
        assert bool(list(tails.iterdir())) == elsewhere
        old, cursor, followed = EmbeddedEngine(store, create=False), {}, []
        for _ in range(soak(150, 1000)):
            count = writer.do(chance.choices(ORDERS, [10, 4, 1, 1, 1])[0])
            if count:
                assert sum(old.snapshot(CHRONICLE, STORY).values()) == count
            pages, cursor = old.follow(CHRONICLE, STORY, cursor, 0.0)
            followed += [row[3] for row in rows_of(iter(pages))]
            assert len(followed) == count
            if chance.random() < 0.2:
                assert found_by(old) == records(count)
                assert found_by(EmbeddedEngine(store, create=False)) == records(count)
        assert followed == records(count)
        assert writer.do("stop") == count
        assert found_by(old) == records(count)
        assert not list(tails.iterdir())


@pytest.mark.slow
def test_what_has_returned_is_seen_while_the_writer_goes_on(store: pathlib.Path) -> None:
    count = soak(4000, 40_000)
    with writing_to(store) as writer:
        reader, cursor, followed = EmbeddedEngine(store, create=False), {}, []
        writer.order(str(count))
        returned = looks = 0
        while returned < count:
            returned = writer.answer()
            if returned % 40 and returned < count:
                continue
            looks += 1
            pages, cursor = reader.follow(CHRONICLE, STORY, cursor, 0.0)
            followed += [row[3] for row in rows_of(iter(pages))]
            assert len(followed) >= returned
            assert sum(reader.snapshot(CHRONICLE, STORY).values()) >= returned
            if not returned % 400:
                assert len(found_by(EmbeddedEngine(store, create=False))) >= returned
        assert followed == records(count)
        assert looks >= count // 40


def test_a_follower_that_waits_is_woken(store: pathlib.Path) -> None:
    with writing_to(store) as writer:
        reader = EmbeddedEngine(store, create=False)
        timer = threading.Timer(0.05, writer.order, ["event"])
        timer.start()
        pages, cursor = reader.follow(CHRONICLE, STORY, {}, DEADLINE_S)
        timer.join()
        assert [row[3] for row in rows_of(iter(pages))] == records(1)
        assert sum(cursor.values()) == 1


# -- tails elsewhere, and other hosts --


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_tail_directory_that_is_none(store: pathlib.Path, tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    client = connect(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHRONOLOG_TAIL_DIR", str(tmp_path / name))
        code, handle = client.AcquireStory(CHRONICLE, STORY)
    assert (code, handle) == (chronolog.ErrorCode.CL_ERR_INVALID_ARG, None)
    expected = f"CHRONOLOG_TAIL_DIR={tmp_path / name}: no such directory, make it or unset the variable"
    assert str(client.last_error) == expected
    assert files(store) == [], "something was left"
    assert client.AcquireStory(CHRONICLE, STORY)[0] == 0
    client.Disconnect()


def acquisition_of(store: pathlib.Path) -> str:
    """Try to acquire the story of a store, and return what came of it."""
    try:
        client = connect(store)
    except AssertionError as refused:
        return str(refused)
    return f"{client.AcquireStory(CHRONICLE, STORY)[0]} {client.last_error}"


@as_root
def test_a_tail_directory_that_may_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with everybodys_directory() as directory:
        tails, store = directory / "tails", directory / "store"
        tails.mkdir()
        store.mkdir()
        os.chown(store, NOBODY, NOBODY)
        monkeypatch.setenv("CHRONOLOG_TAIL_DIR", str(tails))
        said = as_nobody(lambda: acquisition_of(store))
        sentence = f"CHRONOLOG_TAIL_DIR={tails}: no file can be made there (Permission denied)"
        assert str(said).startswith(f"-2 {sentence}")
        assert files(store) == []


def test_a_tail_directory_that_is_full(store: pathlib.Path, tails: pathlib.Path) -> None:
    program = """
        import os, sys
        from tests.store.writing import CHRONICLE, STORY, connect, files
        client = connect(sys.argv[1])
        os.environ["CHRONOLOG_TAIL_DIR"] = sys.argv[2]
        code, handle = client.AcquireStory(CHRONICLE, STORY)
        print(code, client.last_error, files(sys.argv[1]), os.listdir(sys.argv[2]))
    """
    done = run_in_tmpfs(tails, 2**16, "-c", program, store, tails)
    assert "-1 " in done.stdout
    assert "No space left on device" in done.stdout
    assert done.stdout.strip().endswith("[] []"), "something was left"


LOOK = """
    import json, logging, sys
    import py_chronolog_client as chronolog
    from py_chronolog_client.engine.base import ScanReport
    logging.basicConfig()
    portal = chronolog.ClientPortalServiceConf("file", sys.argv[-1], 0, 0)
    with chronolog.Client(portal, chronolog.ClientQueryServiceConf()) as client:
        report, series = ScanReport(), chronolog.EventList()
        pages = client.replay("chronicle", "story", report=report, verify=True)
        found = [record.decode() for page in pages for record in page.records()]
        code = client.ReplayStory("chronicle", "story", 0, 2**64 - 1, series)
        assert len(series) == len(found)
        assert str(series.damages) == str(report.damages)
        for _ in range(3):
            pages, _ = client.follow("chronicle", "story", {}, 0)
            assert sum(map(len, pages)) == len(found)
        counts = [report.unseen, report.disbelieved, report.missing, len(report.damages)]
        print(json.dumps([code, found, counts]))
"""


def test_another_host_sees_what_was_flushed_and_is_told_of_the_rest(
    store: pathlib.Path, tails: pathlib.Path
) -> None:
    """A mount over the directory of the tails is what another host would see in its place."""

    def look() -> tuple[list[bytes], int, str]:
        done = run_in_tmpfs(tails, 2**16, "-c", LOOK, store)
        code, found, (unseen, *others) = json.loads(done.stdout)
        assert (code, others) == (0, [0, 0, 0])
        return [record.encode() for record in found], unseen, done.stderr

    with writing_to(store, CHRONOLOG_TAIL_DIR=str(tails)) as writer:
        writer.do("event")
        assert look()[:2] == ([], 1)
        flushed = writer.do("flush")
        count = writer.do("event")
        found, unseen, said = look()
        assert (found, unseen) == (records(flushed), 1)
        assert said.count("the tails of 1 clients cannot be seen from this machine") == 2, "replay and follow"
        assert found_by(EmbeddedEngine(store, create=False)) == records(count), "here they are seen"
        assert writer.do("stop") == count
        found, unseen, said = look()
        assert (found, unseen) == (records(count), 0)
        assert said == ""


def test_the_tail_of_a_killed_writer_on_another_host_stays_unseen_and_said(
    store: pathlib.Path, tails: pathlib.Path
) -> None:
    with writing_to(store, CHRONOLOG_TAIL_DIR=str(tails)) as writer:
        writer.do("flush")
        writer.do("event")
    done = run_in_tmpfs(tails, 2**16, "-c", LOOK, store)
    assert json.loads(done.stdout) == [0, [], [1, 0, 0, 0]]
    assert "cannot be seen from this machine" in done.stderr


def test_a_follower_says_what_is_damaged_once(store: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    client = connect(store)
    handle = acquire(client)
    for number in range(3):
        handle.log_event(f"{number}")
        handle.flush()
    (segment,) = files(store, "*.log")
    data = bytearray(segment.read_bytes())
    data[data.index(b"CLOGBLK1", data.index(b"CLOGBLK1", 128) + 1)] ^= 1
    segment.write_bytes(data)
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        pages, _ = client.follow(CHRONICLE, STORY, {}, 0.0)
        assert [row[3] for row in rows_of(iter(pages))] == [b"0", b"2"]
    assert len([1 for record in caplog.records if "no valid block header" in record.getMessage()]) == 1
    client.Disconnect()


# -- read-only and copied stores --


def tree(directory: pathlib.Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return everything that can be seen to change below a directory."""
    found = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = status.st_mode, status.st_mtime_ns, status.st_ino, data
    return found


def make_store_with_a_tail(store: pathlib.Path) -> int:
    """Leave a store as a killed writer leaves it; return how many events are in it."""
    with writing_to(store) as writer:
        for order in ("event", "flush", "big", "batch"):
            count = writer.do(order)
    assert files(store, "*.tail")
    return count


def test_a_store_on_a_read_only_file_system(store: pathlib.Path, namespace: tuple[str, ...]) -> None:
    count = make_store_with_a_tail(store)
    before = tree(store)
    script = """
        mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && ! touch "$1/new" 2>/dev/null && exec "$2" -c "$3" "$1"
    """
    argv = ["sh", "-c", script, "sh", str(store), sys.executable, textwrap.dedent(LOOK)]
    done = processes.run([*namespace, *argv], timeout=30)
    assert done.returncode == 0, processes.describe(done)
    assert json.loads(done.stdout) == [0, [r.decode() for r in records(count)], [0, 0, 0, 0]]
    assert tree(store) == before


@as_root
def test_a_store_that_nobody_may_write() -> None:
    with everybodys_directory() as directory:
        store = directory / "store"
        count = make_store_with_a_tail(store)
        for path in [store, *store.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = tree(directory)
        found = as_nobody(lambda: [record.decode() for record in found_by(EmbeddedEngine(store))])
        assert found == [record.decode() for record in records(count)]
        assert "Permission denied" in str(as_nobody(lambda: acquisition_of(store)))
        assert tree(directory) == before


def check_copy(copy: pathlib.Path, at_least: int, at_most: int) -> ScanReport:
    """Check that a copy has a beginning of the story, nothing torn, and that the report counts what is left out."""
    report = ScanReport()
    engine = EmbeddedEngine(copy, create=False)
    before = tree(copy)
    found = [row[3] for row in rows_of(engine.scan(CHRONICLE, STORY, verify=True, report=report))]
    assert tree(copy) == before, "reading has written"
    assert found == records(len(found)), "not a beginning of the story"
    assert at_least <= len(found) + report.disbelieved + report.missing <= at_most
    return report


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cp", "cp -a", "by name", "by name backwards"])
def test_copies_made_while_the_writer_goes_on(store: pathlib.Path, tmp_path: pathlib.Path, way: str) -> None:
    """A copy of a tail is a copy of several moments; so its events are counted and left out."""
    copies, per_copy = soak(5, 50), 1000
    disbelieved = 0
    with writing_to(store) as writer:
        total = returned = 0
        for number in range(copies):
            copy = tmp_path / f"copy-{number}"
            writer.order(str(per_copy))
            total += per_copy
            if way.startswith("cp"):
                subprocess.run([*way.split(), *(["-r"] if way == "cp" else []), store, copy], check=True)
            else:  # rsync goes by name, and others come later
                for path in sorted(store.rglob("*"), reverse=way.endswith("backwards")):
                    target = copy / path.relative_to(store)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if path.is_file():
                        shutil.copyfile(path, target)
            before = returned
            while returned < total:
                returned = writer.answer()
            report = check_copy(copy, before, total)
            assert not report.damages, report.damages
            disbelieved += report.disbelieved
            shutil.rmtree(copy)
        assert disbelieved or way.endswith("backwards"), "no tail was ever copied"
        assert writer.do("stop") == total
    shutil.copytree(store, tmp_path / "copy")
    assert check_copy(tmp_path / "copy", total, total).disbelieved == 0, "a closed store is whole in a copy"


def test_the_copy_of_a_killed_writers_store_is_whole_where_it_is_trusted(
    store: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    count = make_store_with_a_tail(store)
    shutil.copytree(store, tmp_path / "copy")
    left_out = check_copy(tmp_path / "copy", count, count).disbelieved
    assert left_out > 0
    with connect(tmp_path / "copy") as client:
        series = chronolog.EventList()
        assert client.ReplayStory(CHRONICLE, STORY, 0, 2**64 - 1, series) == 0
        assert f"the newest {left_out} events" in caplog.text
        assert "CHRONOLOG_TRUST_TAILS=1" in caplog.text
    monkeypatch.setenv("CHRONOLOG_TRUST_TAILS", "1")
    assert found_by(EmbeddedEngine(tmp_path / "copy", create=False)) == records(count)


def test_a_store_that_was_moved_is_whole(store: pathlib.Path, tmp_path: pathlib.Path) -> None:
    count = make_store_with_a_tail(store)
    store.rename(tmp_path / "moved")
    assert found_by(EmbeddedEngine(tmp_path / "moved", create=False)) == records(count)


# -- who may read, who may write --

OWNER, COLLEAGUE, STRANGER, GROUP = 51001, 51002, 51003, 51009


def write_and_die(store: pathlib.Path, mask: int = 0o022) -> None:
    os.umask(mask)
    handle = acquire(connect(store))
    handle.log_event("in a block")
    handle.flush()
    handle.log_event("in the tail")


def modes(store: pathlib.Path) -> set[tuple[str, str]]:
    """Return which kinds of entries there are with which permission bits."""
    found = set()
    for path in [store, *store.rglob("*")]:
        status = path.lstat()
        found.add(("directory" if path.is_dir() else "file", f"{stat.S_IMODE(status.st_mode):04o}"))
    return found


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_a_store_is_its_owners_alone_whatever_the_umask(tmp_path: pathlib.Path, mask: int) -> None:
    store = tmp_path / "store"
    code = f"""
        import os, pathlib
        from tests.store.test_visibility import write_and_die
        write_and_die(pathlib.Path({str(store)!r}), {mask})
        os._exit(0)
    """
    done = processes.run([sys.executable, "-B", *python_argv("-c", code)], timeout=30)
    assert done.returncode == 0, processes.describe(done)
    assert modes(store) == {("directory", "0700"), ("file", "0600")}
    assert len(read(store)) == 2


@as_root
@pytest.mark.parametrize("mask", [0o000, 0o077])
@pytest.mark.parametrize("mode", ["", "0640", "0660"])
def test_who_may_read_a_post_mortem_and_who_may_write(
    mode: str, mask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with everybodys_directory() as directory:
        store = directory / "home" / "store"
        store.parent.mkdir(mode=0o755)
        os.chown(store.parent, OWNER, GROUP)
        monkeypatch.setenv("CHRONOLOG_MODE", mode)
        as_user(OWNER, GROUP, lambda: write_and_die(store, mask))
        monkeypatch.delenv("CHRONOLOG_MODE")
        directories = {"": "0700", "0640": "2750", "0660": "2770"}[mode]
        assert modes(store) == {("directory", directories), ("file", mode or "0600")}

        def found() -> object:
            try:
                return [event.record.decode() for event in read(store)]
            except NotAuthorizedError:
                return "refused"

        events = ["in a block", "in the tail"]
        before = tree(directory)
        assert as_user(OWNER, GROUP, found) == events
        assert as_user(COLLEAGUE, GROUP, found) == (events if mode else "refused")
        assert as_user(STRANGER, STRANGER, found) == "refused"
        assert tree(directory) == before, "reading has written"
        for uid, gid in ((STRANGER, STRANGER), (COLLEAGUE, GROUP)):
            said = as_user(uid, gid, lambda: acquisition_of(store))
            if mode == "0660" and uid == COLLEAGUE:
                assert str(said).startswith("0 ")
            else:
                assert "Permission denied" in str(said)
                assert tree(directory) == before
