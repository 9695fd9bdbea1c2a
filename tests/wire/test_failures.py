"""An error of a service is the same error at its client, in one line that can be shown."""

import errno
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client import errors
from py_chronolog_client.errors import (
    ChronoLogError,
    ClosedError,
    DamageError,
    ErrorCode,
    NotConnectedError,
    RecordTooLargeError,
    StoreError,
)
from py_chronolog_client.wire.failures import MAX_SENTENCE, error_of, failure_of
from py_chronolog_client.wire.frames import FULL
from py_chronolog_client.wire.messages import Failure, Message, Refused, decode, encode

SIMPLE = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, ChronoLogError)
    and kind.__init__ is ChronoLogError.__init__
]


def across(message: Message) -> Message:
    return decode(encode(message))


def told(error: Exception) -> ChronoLogError:
    """Return the error that a client raises when a service has met another."""
    failure = across(failure_of(error))
    assert isinstance(failure, Failure)
    return error_of(failure)


@pytest.mark.parametrize("kind", SIMPLE, ids=lambda kind: kind.__name__)
def test_an_error_of_the_tree(kind: type[ChronoLogError]) -> None:
    found = told(kind("a sentence"))
    assert (found.code, str(found)) == (kind.code, "a sentence")
    assert type(found) in (kind, NotConnectedError if kind is ClosedError else kind.__base__)


@pytest.mark.parametrize("code", [code for code in ErrorCode if code < 0])
def test_every_code_is_an_error_with_that_code(code: ErrorCode) -> None:
    error = error_of(Failure(code, "a sentence"))
    assert error.code == code
    assert type(error) is ChronoLogError or code != ErrorCode.CL_ERR_UNKNOWN
    assert str(pickle.loads(pickle.dumps(error))) == "a sentence"


@pytest.mark.parametrize("code", [0, 1, -14, -(2**31), 2**31 - 1])
def test_a_code_that_nobody_knows_is_no_success(code: int) -> None:
    assert error_of(Failure(code, "a sentence")).code == ErrorCode.CL_ERR_UNKNOWN


def test_a_refused_block() -> None:
    refused = across(Refused(7, ErrorCode.CL_ERR_INVALID_ARG, "a gap"))
    assert isinstance(refused, Refused)
    error = error_of(refused)
    assert (type(error), str(error)) == (errors.InvalidArgumentError, "a gap")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecordTooLargeError(5, 4), -2),
        (DamageError("/store/file", 5, "no magic"), -1),
        (StoreError("/store", "full"), -1),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/store/file"), -1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_with_attributes_keep_their_sentence(error: Exception, code: int) -> None:
    found = told(error)
    assert (found.code, str(found)) == (code, str(error))


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), KeyError("secret"), AssertionError("secret")])
def test_a_defect_says_no_more_than_its_type(error: Exception) -> None:
    assert str(told(error)) == f"{type(error).__name__} in the service: its log says more"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("wörld \N{SNOWMAN}", "wörld \N{SNOWMAN}"),
        ("one\ntwo", "one?two"),
        ("a line\r\nINFO all is well", "a line??INFO all is well"),
        ("\x1b[2Jgone", "?[2Jgone"),
        ("nul \0", "nul ?"),
        ("right to left \u202e", "right to left ?"),
        (os.fsdecode(b"/path/\xff"), "/path/?"),
    ],
)
def test_a_sentence_is_one_line_that_can_be_shown_on_both_sides(text: str, shown: str) -> None:
    """Whoever listens at a port may say anything, before it has proven anything."""
    assert failure_of(errors.NotFoundError(text)).sentence == shown
    assert failure_of(OSError(text)).sentence == shown
    assert str(error_of(Failure(-3, text))) == shown


@given(st.text(alphabet=st.characters(exclude_categories=[]), max_size=50), st.integers(0, 3))
def test_every_sentence_can_be_told(text: str, times: int) -> None:
    found = told(errors.NotFoundError(text * 1000 * times))
    assert len(str(found)) <= MAX_SENTENCE
    assert str(found).isprintable()


def test_the_longest_sentence_fits_a_head() -> None:
    failure = failure_of(errors.NotFoundError("\U0001f600" * 10**6))
    assert len(failure.sentence) == MAX_SENTENCE
    assert len(encode(failure)) < FULL.head_bytes
