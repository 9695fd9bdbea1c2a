"""ChronoLog's configuration files: what counts, what is accepted, and what every mistake is told."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from chronolog_hpc.clientlib import InvalidArgumentError
from chronolog_hpc.services.configuration import MAX_FILE_BYTES, Configuration, Log, read_configuration
from py_chronolog_client.engine.connection import Address


def service(port: int, provider: int, ip: str = "127.0.0.1", **more: Any) -> dict[str, Any]:
    rpc = {
        "protocol_conf": "ofi+sockets",
        "service_ip": ip,
        "service_base_port": port,
        "service_provider_id": provider,
    }
    return {"rpc": {**rpc, **more}}


def monitor(file: str, level: str = "debug", kind: str = "file") -> dict[str, Any]:
    said = {"type": kind, "file": file, "level": level, "name": "Chrono"}
    return {"monitor": {**said, "filesize": 1048576, "filenum": 3, "flushlevel": "warning"}}


CHUNKS = {
    "max_story_chunk_size": 4096,
    "story_chunk_duration_secs": 10,
    "acceptance_window_secs": 15,
    "inactive_story_delay_secs": 120,
}


def deployment() -> dict[str, Any]:
    """Return everything that a file of the present format has."""
    return {
        "clock": {"clocksource_type": "CPP_STYLE", "drift_cal_sleep_sec": 10, "drift_cal_sleep_nsec": 0},
        "authentication": {"auth_type": "RBAC", "module_location": "/path/to/module"},
        "chrono_visor": {
            "VisorClientPortalService": service(5555, 55, "127.0.0.2"),
            "VisorKeeperRegistryService": service(8888, 88),
            "Monitoring": monitor("visor.log"),
            "delayed_data_admin_exit_in_secs": 3,
        },
        "chrono_keeper": {
            "RecordingGroup": 7,
            "KeeperRecordingService": service(6666, 66),
            "KeeperDataStoreAdminService": service(7777, 77),
            "VisorKeeperRegistryService": service(8888, 88),
            "KeeperGrapherDrainService": service(3333, 33),
            "Monitoring": monitor("/var/log/chronolog/keeper.log", "warning"),
            "DataStoreInternals": dict(CHUNKS),
            "Extractors": {"story_files_dir": "/scratch/stories"},
        },
        "chrono_grapher": {
            "RecordingGroup": 7,
            "KeeperGrapherDrainService": service(3333, 33),
            "DataStoreAdminService": service(4444, 44),
            "VisorRegistryService": service(8888, 88),
            "Monitoring": monitor("grapher.log"),
            "DataStoreInternals": dict(CHUNKS),
            "Extractors": {"story_files_dir": "/tmp/"},
        },
        "chrono_player": {
            "RecordingGroup": 7,
            "PlayerStoreAdminService": service(2222, 22),
            "PlaybackQueryService": service(2225, 25),
            "VisorRegistryService": service(8888, 88),
            "Monitoring": monitor("player.log", "off", "console"),
            "DataStoreInternals": dict(CHUNKS),
            "ArchiveReaders": {"story_files_dir": "/tmp/"},
        },
        "chrono_client": {
            "VisorClientPortalService": service(5555, 55),
            "ClientQueryService": service(5557, 57),
            "Monitoring": monitor("client.log"),
        },
    }


def read(directory: Path, said: object) -> Configuration:
    path = directory / "conf.json"
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    return read_configuration(path)


def sentence(directory: Path, said: object) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        read(directory, said)
    assert str(directory / "conf.json") in str(caught.value)
    return str(caught.value)


def test_a_whole_file(tmp_path: Path) -> None:
    assert read(tmp_path, deployment()) == Configuration(
        portal=Address("127.0.0.2", 5555),
        recording=Address("127.0.0.1", 6666),
        draining=Address("127.0.0.1", 3333),
        query=Address("127.0.0.1", 5557),
        logs={
            "visor": Log("debug", Path("visor.log"), 1048576, 3),
            "keeper": Log("warning", Path("/var/log/chronolog/keeper.log"), 1048576, 3),
            "grapher": Log("debug", Path("grapher.log"), 1048576, 3),
            "player": Log("off", None, 1048576, 3),
        },
        story_files={"keeper": Path("/scratch/stories")},
        notes=(
            "ofi+sockets: all services of this deployment speak TCP",
            (
                "chrono_grapher's story_files_dir /tmp/ is relative or for temporary files: stories are put into the "
                "deployment's directory"
            ),
        ),
    )


def test_an_older_file(tmp_path: Path) -> None:
    old = service(5555, 55, rpc_implementation="Thallium_sockets")
    found = read(
        tmp_path,
        {
            "chrono_visor": {
                "VisorClientPortalService": old,
                "Logging": {"log": {"file": "../../logs/v.txt"}},
            },
            "chrono_keeper": {"KeeperRecordingService": old, "story_files_dir": "/tmp/"},
            "chrono_player": {"PlaybackQueryService": service(2225, 25)},
        },
    )
    assert found.portal == found.recording == Address("127.0.0.1", 5555)
    assert found.query == Address("127.0.0.1", 2225)
    assert found.logs == {"visor": Log("info", Path("v.txt"))}
    assert found.story_files == {}
    assert "ofi+sockets" in found.notes[0]
    assert "story_files_dir /tmp/" in found.notes[1]


def test_a_file_of_a_client_and_one_that_says_nothing(tmp_path: Path) -> None:
    client = deployment()["chrono_client"]
    assert read(tmp_path, {"chrono_client": client}).portal == Address("127.0.0.1", 5555)
    assert read(tmp_path, {}) == Configuration()


@pytest.mark.parametrize(
    ("named", "used"),
    [
        ("/scratch/x", "/scratch/x"),
        ("/tmp", None),
        ("/tmp/x", None),
        ("/scratch/../tmp/x", None),
        ("/var/tmp/x", None),
        ("/dev/shm/x", None),
        ("/tmpfiles", "/tmpfiles"),
        ("stories", None),
        ("./stories", None),
    ],
)
def test_only_lasting_absolute_directories_count(tmp_path: Path, named: str, used: str | None) -> None:
    for role in ("keeper", "grapher"):
        found = read(tmp_path, {f"chrono_{role}": {"Extractors": {"story_files_dir": named}}})
        assert found.story_files == ({} if used is None else {role: Path(used)})
    assert bool(found.notes) == (used is None)


@pytest.mark.parametrize(("named", "used"), [("/tmp/a.log", "a.log"), ("..", None), ("a/", None), ("b", "b")])
def test_log_files_lie_in_the_deployment_unless_meant(tmp_path: Path, named: str, used: str | None) -> None:
    found = read(tmp_path, {"chrono_visor": {"Monitoring": monitor(named)}})
    assert found.logs["visor"].file == (None if used is None else Path(used))


MISTAKES: list[tuple[str, Any, str]] = [
    ("chrono_visors", {}, "unknown key 'chrono_visors': did you mean 'chrono_visor'?"),
    ("chrono_visor.VisorClientPortal", {}, "did you mean 'VisorClientPortalService'?"),
    ("chrono_visor.visorclientportalservice", {}, "did you mean 'VisorClientPortalService'?"),
    ("chrono_keeper.zzzz", 1, "unknown key 'chrono_keeper.zzzz': known here are RecordingGroup"),
    ("chrono_visor.VisorClientPortalService.rpc.service_port", 1, "did you mean 'service_base_port'?"),
    ("chrono_visor.VisorClientPortalService.rpc.service_base_port", 70000, "is 70000, not a whole number from 0 to 65535"),
    ("chrono_visor.VisorClientPortalService.rpc.service_base_port", -1, "is -1, not"),
    ("chrono_visor.VisorClientPortalService.rpc.service_base_port", "5555", 'is "5555", not a whole number'),
    ("chrono_visor.VisorClientPortalService.rpc.service_base_port", True, "is true, not"),
    ("chrono_visor.VisorClientPortalService.rpc.service_base_port", 1.5, "is 1.5, not"),
    ("chrono_visor.VisorClientPortalService.rpc.service_provider_id", None, "is null, not"),
    ("chrono_visor.VisorClientPortalService.rpc.service_ip", "", 'is "", not a text that is not empty'),
    ("chrono_visor.VisorClientPortalService.rpc.service_ip", [1], "is [1], not"),
    ("chrono_visor.VisorClientPortalService", 3, "is 3, not an object with rpc"),
    ("chrono_visor.Monitoring.monitor.level", "loud", "one of debug, info, warning, error, critical, off"),
    ("chrono_visor.Monitoring.monitor.level", [], "one of debug"),
    ("chrono_visor.Monitoring.monitor.type", "tape", "one of file, console"),
    ("chrono_grapher.DataStoreInternals.max_story_chunk_size", -5, "is -5, not"),
    ("chrono_keeper.RecordingGroup", "x" * 500, "..."),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "words"), MISTAKES)
def test_a_mistake_names_its_key_and_what_is_known(tmp_path: Path, key: str, value: Any, words: str) -> None:
    said = deployment()
    *above, last = key.split(".")
    section = said
    for name in above:
        section = section[name]
    section[last] = value
    told = sentence(tmp_path, said)
    assert key in told
    assert words in told
    assert len(told) < 600


def test_not_even_an_object(tmp_path: Path) -> None:
    assert "the configuration is 3, not an object with clock" in sentence(tmp_path, 3)


def test_json_that_is_none_names_line_and_column(tmp_path: Path) -> None:
    text = json.dumps(deployment(), indent=2)
    broken = re.sub(r'(\n {4}\}),(\n {4}"Monitoring")', r"\1\2", text, count=1)
    line = broken[: re.search(r'\n {4}"Monitoring"', broken).end()].count("\n") + 1  # type: ignore[union-attr]
    assert f"line {line}, column 5" in sentence(tmp_path, broken)
    assert "line 1, column 1" in sentence(tmp_path, "")
    assert "nested" in sentence(tmp_path, '{"clock":' * 100_000)
    assert "line 1, column" in sentence(tmp_path, '{"clock":NaN,}')


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "conf.json"
    with pytest.raises(InvalidArgumentError, match="No such file"):
        read_configuration(path)
    path.write_bytes(b'{"clock": "\xff"}')
    with pytest.raises(InvalidArgumentError, match="no UTF-8 at byte 11"):
        read_configuration(path)
    path.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(InvalidArgumentError, match="longer than"):
        read_configuration(path)
    with pytest.raises(InvalidArgumentError, match="Is a directory"):
        read_configuration(tmp_path)
