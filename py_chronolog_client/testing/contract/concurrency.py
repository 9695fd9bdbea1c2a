"""The contract under threads, signal handlers, forks and SIGKILL."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

import pytest

from py_chronolog_client.engine.base import Engine, Writer
from py_chronolog_client.testing.contract.base import CHRONICLE, STORY, ContractBase, Probe
from py_chronolog_client.testing.contract.threads import running


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child that leaves without cleaning up; return its wait status."""
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001  the child must not return to the test runner
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


class ConcurrencyContract(ContractBase):
    """What an engine promises when more than one thing happens at once."""

    def test_threads_share_a_writer(self, probe: Probe) -> None:
        writer = probe.open()
        returned: dict[bytes, int] = {}

        def write(name: str) -> None:
            for number in range(150):
                record = f"{name}.{number}"
                returned[record.encode()] = writer.log_event(record)
                if number % 50 == 0:
                    batch = [f"{record}.{part}" for part in range(3)]
                    time_ns = writer.log_events(batch)
                    returned.update((part.encode(), time_ns) for part in batch)
                if number % 70 == 0:
                    writer.flush()

        with running(*(lambda name=name: write(name) for name in "abcd")):
            pass
        assert writer.flush() == len(returned)
        rows = probe.rows()
        assert [row[2] for row in rows] == list(range(len(returned)))
        assert {row[3]: row[0] for row in rows} == returned
        for name in b"abcd":
            own = [row[3] for row in rows if row[3][0] == name]
            assert own == [record for record in returned if record[0] == name]
        statistics = writer.statistics()
        assert (statistics.logged, dict(statistics.lost)) == (len(returned), {})

    def test_threads_have_writers_of_their_own(self, probe: Probe) -> None:
        probe.create()

        def write(client_id: int) -> None:
            writer = probe.open(client_id)
            for number in range(100):
                writer.log_event(str(number))
            writer.close()

        with running(*(lambda number=number: write(number) for number in range(4))):
            pass
        rows = probe.rows()
        assert len(rows) == 400
        for client_id in range(4):
            own = [(row[2], row[3]) for row in rows if row[1] == client_id]
            assert own == [(number, b"%d" % number) for number in range(100)]

    def test_every_event_is_stored_or_refused_when_a_thread_closes(self, probe: Probe) -> None:
        for client_id in range(10):
            writer = probe.open(client_id)
            answers: list[int] = []

            def write(writer: Writer = writer, answers: list[int] = answers) -> None:
                while 0 not in answers[-1:] and len(answers) < 100_000:
                    answers.append(writer.log_event(b"event"))

            def close(writer: Writer = writer, answers: list[int] = answers) -> None:
                while len(answers) < 20:
                    time.sleep(0)
                writer.close()

            with running(write, close):
                pass
            accepted = sum(answer > 0 for answer in answers)
            statistics = writer.statistics()
            assert (statistics.logged, statistics.acknowledged) == (accepted, accepted)
            assert dict(statistics.lost) == {"closed": len(answers) - accepted}
            assert len(probe.rows(clients=[client_id])) == accepted

    def test_readers_see_whole_batches_and_no_gaps_while_threads_write(self, probe: Probe) -> None:
        writers = [probe.open(client_id) for client_id in (1, 2)]

        def write(writer: Writer) -> None:
            for number in range(150):
                writer.log_events([f"{number}.{part}" for part in range(8)])
                if number % 5 == 0:
                    writer.flush()
            writer.flush()

        seen = 0
        with running(*(lambda writer=writer: write(writer) for writer in writers)) as is_done:
            last = False
            while not last:
                last = is_done()
                for writer in writers:
                    writer.flush()
                snapshot = probe.snapshot()
                assert all(mark % 8 == 0 for mark in snapshot.values()), "half a batch"
                rows = probe.rows(snapshot=snapshot)
                assert len(rows) == sum(snapshot.values()), "not what the snapshot says"
                assert len(rows) >= seen, "events vanished"
                seen = len(rows)
                assert rows == sorted(rows)
                for client_id in (1, 2):
                    own = [row[2] for row in probe.rows(clients=[client_id])]
                    assert own == list(range(len(own))), "a gap"
                    assert len(own) % 8 == 0, "half a batch"
        assert seen == 2 * 150 * 8

    def test_a_signal_handler_logs_through_the_writer_it_interrupted(self, probe: Probe) -> None:
        if not hasattr(signal, "setitimer"):
            pytest.skip("this system has no interval timers")
        writer = probe.open()
        answers: list[int] = []
        interruptions = 0

        def handler(_signum: int, _frame: FrameType | None) -> None:
            nonlocal interruptions
            interruptions += 1
            answers.append(writer.log_event("handler"))
            if interruptions % 4 == 0:
                answers.append(writer.log_events(["handler", "handler"]))
            if interruptions % 16 == 0:
                writer.statistics()
                writer.flush()

        before = signal.signal(signal.SIGVTALRM, handler)
        calls = 0
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0002, 0.0002)
            deadline_s = time.monotonic() + 5.0
            while calls < 1_000 or (interruptions < 20 and time.monotonic() < deadline_s):
                assert writer.log_event(b"main") > 0
                calls += 1
                if calls % 100 == 0:
                    writer.flush()
                    writer.statistics()
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
            signal.signal(signal.SIGVTALRM, before)
        assert interruptions > 0
        assert all(answer > 0 for answer in answers)
        total = calls + len(answers) + interruptions // 4
        assert writer.flush() == total
        rows = probe.rows()
        assert [row[2] for row in rows] == list(range(total))
        assert sum(row[3] == b"main" for row in rows) == calls
        assert sum(row[3] == b"handler" for row in rows) == total - calls

    def test_a_forked_child_is_a_client_of_its_own(self, probe: Probe) -> None:
        writer = probe.open(description={"rank": 3})
        writer.log_event("before")
        bound = writer.log_event

        def child() -> None:
            assert bound("child") > 0
            assert writer.log_events(["child", "child"]) > 0
            assert writer.client_id != 1
            assert writer.flush() == 3
            assert writer.statistics().logged == 3

        assert in_child(child) == 0
        assert writer.client_id == 1
        assert writer.log_event("after") > 0
        assert writer.flush() == 2
        rows = probe.rows()
        assert [row[1:] for row in rows if row[1] == 1] == [(1, 0, b"before"), (1, 1, b"after")]
        if self.between_processes:
            children = [row for row in rows if row[1] != 1]
            assert [row[2:] for row in children] == [(0, b"child"), (1, b"child"), (2, b"child")]
            assert len({row[1] for row in children}) == 1

    def test_events_of_a_killed_process_are_there(self, probe: Probe) -> None:
        if not (self.between_processes and probe.engine.capabilities.survives_kill):
            pytest.skip("events do not survive their process")
        probe.create()

        def child() -> None:
            engine = self._reopened(probe.engine)
            writer = engine.open_writer(CHRONICLE, STORY, {}, probe.options(5))
            for number in range(100):
                assert writer.log_event(str(number)) > 0
            writer.log_events(["batch", "batch"])
            os.kill(os.getpid(), signal.SIGKILL)

        status = in_child(child)
        assert os.WIFSIGNALED(status)
        expected = [b"%d" % number for number in range(100)] + [b"batch"] * 2
        assert probe.records() == expected
        assert probe.records(clients=[5]) == expected
        following = probe.open(6)
        following.log_event("next")
        following.close()
        assert len(probe.rows()) == 103
        probe.engine.destroy_story(CHRONICLE, STORY)  # a dead client holds nothing
        assert probe.engine.stories(CHRONICLE) == []

    def test_processes_write_one_story(self, probe: Probe) -> None:
        if not self.between_processes:
            pytest.skip("the data belong to one process")
        writer = probe.open(1)

        def child() -> None:
            engine = self._reopened(probe.engine)
            own = engine.open_writer(CHRONICLE, STORY, {}, probe.options(2, description={"rank": 2}))
            for number in range(50):
                own.log_event(str(number))
            own.close()
            engine.close()

        writer.log_event("parent")
        assert in_child(child) == 0
        writer.log_event("parent")
        writer.flush()
        rows = probe.rows()
        assert [row[3] for row in rows if row[1] == 2] == [b"%d" % number for number in range(50)]
        assert [row[3] for row in rows if row[1] == 1] == [b"parent"] * 2
        assert probe.engine.clients(CHRONICLE, STORY)[2]["rank"] == 2

    def _reopened(self, engine: Engine) -> Engine:
        other = self.reopen(engine)
        assert other is not None, "between_processes needs reopen"
        return other
