"""The two service configurations, and which engine they choose."""

import pathlib
import pickle

import pytest

from py_chronolog_client import ChronoLogError, ClientPortalServiceConf, ClientQueryServiceConf
from py_chronolog_client.conf import open_engine, service_address
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import InvalidArgumentError, NotConnectedError, StoreError

CONFS = [ClientPortalServiceConf, ClientQueryServiceConf]
FIELDS = ("proto", "ip", "port", "provider_id")


@pytest.mark.parametrize(
    ("conf", "defaults"),
    [
        (ClientPortalServiceConf, ("ofi+sockets", "127.0.0.1", 5555, 55)),
        (ClientQueryServiceConf, ("ofi+sockets", "127.0.0.1", 5557, 57)),
    ],
)
def test_defaults_are_those_of_the_specification(conf: type, defaults: tuple) -> None:
    made = conf()
    assert tuple(getattr(made, name) for name in FIELDS) == defaults
    for count in range(5):
        assert conf(*defaults[:count]) == made
        assert conf(**dict(zip(FIELDS[:count], defaults[:count], strict=True))) == made


@pytest.mark.parametrize("conf", CONFS)
def test_fields_by_position_and_by_name(conf: type) -> None:
    made = conf("ofi+tcp", "10.0.0.7", 6000, 99)
    assert made == conf(provider_id=99, port=6000, ip="10.0.0.7", proto="ofi+tcp")
    assert (made.proto, made.ip, made.port, made.provider_id) == ("ofi+tcp", "10.0.0.7", 6000, 99)
    assert made != conf()
    assert hash(made) == hash(conf("ofi+tcp", "10.0.0.7", 6000, 99))
    assert "ofi+tcp" in repr(made)
    assert "6000" in repr(made)
    assert pickle.loads(pickle.dumps(made)) == made


def test_the_two_are_not_the_same_thing() -> None:
    assert ClientPortalServiceConf("a", "b", 1, 2) != ClientQueryServiceConf("a", "b", 1, 2)


@pytest.mark.parametrize("conf", CONFS)
@pytest.mark.parametrize("field", ["port", "provider_id"])
@pytest.mark.parametrize("value", [0, 1, 65535])
def test_numbers_in_range(conf: type, field: str, value: int) -> None:
    assert getattr(conf(**{field: value}), field) == value


@pytest.mark.parametrize("conf", CONFS)
@pytest.mark.parametrize("field", ["port", "provider_id"])
@pytest.mark.parametrize("value", [-1, 65536, 2**64])
def test_numbers_out_of_range(conf: type, field: str, value: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{field} {value} is not between 0 and 65535"):
        conf(**{field: value})
    with pytest.raises(ValueError, match=field):
        conf(**{field: value})


@pytest.mark.parametrize("conf", CONFS)
@pytest.mark.parametrize(
    ("field", "value"),
    [("port", "5555"), ("port", 1.0), ("port", None), ("port", True), ("provider_id", b"1"), ("proto", 1),
     ("proto", None), ("proto", b"file"), ("ip", 127), ("ip", pathlib.Path("/tmp"))],
)  # fmt: skip
def test_wrong_types(conf: type, field: str, value: object) -> None:
    with pytest.raises(TypeError, match=field):
        conf(**{field: value})


@pytest.mark.parametrize("conf", CONFS)
@pytest.mark.parametrize("field", ["proto", "ip"])
def test_empty_texts(conf: type, field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{field} is empty"):
        conf(**{field: ""})


@pytest.mark.parametrize("conf", CONFS)
def test_they_do_not_change(conf: type) -> None:
    with pytest.raises(AttributeError):
        conf().port = 1
    for arguments in [("a", "b", 1, 2, 3)]:
        with pytest.raises(TypeError):
            conf(*arguments)
    with pytest.raises(TypeError):
        conf(host="127.0.0.1")


# -- which engine --


def test_the_protocol_file_names_a_directory(tmp_path: pathlib.Path) -> None:
    engine = open_engine(ClientPortalServiceConf("file", str(tmp_path / "store"), 0, 0))
    assert isinstance(engine, EmbeddedEngine)
    assert engine.directory == tmp_path / "store"
    engine.close()


@pytest.mark.parametrize("proto", ["file", "ofi+sockets", "nonsense"])
def test_the_environment_overrides_every_protocol(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, proto: str
) -> None:
    monkeypatch.setenv("CHRONOLOG_STORE", str(tmp_path / "other"))
    engine = open_engine(ClientPortalServiceConf(proto, str(tmp_path / "store"), 0, 0))
    assert isinstance(engine, EmbeddedEngine)
    assert engine.directory == tmp_path / "other"
    assert not (tmp_path / "store").exists()
    engine.close()


def test_an_empty_variable_says_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHRONOLOG_STORE", "")
    with pytest.raises(NotConnectedError):
        open_engine(ClientPortalServiceConf())
    engine = open_engine(ClientPortalServiceConf("file", str(tmp_path), 0, 0))
    engine.close()


def test_no_engine_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(NotConnectedError) as caught:
        open_engine(ClientPortalServiceConf("ofi+tcp", "127.0.0.1", 7, 8))
    for part in ("ofi+tcp://127.0.0.1:7", "CHRONOLOG_STORE=DIR", '"file"'):
        assert part in str(caught.value)


def test_the_environment_says_where_services_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHRONOLOG_PORTAL", "[::1]:7")
    monkeypatch.setenv("CHRONOLOG_QUERY", "player.example:8")
    assert service_address(ClientPortalServiceConf()) == ("::1", 7)
    assert service_address(ClientQueryServiceConf()) == ("player.example", 8)
    with pytest.raises(NotConnectedError, match=r"ofi\+sockets://\[::1\]:7"):
        open_engine(ClientPortalServiceConf())
    monkeypatch.setenv("CHRONOLOG_PORTAL", "localhost")
    with pytest.raises(
        InvalidArgumentError, match=r"CHRONOLOG_PORTAL='localhost' is no address: give HOST:PORT"
    ):
        open_engine(ClientPortalServiceConf())


def test_a_directory_that_is_no_store(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match=str(tmp_path)):
        open_engine(ClientPortalServiceConf("file", str(tmp_path), 0, 0))


def test_a_path_with_a_nul_is_no_path() -> None:
    with pytest.raises(ChronoLogError):
        open_engine(ClientPortalServiceConf("file", "a\0b", 0, 0))
