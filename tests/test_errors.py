"""Codes, and the errors that stand for them."""

import copy
import inspect
import pickle

import pytest

from py_chronolog_client import ErrorCode, errors
from py_chronolog_client.errors import ChronoLogError, DamageError, RecordTooLargeError, StoreError

CODES = {
    "CL_SUCCESS": 0,
    "CL_ERR_UNKNOWN": -1,
    "CL_ERR_INVALID_ARG": -2,
    "CL_ERR_NOT_EXIST": -3,
    "CL_ERR_ACQUIRED": -4,
    "CL_ERR_NOT_ACQUIRED": -5,
    "CL_ERR_CHRONICLE_EXISTS": -6,
    "CL_ERR_NO_KEEPERS": -7,
    "CL_ERR_NO_CONNECTION": -8,
    "CL_ERR_NOT_AUTHORIZED": -9,
    "CL_ERR_NO_PLAYERS": -10,
    "CL_ERR_NOT_READER_MODE": -11,
    "CL_ERR_QUERY_TIMED_OUT": -12,
    "CL_ERR_PROTOCOL_VERSION_MISMATCH": -13,
}
LEAVES = [
    (errors.InvalidArgumentError, -2, ValueError),
    (errors.RecordTooLargeError, -2, ValueError),
    (errors.NotFoundError, -3, LookupError),
    (errors.AcquiredError, -4, ChronoLogError),
    (errors.NotAcquiredError, -5, ChronoLogError),
    (errors.ChronicleExistsError, -6, ChronoLogError),
    (errors.NotConnectedError, -8, ConnectionError),
    (errors.NotAuthorizedError, -9, PermissionError),
    (errors.NotReaderError, -11, ChronoLogError),
    (errors.ReplayTimeoutError, -12, TimeoutError),
    (errors.ClosedError, -8, ChronoLogError),
    (errors.NoKeepersError, -7, Exception),
    (errors.ProtocolError, -8, ConnectionError),
    (errors.NoPlayersError, -10, Exception),
    (errors.ProtocolVersionError, -13, Exception),
    (errors.StoreError, -1, OSError),
    (errors.NotAStoreError, -1, OSError),
    (errors.StoreVersionError, -1, OSError),
    (errors.DamageError, -1, OSError),
]


def make(kind: type[ChronoLogError]) -> ChronoLogError:
    if issubclass(kind, DamageError):
        return kind("/a/b", 7, "a reason")
    if issubclass(kind, StoreError):
        return kind("/a/b", "a sentence")
    if issubclass(kind, RecordTooLargeError):
        return kind(70, 60)
    return kind("a sentence")


def test_the_codes_are_those_of_the_specification() -> None:
    assert {code.name: code.value for code in ErrorCode} == CODES
    assert ErrorCode(-6) is ErrorCode.CL_ERR_CHRONICLE_EXISTS
    assert ErrorCode.CL_SUCCESS == 0
    assert not ErrorCode.CL_SUCCESS
    assert isinstance(ErrorCode.CL_ERR_UNKNOWN, int)


def test_every_error_is_in_the_table() -> None:
    defined = {
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, ChronoLogError) and value is not ChronoLogError
    }
    assert defined == {kind for kind, _, _ in LEAVES}
    assert ChronoLogError.code == -1


@pytest.mark.parametrize(
    ("kind", "code", "builtin"), LEAVES, ids=lambda value: getattr(value, "__name__", "")
)
def test_every_error_has_its_code_and_its_builtin_relative(
    kind: type[ChronoLogError], code: int, builtin: type[BaseException]
) -> None:
    assert kind.code == code
    assert issubclass(kind, builtin)
    assert issubclass(kind, ChronoLogError)
    assert kind.__doc__


@pytest.mark.parametrize("kind", [kind for kind, _, _ in LEAVES], ids=lambda kind: kind.__name__)
def test_errors_travel_between_processes(kind: type[ChronoLogError]) -> None:
    """A pool of processes, or MPI, hangs or dies on an exception that cannot be unpickled."""
    error = make(kind)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert twin.code == error.code
        for name in ("path", "offset", "reason", "size_bytes", "limit_bytes"):
            assert getattr(twin, name, None) == getattr(error, name, None)


def test_values_are_attributes_and_words() -> None:
    damage = DamageError("/store/x.log", 4096, "no valid block header")
    assert (damage.path, damage.offset, damage.reason) == ("/store/x.log", 4096, "no valid block header")
    assert str(damage) == "/store/x.log: damaged at byte 4096: no valid block header"
    large = RecordTooLargeError(70, 60)
    assert (large.size_bytes, large.limit_bytes) == (70, 60)
    assert "70 bytes is over the limit of 60 bytes" in str(large)
    assert StoreError("/store", "is gone").path == "/store"
