"""Every event is there once, at the keeper or at the grapher, whatever is handed over when, and whoever dies in between."""

import contextlib
import itertools
import os
import pathlib

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from py_chronolog_client.store import owner
from py_chronolog_client.store.storylog import StoryLog
from py_chronolog_client.testing.contract.base import Row
from tests.store.handing import Question, Sender, Stores, independently
from tests.store.test_intake import failing
from tests.support.counts import soak


class Died(BaseException):
    """A process is gone."""


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

    @rule(client_id=CLIENTS, left=st.integers(0, 30), seals=st.booleans())
    def die(self, client_id: int, left: int, seals: bool) -> None:
        """Die while a client is sealed, or while something is handed over."""
        countdown = itertools.count(left, -1)
        intake = self.stores.intake(client_id)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("link", "unlink", "pwritev", "fsync", "fdatasync"):
                real = getattr(os, name)

                def call(*arguments: object, real: object = real, **options: object) -> object:
                    if next(countdown) <= 0:
                        raise Died
                    return real(*arguments, **options)  # type: ignore[operator]

                patch.setattr(os, name, call)
            try:
                intake.roll() if seals else hand_over(self.stores)
            except Died:
                pass
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
            assert question.answer() == rows

    @rule()
    def follow(self) -> None:
        question = Question(self.stores, self.cursor, self.follower[0])
        self.followed += question.answer(self.follower[1])
        self.cursor.update(question.marks)
        assert sorted(self.followed) == self.rows

    @invariant()
    def everything_is_there(self) -> None:
        if hasattr(self, "stores"):
            question = Question(self.stores)
            assert question.answer() == self.rows
            assert question.marks == {number: len(each.rows) for number, each in self.senders.items()}

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            self.answer()
            self.follow()
            assert sorted(independently(self.stores, owner.boot_id())) == self.rows
            for sender in self.senders.values():
                if sender.is_here:
                    sender.leave()
                self.stores.send(sender, len(sender.blocks) - 1)
                self.stores.intake(sender.client_id).roll()
            hand_over(self.stores)
            question = Question(self.stores)
            assert question.starts == question.marks
            assert question.answer() == self.rows
            self.stores.restart()


def test_whatever_happens(tmp_path: pathlib.Path) -> None:
    class Machine(HandoverMachine):
        path = tmp_path

    phases = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking takes minutes
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=soak(25, 2000), stateful_step_count=25, deadline=None, phases=phases),
    )
