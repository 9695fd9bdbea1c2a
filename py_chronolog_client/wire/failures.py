"""Errors on the wire: a ChronoLog code and a sentence there and back.

A sentence ends in logs and on terminals, and the first ones come from peers that have proven nothing yet. So on both
sides it is one line of characters that can be printed.
"""

from __future__ import annotations

from py_chronolog_client.errors import (
    AcquiredError,
    ChronicleExistsError,
    ChronoLogError,
    ErrorCode,
    InvalidArgumentError,
    NoKeepersError,
    NoPlayersError,
    NotAcquiredError,
    NotAuthorizedError,
    NotConnectedError,
    NotFoundError,
    NotReaderError,
    ProtocolVersionError,
    ReplayTimeoutError,
)
from py_chronolog_client.wire.messages import Failure, Refused

MAX_SENTENCE = 4000
"""A longer sentence is cut."""

_ERRORS: dict[int, type[ChronoLogError]] = {
    error.code: error
    for error in (
        InvalidArgumentError,
        NotFoundError,
        AcquiredError,
        NotAcquiredError,
        ChronicleExistsError,
        NoKeepersError,
        NotConnectedError,
        NotAuthorizedError,
        NoPlayersError,
        NotReaderError,
        ReplayTimeoutError,
        ProtocolVersionError,
    )
}


def failure_of(error: Exception) -> Failure:
    """Return the message that tells a peer of an error; of a defect it says no more than its type."""
    if isinstance(error, ChronoLogError):
        return Failure(error.code, _line(str(error)))
    if isinstance(error, OSError):
        return Failure(ErrorCode.CL_ERR_UNKNOWN, _line(str(error)))
    return Failure(ErrorCode.CL_ERR_UNKNOWN, f"{type(error).__name__} in the service: its log says more")


def refusal_of(stream: int, error: Exception) -> Refused:
    """Return the message that tells a sender of an error on one of its streams."""
    failure = failure_of(error)
    return Refused(stream, failure.code, failure.sentence)


def error_of(failure: Failure | Refused) -> ChronoLogError:
    """Return the error that a peer has told of."""
    return _ERRORS.get(failure.code, ChronoLogError)(_line(failure.sentence))


def _line(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_SENTENCE])
