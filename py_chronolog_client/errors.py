"""Everything that can go wrong, with the ChronoLog code that stands for it.

The ChronoLog API answers with integer codes (`ErrorCode`). Everything below it raises from one tree, and each
leaf carries its code, so the API needs no table:

    ChronoLogError                       -1
    ├── InvalidArgumentError             -2   also ValueError
    │   └── RecordTooLargeError               size_bytes, limit_bytes
    ├── NotFoundError                    -3   also LookupError
    ├── AcquiredError                    -4
    ├── NotAcquiredError                 -5
    ├── ChronicleExistsError             -6
    ├── NoKeepersError                   -7
    ├── NotConnectedError                -8   also ConnectionError
    │   └── ProtocolError                     the peer does not speak the protocol
    ├── NotAuthorizedError               -9   also PermissionError
    ├── NoPlayersError                   -10
    ├── NotReaderError                   -11
    ├── ReplayTimeoutError               -12  also TimeoutError
    ├── ProtocolVersionError             -13
    ├── ClosedError                      -8   a handle that was released, a store that was closed
    └── StoreError                       -1   also OSError; path
        ├── NotAStoreError                    the directory is no ChronoLog store
        ├── StoreVersionError                 written by a newer release
        └── DamageError                       offset, reason: bytes that are not what was written
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import Any, ClassVar


class ErrorCode(IntEnum):
    """The return codes of the ChronoLog client API, 2.5.0 to 2.7.0."""

    CL_SUCCESS = 0
    CL_ERR_UNKNOWN = -1
    CL_ERR_INVALID_ARG = -2
    CL_ERR_NOT_EXIST = -3
    CL_ERR_ACQUIRED = -4
    CL_ERR_NOT_ACQUIRED = -5
    CL_ERR_CHRONICLE_EXISTS = -6
    CL_ERR_NO_KEEPERS = -7
    CL_ERR_NO_CONNECTION = -8
    CL_ERR_NOT_AUTHORIZED = -9
    CL_ERR_NO_PLAYERS = -10
    CL_ERR_NOT_READER_MODE = -11
    CL_ERR_QUERY_TIMED_OUT = -12
    CL_ERR_PROTOCOL_VERSION_MISMATCH = -13


class ChronoLogError(Exception):
    """The root of the tree. `code` is what the ChronoLog API returns in its place."""

    code: ClassVar[ErrorCode] = ErrorCode.CL_ERR_UNKNOWN


class InvalidArgumentError(ChronoLogError, ValueError):
    """An argument that no store could accept."""

    code = ErrorCode.CL_ERR_INVALID_ARG


class RecordTooLargeError(InvalidArgumentError):
    """A record beyond the limit of the store format.

    Attributes:
        size_bytes: size of the record.
        limit_bytes: largest size that is accepted.
    """

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"a record of {size_bytes} bytes is over the limit of {limit_bytes} bytes: log it in pieces"
        )
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes

    def __reduce__(self) -> tuple[type[RecordTooLargeError], tuple[int, int]]:
        return type(self), (self.size_bytes, self.limit_bytes)


class NotFoundError(ChronoLogError, LookupError):
    """No such chronicle or story."""

    code = ErrorCode.CL_ERR_NOT_EXIST


class AcquiredError(ChronoLogError):
    """A living client holds the story, so it cannot be destroyed."""

    code = ErrorCode.CL_ERR_ACQUIRED


class NotAcquiredError(ChronoLogError):
    """This client does not hold the story."""

    code = ErrorCode.CL_ERR_NOT_ACQUIRED


class ChronicleExistsError(ChronoLogError):
    """A chronicle of that name exists already."""

    code = ErrorCode.CL_ERR_CHRONICLE_EXISTS


class NoKeepersError(ChronoLogError):
    """The deployment has no ChronoKeeper that could take events."""

    code = ErrorCode.CL_ERR_NO_KEEPERS


class NotConnectedError(ChronoLogError, ConnectionError):
    """No engine: Connect was not called, or what it should reach is not there."""

    code = ErrorCode.CL_ERR_NO_CONNECTION


class ProtocolError(NotConnectedError):
    """What a peer sent is not what docs/protocol.md allows; the connection is given up."""


class NotAuthorizedError(ChronoLogError, PermissionError):
    """The store or service refuses this user."""

    code = ErrorCode.CL_ERR_NOT_AUTHORIZED


class NoPlayersError(ChronoLogError):
    """The deployment has no ChronoPlayer that could answer a replay."""

    code = ErrorCode.CL_ERR_NO_PLAYERS


class NotReaderError(ChronoLogError):
    """The client was made without a query service."""

    code = ErrorCode.CL_ERR_NOT_READER_MODE


class ReplayTimeoutError(ChronoLogError, TimeoutError):
    """A replay did not finish before its deadline."""

    code = ErrorCode.CL_ERR_QUERY_TIMED_OUT


class ProtocolVersionError(ChronoLogError):
    """Client and service speak different versions of the protocol."""

    code = ErrorCode.CL_ERR_PROTOCOL_VERSION_MISMATCH


class ClosedError(ChronoLogError):
    """A handle that was released, or an engine that was closed."""

    code = ErrorCode.CL_ERR_NO_CONNECTION


class StoreError(ChronoLogError, OSError):
    """The directory of the store cannot be used.

    Attributes:
        path: file or directory that the sentence is about.
    """

    def __init__(self, path: str | os.PathLike[str], sentence: str) -> None:
        super().__init__(f"{os.fspath(path)}: {sentence}")
        self.path = os.fspath(path)
        self._sentence = sentence

    def __reduce__(self) -> tuple[type[StoreError], tuple[Any, ...]]:
        return type(self), (self.path, self._sentence)


class NotAStoreError(StoreError):
    """The directory has no ChronoLog marker, or none that can be understood."""


class StoreVersionError(StoreError):
    """The store was written in a format that is newer than this software."""


class DamageError(StoreError):
    """Bytes in a store that are not what was written.

    Attributes:
        offset: where in the file the damage begins, in bytes.
        reason: what does not hold there.
    """

    def __init__(self, path: str | os.PathLike[str], offset: int, reason: str) -> None:
        super().__init__(path, f"damaged at byte {offset}: {reason}")
        self.offset = offset
        self.reason = reason

    def __reduce__(self) -> tuple[type[DamageError], tuple[Any, ...]]:
        return type(self), (self.path, self.offset, self.reason)
