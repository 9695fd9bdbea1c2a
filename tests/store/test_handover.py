"""Every event is there once, at the keeper or at the grapher, whatever is handed over when, and whoever dies in between."""

import contextlib
import errno
import itertools
import os
import pathlib
import random
from functools import partial

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport
from py_chronolog_client.errors import ClosedError, DamageError, InvalidArgumentError
from py_chronolog_client.store import census, owner
from py_chronolog_client.store.handover import sealed
from py_chronolog_client.store.retention import expire
from py_chronolog_client.store.storylog import StoryLog
from py_chronolog_client.testing.contract.base import Row
from tests.store import holding, independent, reading
from tests.store.dying import dying
from tests.store.handing import Question, Sender, Stores, independently, names
from tests.store.test_compaction import models as clock_models
from tests.store.test_intake import failing
from tests.support.counts import soak


@pytest.fixture
def stores(tmp_path: pathlib.Path) -> Stores:
    return Stores(tmp_path)


def hand_over(stores: Stores) -> None:
    for _ in stores.handing():
        pass


# -- whatever happens --

CLIENTS = st.integers(1, 2)


class HandoverMachine(RuleBasedStateMachine):
    """Clients send, sometimes again; a keeper seals and hands over; a list says what there must be."""

    path: pathlib.Path
    numbers = itertools.count()

    @initialize()
    def begin(self) -> None:
        self.stores = Stores(self.path / f"{next(self.numbers)}")
        self.senders = {client_id: Sender(client_id) for client_id in (1, 2)}
        for sender in self.senders.values():
            self.stores.send(sender)
        self.handing = self.stores.handing()
        self.questions: list[tuple[Question, list[Row]]] = []
        self.follower = StoryLog(self.stores.keeper), StoryLog(self.stores.grapher)
        self.cursor: dict[int, int] = {}
        self.followed: list[Row] = []

    @property
    def rows(self) -> list[Row]:
        return sorted(row for sender in self.senders.values() for row in sender.rows)

    @rule(
        client_id=CLIENTS,
        does=st.lists(st.sampled_from(["log", "log", "clock", "leave"]), min_size=1, max_size=4),
        sync=st.booleans(),
    )
    def send(self, client_id: int, does: list[str], sync: bool) -> None:
        sender, start = self.senders[client_id], len(self.senders[client_id].blocks)
        for what in does:
            if not sender.is_here:
                sender.come_back()
            {"log": lambda: sender.log(3), "clock": sender.say_of_the_clock, "leave": sender.leave}[what]()
        self.stores.send(sender, start)
        if sync:
            self.stores.intake(client_id).sync()

    @rule(client_id=CLIENTS, back=st.integers(0, 12))
    def send_again(self, client_id: int, back: int) -> None:
        sender = self.senders[client_id]
        self.stores.send(sender, max(1, len(sender.blocks) - back))

    @rule(client_id=CLIENTS)
    def seal(self, client_id: int) -> None:
        self.stores.intake(client_id).roll()

    @rule()
    def restart(self) -> None:
        self.stores.restart()
        self.handing = self.stores.handing()

    @rule(steps=st.integers(1, 6))
    def hand_over(self, steps: int) -> None:
        for _ in range(steps):
            if next(self.handing, self) is self:
                self.handing = self.stores.handing()

    @rule()
    def compact(self) -> None:
        self.stores.compact()

    @rule(back=st.integers(0, 30))
    def expire(self, back: int) -> None:
        before_ns = max([row[0] for row in self.rows], default=0) - back
        before = self.gone()
        expired = expire(self.stores.grapher_root, self.stores.grapher, before_ns)
        gone = self.gone()
        assert expired.events == sum(gone.values()) - sum(before.values())
        assert all(row[0] < before_ns for row in self.rows if row[2] < gone.get(row[1], 0))

    def gone(self) -> dict[int, int]:
        """Return how many events of each client have expired."""
        chunks = [independent.read_chunk(path.read_bytes()) for path in self.stores.grapher.glob("*.chunk")]
        return {each.client_id: each.first_sequence for chunk in chunks for each in chunk if each.expired}

    def left(self, rows: list[Row]) -> list[Row]:
        """Return those of some events that have not expired."""
        gone = self.gone()
        return [row for row in rows if row[2] >= gone.get(row[1], 0)]

    @rule(client_id=CLIENTS, left=st.integers(0, 30), seals=st.booleans())
    def die(self, client_id: int, left: int, seals: bool) -> None:
        """Die while a client is sealed, or while something is handed over."""
        intake = self.stores.intake(client_id)
        with dying(left, "link", "unlink", "pwritev", "fsync", "fdatasync"):
            intake.roll() if seals else hand_over(self.stores)
        self.restart()

    @rule(client_id=CLIENTS, times=st.integers(1, 2))
    def fail_to_sync(self, client_id: int, times: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, "fdatasync", 5, times=times)
            with contextlib.suppress(OSError):
                self.stores.intake(client_id).sync()

    @rule()
    def ask(self) -> None:
        self.questions.append((Question(self.stores), self.rows))

    @rule()
    def answer(self) -> None:
        while self.questions:
            question, rows = self.questions.pop()
            found = question.answer()
            assert set(self.left(rows)) <= set(found) <= set(rows)
            assert len(set(found)) == len(found)

    @rule()
    def follow(self) -> None:
        question = Question(self.stores, self.cursor, self.follower[0])
        self.followed += question.answer(self.follower[1])
        self.cursor.update(question.marks)
        assert set(self.left(self.rows)) <= set(self.followed) <= set(self.rows)
        assert len(set(self.followed)) == len(self.followed)

    @invariant()
    def everything_is_there(self) -> None:
        if hasattr(self, "stores"):
            question = Question(self.stores)
            assert question.answer() == self.left(self.rows)
            assert question.marks == {number: len(each.rows) for number, each in self.senders.items()}
            for known in census.census(self.stores.keeper).values():
                assert known.description["opened_ns"] == independent.OPENED_NS

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            self.answer()
            self.follow()
            assert sorted(independently(self.stores, owner.boot_id())) == self.left(self.rows)
            for sender in self.senders.values():
                if sender.is_here:
                    sender.leave()
                self.stores.send(sender, len(sender.blocks) - 1)
                self.stores.intake(sender.client_id).roll()
            hand_over(self.stores)
            question = Question(self.stores)
            assert question.starts == question.marks
            assert question.answer() == self.left(self.rows)
            self.stores.restart()


def test_whatever_happens(tmp_path: pathlib.Path) -> None:
    class Machine(HandoverMachine):
        path = tmp_path

    phases = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking takes minutes
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=soak(10, 2000), stateful_step_count=25, deadline=None, phases=phases),
    )


# -- aligned times --


def drifting(stores: Stores, story: pathlib.Path, seed: int, *, says: bool) -> list[int]:
    """Let a client with a drifting clock log, in one segment in `story`, and in several parts at the keeper.

    Returns:
        For each part the time of the last synchronisation that is known in it.
    """
    numbers, models = random.Random(seed), clock_models(seed)
    blocks, sequence, time_ns, synchronised = [independent.client_record(1)], 0, 10**9 + 900, []
    intake = stores.intake(1)
    for number, model in enumerate(models):
        for _ in range(numbers.randrange(1, 4)):
            events = []
            for _ in range(numbers.randrange(1, 6)):
                time_ns += numbers.randrange(0, 200)
                events.append((time_ns, b"%d" % sequence))
            blocks.append(independent.events_block(1, sequence, events, clock=model.pack()))
            sequence += len(events)
        if says:
            packed = b"".join(each.pack() for each in models[: number + 1])
            since = 0 if number < 3 else 5
            fields = {"type": "clock", "first_sequence": since, "models": packed}
            blocks.append(independent.record_block(1, sequence, fields))
        if number == len(models) - 1:
            blocks.append(independent.close_record(1, sequence))
        for block in blocks[1 if number else 0 :]:
            intake.append(block)
        intake.roll()
        synchronised.append(model.time_at(model.base_ns))
    reading.segment(story, 1).write_bytes(b"".join(blocks))
    return synchronised


def aligned(directory: pathlib.Path) -> dict[int, tuple[int, int, int]]:
    """Return time, aligned time and window of every event by its number."""
    log, report = StoryLog(directory), ScanReport()
    log.refresh(report)
    found: dict[int, tuple[int, int, int]] = {}
    for page in log.pages(0, MAX_TIME_NS, {}, log.snapshot(), report, aligned=True):
        columns = page.sequences, page.times, page.keys, page.windows_ns()
        for number, *more in zip(*(column.tolist() for column in columns), strict=True):
            found[number] = tuple(more)
    assert not report.damages
    return found


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_aligned_times_are_those_of_one_segment(
    stores: Stores, tmp_path: pathlib.Path, seed: int, says: bool
) -> None:
    """Exactly, when all of a client is at the grapher; before that wherever a synchronisation is known behind."""
    whole = independent.make_story(tmp_path / "whole", "c", "s")
    synchronised = drifting(stores, whole, seed, says=says)
    expected = aligned(whole)
    assert any(key != time for time, key, _ in expected.values())
    for part, synchronised_ns in zip(sealed(stores.keeper), synchronised, strict=True):
        for _ in stores.hand_over(part):
            pass
        if seed % 2:
            stores.compact()
        at_keeper, at_grapher = aligned(stores.keeper), aligned(stores.grapher)
        assert at_keeper.keys() | at_grapher.keys() == expected.keys()
        if says:
            known = {number: each for number, each in at_grapher.items() if each[0] <= synchronised_ns}
            for number, each in {**at_keeper, **known}.items():
                assert each == pytest.approx(expected[number], rel=0, abs=1), number
    assert at_grapher == expected


# -- step by step --


def sealed_once(stores: Stores, client_id: int = 1) -> Sender:
    """Let a client log, be sealed, and log again."""
    sender = Sender(client_id)
    sender.log(3)
    stores.send(sender)
    stores.intake(client_id).roll()
    sender.log(2)
    stores.send(sender)
    return sender


def test_what_is_sealed_and_what_is_left(stores: Stores) -> None:
    sender = sealed_once(stores)
    (part,) = sealed(stores.keeper)
    assert part[:5] == (1, (reading.segment(stores.keeper, 1),), 0, 0, 3)
    assert part.size_bytes == reading.segment(stores.keeper, 1).stat().st_size
    assert part.age_s < holding.DEADLINE_S
    expected = [*sender.blocks[:2], independent.roll_record(1, 3)]
    assert list(part.blocks()) == expected
    question = Question(stores)
    assert (question.starts, question.marks) == ({1: 0}, {1: 5})
    hand_over(stores)
    assert names(stores.keeper, ".log") == [f"{1:016x}.1.log"]
    left = independent.read_segment(reading.segment(stores.keeper, 1, 1).read_bytes(), 1)
    assert left[0].fields == {
        **independent.read_block(sender.blocks[0], 0)[0].fields,
        "first_sequence": 3,
        "follows_ns": sender.rows[2][0],
    }
    question = Question(stores)
    assert (question.starts, question.marks) == ({1: 3}, {1: 5})
    assert question.answer() == sender.rows
    assert reading.replay(stores.keeper_root.path).rows == sender.rows[3:]


def test_a_client_that_has_left_leaves_a_stub_and_goes_on_there(stores: Stores) -> None:
    sender = Sender(1)
    sender.log(3)
    sender.leave()
    stores.send(sender)
    intake = stores.intake(1)
    for _ in range(3):
        intake.roll()  # of a stub there is nothing to be sealed
    hand_over(stores)
    assert names(stores.keeper, "") == [f"{1:016x}.1.log"]
    found = reading.replay(stores.keeper_root.path)
    assert found == ([], ScanReport())
    question = Question(stores)
    assert (question.starts, question.marks) == ({1: 3}, {1: 3})
    stores.restart()
    sender.come_back()
    earlier = independent.events_block(1, 3, [(sender.time_ns - 1, b"")])
    stores.send(sender, 1)
    with pytest.raises(InvalidArgumentError, match="earlier than the one before"):
        stores.intake(1).append(earlier)
    sender.log(2)
    stores.send(sender, 2)
    assert names(stores.keeper, ".log") == [f"{1:016x}.1.log"]
    assert Question(stores).answer() == sender.rows


def test_only_a_keeper_says_what_is_sealed(stores: Stores) -> None:
    sender = sealed_once(stores)
    intake = stores.intake(1)
    with pytest.raises(InvalidArgumentError, match="only its keeper knows"):
        intake.append(independent.roll_record(1, 5))
    with pytest.raises(InvalidArgumentError, match="only its keeper knows"):
        stores.intake(2).append(independent.client_record(2, 3, follows_ns=5))
    intake.close()
    with pytest.raises(ClosedError):
        intake.roll()
    stores.restart()
    assert Question(stores).answer() == sender.rows


def test_the_best_moment_to_seal_a_client(stores: Stores) -> None:
    sender = Sender(1)
    for does, expected in ((sender.log, False), (sender.say_of_the_clock, True), (sender.log, False)):
        does(1) if does == sender.log else does()  # type: ignore[call-arg]
        stores.send(sender)
        assert stores.intake(1).is_synchronised is expected
        stores.restart()


def test_parts_go_in_their_order(stores: Stores) -> None:
    sender = sealed_once(stores)
    stores.intake(1).roll()
    first, second = sealed(stores.keeper)
    with pytest.raises(InvalidArgumentError, match=r"hand over 0000000000000001\.log first"):
        second.remove()
    hand_over(stores)
    for part in (first, second):
        part.remove()  # again
        with pytest.raises(FileNotFoundError):
            list(part.blocks())
    assert Question(stores).answer() == sender.rows


def test_a_part_of_several_segments(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync has failed, so some blocks are twice there; nothing of it is left when it is gone."""
    sender = Sender(1)
    stores.send(sender)
    for _ in range(2):
        sender.log(3)
        stores.send(sender)
        failing(monkeypatch, "fdatasync", errno.EIO)
        stores.intake(1).sync()
    stores.intake(1).roll()
    (part,) = sealed(stores.keeper)
    assert [path.name for path in part.paths] == [f"{1:016x}{number}.log" for number in ("", ".1", ".2")]
    for _ in stores.hand_over(part):
        assert Question(stores).answer() == sender.rows
    assert names(stores.keeper, ".log") == [f"{1:016x}.3.log"]
    assert Question(stores).answer() == sender.rows


def test_no_room_for_the_next_segment(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sealed stays so, and what comes waits until there is room."""
    sender = Sender(1)
    sender.log(3)
    stores.send(sender)
    failing(monkeypatch, "link", errno.ENOSPC, times=3)
    before = reading.segment(stores.keeper, 1).stat().st_size
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        stores.intake(1).roll()
    sealed_bytes = reading.segment(stores.keeper, 1).stat().st_size
    assert sealed_bytes > before
    sender.log(1)
    for _ in range(2):
        stores.intake(1).close()
        del stores.intakes[1]
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            stores.send(sender, 2)
        assert Question(stores).answer() == sender.rows[:3]
    stores.send(sender, 2)
    assert reading.segment(stores.keeper, 1).stat().st_size == sealed_bytes
    assert Question(stores).answer() == sender.rows


def test_what_was_promised_is_on_the_device_before_it_is_sealed(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = Sender(1)
    stores.send(sender)
    stores.intake(1).sync()  # from now on it is promised
    sender.log(3)
    stores.send(sender, 1)
    failing(monkeypatch, "fdatasync", errno.EIO, times=1)
    stores.intake(1).roll()
    (part,) = sealed(stores.keeper)
    assert [path.name for path in part.paths] == [f"{1:016x}.log", f"{1:016x}.1.log"]
    failing(monkeypatch, "fdatasync", errno.EIO, times=100)
    sender.log(3)
    stores.send(sender, 2)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        stores.intake(1).roll()
    monkeypatch.undo()
    stores.intake(1).roll()
    assert len(sealed(stores.keeper)) == 2
    hand_over(stores)
    assert Question(stores).answer() == sender.rows


def test_what_is_promised_later_is_on_the_device_although_it_was_sealed(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an intake to which nobody had promised anything, or by one that is gone."""
    sender, synced = sealed_once(stores), []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (synced.append(os.fstat(file).st_ino), real(file)))
    for _ in range(2):
        stores.intake(1).sync()
        assert {path.stat().st_ino for path in stores.keeper.glob("*.log")} <= set(synced)
        synced.clear()
        stores.restart()
    hand_over(stores)
    stores.intake(1).sync()
    assert Question(stores).answer() == sender.rows


def test_damage_is_not_handed_over(stores: Stores) -> None:
    sender = sealed_once(stores)
    path = reading.segment(stores.keeper, 1)
    data = path.read_bytes()
    damaged = bytearray(data)
    damaged[len(sender.blocks[0]) + 70] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamageError, match="others behind it: it cannot be handed over"):
        hand_over(stores)
    assert names(stores.grapher, ".log") == []
    path.write_bytes(data)
    hand_over(stores)
    assert Question(stores).answer() == sender.rows


def test_a_power_cut_that_takes_the_end_of_what_is_sealed(tmp_path: pathlib.Path) -> None:
    """What is left is handed over, and the rest is missing, as it was before."""
    sender = sealed_once(Stores(tmp_path / "whole"))
    first, second, *_ = sender.blocks
    for length in range(len(first), len(first) + len(second) + 128, 64):
        stores = Stores(tmp_path / f"{length}")
        sealed_once(stores)
        stores.restart()
        path = reading.segment(stores.keeper, 1)
        path.write_bytes(path.read_bytes()[:length])
        gone = 3 if length < len(first) + len(second) else 0
        for _ in range(2):
            question = Question(stores)
            with pytest.raises(AssertionError) if gone else contextlib.nullcontext():
                assert question.answer() == sender.rows
            assert question.report.missing == gone
            assert question.marks == {1: 5}
            hand_over(stores)
        assert names(stores.keeper, ".log") == [f"{1:016x}.1.log"]


@pytest.mark.parametrize("gone", [0, 1])
def test_a_segment_that_is_lost_is_missing(stores: Stores, gone: int) -> None:
    """At the grapher, which has to have all that a keeper has not."""
    sender = sealed_once(stores)
    stores.intake(1).roll()
    sender.log(1)
    stores.send(sender)
    reading.segment(stores.keeper, 1, gone).unlink()
    hand_over(stores)
    question = Question(stores)
    with pytest.raises(AssertionError):
        question.answer()
    assert question.report.missing == [3, 2][gone]
    assert question.report.damages


@pytest.mark.slow
@pytest.mark.timeout(soak(60, 900))
@pytest.mark.parametrize("knows", [False, True])
def test_a_hand_over_at_any_moment_of_a_reader(tmp_path: pathlib.Path, knows: bool) -> None:
    """Also of one that knows what was there before, and would keep its space."""
    at, calls = 0, 1
    while at < calls:
        stores, sender = Stores(tmp_path / f"{at}"), Sender(1)
        log = StoryLog(stores.keeper)
        for place in range(3):
            sender.log(2)
            stores.send(sender)
            if not place and knows:
                log.refresh(ScanReport())
            stores.intake(1).roll()
        found: list[list[Row]] = []
        calls = holding.interrupted(
            lambda found=found, stores=stores, log=log: found.append(Question(stores, log=log).answer()),  # type: ignore[misc]
            at,
            partial(hand_over, stores),
        )
        assert found == [sender.rows]
        hand_over(stores)
        log.refresh(ScanReport())
        held = [os.readlink(path) for path in pathlib.Path("/proc/self/fd").iterdir() if path.is_symlink()]
        assert not [path for path in held if path.startswith(f"{stores.keeper}/0") and "(deleted)" in path]
        assert log.starts() == {1: 6}
        stores.restart()
        at += soak(7, 1)
    assert calls > 50


@pytest.mark.slow
@pytest.mark.timeout(soak(60, 900))
@pytest.mark.parametrize("what", ["seal", "hand over"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_death_before_every_step(tmp_path: pathlib.Path, what: str, closed: bool) -> None:
    """Of a keeper that seals, and of both that hand over: the next process goes on, also with the client."""
    at, died = 0, True
    while died:
        stores, sender = Stores(tmp_path / f"{at}"), Sender(1)
        sender.log(3)
        if closed:
            sender.leave()
        stores.send(sender)
        if what == "seal":
            died = holding.killed(stores.intake(1).roll, at)
        else:
            stores.intake(1).roll()
            died = holding.killed(partial(hand_over, stores), at)
        stores.restart()
        assert Question(stores).answer() == sender.rows
        if closed:
            sender.come_back()
        sender.log(2)
        stores.send(sender, 1)
        assert Question(stores).answer() == sender.rows
        stores.intake(1).roll()
        hand_over(stores)
        question = Question(stores)
        assert question.answer() == sender.rows
        assert question.starts == question.marks == {1: 5}
        stores.restart()
        at += soak(19, 1)
    assert at > 19
