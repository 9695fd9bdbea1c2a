"""What is done apart is done once and to its end, or not at all, whatever a handler throws into who waits for it."""

import itertools
from typing import NoReturn

import pytest

from py_chronolog_client.store.apart import apart
from tests.store.opcodes import Interruption, Thrown, at


def throw() -> NoReturn:
    raise Thrown


@pytest.mark.timeout(60)
@pytest.mark.parametrize("where_signals_are", [False, True])
def test_something_is_thrown_at_every_bytecode(where_signals_are: bool) -> None:
    made: list[int] = []
    undone: list[int] = []

    def action() -> int:
        made.append(1)
        return len(made)

    for number in itertools.count(1):
        made.clear()
        undone.clear()
        interruption = Interruption(throw, at(number), where_signals_are=where_signals_are)
        try:
            with interruption:
                assert apart(action, undone.append) == 1
        except Thrown:
            if where_signals_are:
                assert len(made) == len(undone), (number, interruption.where)
        else:
            assert not interruption.fired
            assert (made, undone) == ([1], [])
            break
    assert number > (10 if where_signals_are else 50)


def test_an_error_comes_out() -> None:
    with pytest.raises(ZeroDivisionError):
        apart(lambda: 1 // 0, lambda result: None)
