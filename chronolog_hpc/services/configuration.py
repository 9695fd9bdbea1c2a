"""ChronoLog's JSON configuration files, read unchanged.

Everything that such a file may hold is known here and checked: an unknown key, a wrong type or a value out of range
is an error that names the key, because a mistyped key would otherwise be a setting that silently does nothing. Of
what is known, this is used:

    chrono_visor.VisorClientPortalService, or chrono_client's     where the visor listens
    chrono_keeper.KeeperRecordingService                          where the keeper listens
    chrono_grapher.KeeperGrapherDrainService                      where the grapher listens
    chrono_client.ClientQueryService, or chrono_player.PlaybackQueryService       where the player listens
    Monitoring.monitor (older files: Logging.log) of these four                   level, file and bounds of their logs
    chrono_keeper.Extractors.story_files_dir (older files: chrono_keeper.story_files_dir)      where keepers put stories
    chrono_grapher.Extractors.story_files_dir                     where the grapher puts them

Services register at the visor's portal, so the other addresses have no meaning here. Any `ofi+...` protocol means
TCP. The files that ChronoLog ships name directories below /tmp, where everybody could be first: a path counts only
where it is absolute and not in a directory for temporary files.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from py_chronolog_client.engine.connection import Address
from py_chronolog_client.errors import InvalidArgumentError

MAX_FILE_BYTES = 2**20
LEVELS = ("debug", "info", "warning", "error", "critical", "off")
"""Levels of logs, as ChronoLog names them."""

_TEMPORARY = tuple(PurePosixPath(path) for path in ("/tmp", "/var/tmp", "/dev/shm"))  # noqa: S108  to avoid them
_LONGEST_VALUE = 60


class Log(NamedTuple):
    """Where a role logs, and how much."""

    level: str = "info"
    file: Path | None = None
    """An absolute path, or the name of a file in the deployment's directory of logs; None where none is named."""
    size_bytes: int = 2**23
    """Beyond that another file is begun; 0 for never."""
    kept: int = 3
    """So many old files are kept, at least one."""


@dataclass(frozen=True)
class Configuration:
    """What a configuration file says that matters here; None where it says nothing."""

    portal: Address | None = None
    recording: Address | None = None
    draining: Address | None = None
    query: Address | None = None
    logs: Mapping[str, Log] = field(default_factory=dict)
    """Role -> its log."""
    story_files: Mapping[str, Path] = field(default_factory=dict)
    """Role -> directory of its stores."""
    notes: tuple[str, ...] = ()
    """What somebody who wrote the file should know."""


def read_configuration(path: Path) -> Configuration:
    """Read a configuration file of ChronoLog.

    Raises:
        InvalidArgumentError: it cannot be read, is no JSON, or says something that makes no sense.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InvalidArgumentError(f"{path}: longer than the {MAX_FILE_BYTES} bytes of a configuration")
        said = json.loads(data.decode("utf-8"))
    except OSError as error:
        raise InvalidArgumentError(f"{path}: the configuration cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}: no UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(
            f"{path}: no JSON at line {error.lineno}, column {error.colno}: {error.msg} (some readers of JSON guess "
            "what is meant; this one does not: mend it there)"
        ) from error
    except RecursionError as error:
        raise InvalidArgumentError(f"{path}: nested too deeply for a configuration") from error
    _check(path, _FILE, said, "")
    return _understood(said)


# -- what may be in a file --


class _Rule(NamedTuple):
    """What a value must be."""

    expected: str
    holds: Callable[[Any], bool]


def _whole(most: int) -> _Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most

    return _Rule(f"a whole number from 0 to {most}", holds)


def _one_of(*choices: str) -> _Rule:
    return _Rule(f"one of {', '.join(choices)}", lambda value: value in choices)


_TEXT = _Rule("a text", lambda value: isinstance(value, str))
_NAME = _Rule("a text that is not empty", lambda value: isinstance(value, str) and value != "")
_PORT = _whole(2**16 - 1)
_COUNT = _whole(2**63 - 1)
_LEVEL = _one_of(*LEVELS)

_SERVICE: Any = {
    "rpc": {
        "rpc_implementation": _TEXT,
        "protocol_conf": _NAME,
        "service_ip": _NAME,
        "service_base_port": _PORT,
        "service_provider_id": _PORT,
    }
}
_LOG: Any = {
    "type": _one_of("file", "console"),
    "file": _NAME,
    "level": _LEVEL,
    "name": _TEXT,
    "filesize": _COUNT,
    "filenum": _whole(10_000),
    "flushlevel": _LEVEL,
}
_LOGS: Any = {"Monitoring": {"monitor": _LOG}, "Logging": {"log": _LOG}}
_CHUNKS: Any = {
    "max_story_chunk_size": _COUNT,
    "story_chunk_duration_secs": _COUNT,
    "acceptance_window_secs": _COUNT,
    "inactive_story_delay_secs": _COUNT,
}
_STORIES: Any = {"story_files_dir": _NAME}
_FILE: Any = {
    "clock": {"clocksource_type": _TEXT, "drift_cal_sleep_sec": _COUNT, "drift_cal_sleep_nsec": _COUNT},
    "authentication": {"auth_type": _TEXT, "module_location": _TEXT},
    "chrono_visor": {
        "VisorClientPortalService": _SERVICE,
        "VisorKeeperRegistryService": _SERVICE,
        "delayed_data_admin_exit_in_secs": _COUNT,
        **_LOGS,
    },
    "chrono_keeper": {
        "RecordingGroup": _COUNT,
        "KeeperRecordingService": _SERVICE,
        "KeeperDataStoreAdminService": _SERVICE,
        "VisorKeeperRegistryService": _SERVICE,
        "KeeperGrapherDrainService": _SERVICE,
        "DataStoreInternals": _CHUNKS,
        "Extractors": _STORIES,
        "story_files_dir": _NAME,
        **_LOGS,
    },
    "chrono_grapher": {
        "RecordingGroup": _COUNT,
        "KeeperGrapherDrainService": _SERVICE,
        "DataStoreAdminService": _SERVICE,
        "VisorRegistryService": _SERVICE,
        "DataStoreInternals": _CHUNKS,
        "Extractors": _STORIES,
        **_LOGS,
    },
    "chrono_player": {
        "RecordingGroup": _COUNT,
        "PlayerStoreAdminService": _SERVICE,
        "PlaybackQueryService": _SERVICE,
        "VisorRegistryService": _SERVICE,
        "DataStoreInternals": _CHUNKS,
        "ArchiveReaders": _STORIES,
        **_LOGS,
    },
    "chrono_client": {
        "VisorClientPortalService": _SERVICE,
        "ClientQueryService": _SERVICE,
        **_LOGS,
    },
}


def _check(path: Path, expected: Any, value: Any, key: str) -> None:
    """Make sure that a value is what is expected at its key.

    Raises:
        InvalidArgumentError: it is not, or something within it.
    """
    about = f"{path}: {key}" if key else f"{path}: the configuration"
    if isinstance(expected, _Rule):
        if not expected.holds(value):
            raise InvalidArgumentError(f"{about} is {_shown(value)}, not {expected.expected}")
        return
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{about} is {_shown(value)}, not an object with {', '.join(expected)}")
    for name, item in value.items():
        inner = f"{key}.{name}" if key else name
        if name not in expected:
            near = _nearest(name, expected)
            advice = f"did you mean {near!r}?" if near else f"known here are {', '.join(expected)}"
            raise InvalidArgumentError(f"{path}: unknown key {inner!r}: {advice}")
        _check(path, expected[name], item, inner)


def _nearest(name: str, known: Mapping[str, Any]) -> str | None:
    by_folded = {key.casefold(): key for key in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, 1)
    return by_folded[found[0]] if found else None


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


# -- what it means --


def _understood(said: dict[str, Any]) -> Configuration:
    visor, grapher, keeper, player, client = (
        said.get(f"chrono_{role}", {}) for role in ("visor", "grapher", "keeper", "player", "client")
    )
    notes = []
    protocols = sorted(_protocols(said) - {"tcp"})
    if protocols:
        notes.append(f"{', '.join(protocols)}: all services of this deployment speak TCP")
    story_files = {}
    for role, section in (("keeper", keeper), ("grapher", grapher)):
        named = section.get("Extractors", {}).get("story_files_dir", section.get("story_files_dir"))
        path = None if named is None else _lasting(named)
        if path is not None:
            story_files[role] = path
        elif named is not None:
            notes.append(
                f"chrono_{role}'s story_files_dir {named} is relative or for temporary files: stories are put into the "
                "deployment's directory"
            )
    return Configuration(
        portal=_address(visor, "VisorClientPortalService") or _address(client, "VisorClientPortalService"),
        recording=_address(keeper, "KeeperRecordingService"),
        draining=_address(grapher, "KeeperGrapherDrainService"),
        query=_address(client, "ClientQueryService") or _address(player, "PlaybackQueryService"),
        logs={
            role: _log(section)
            for role, section in (
                ("visor", visor),
                ("grapher", grapher),
                ("keeper", keeper),
                ("player", player),
            )
            if "Monitoring" in section or "Logging" in section
        },
        story_files=story_files,
        notes=tuple(notes),
    )


def _address(section: dict[str, Any], service: str) -> Address | None:
    rpc = section.get(service, {}).get("rpc", {})
    if "service_base_port" not in rpc:
        return None
    return Address(rpc.get("service_ip", "127.0.0.1"), rpc["service_base_port"])


def _log(section: dict[str, Any]) -> Log:
    said = section.get("Monitoring", {}).get("monitor") or section.get("Logging", {}).get("log", {})
    named = said.get("file", "") if said.get("type") != "console" else ""
    name = os.path.basename(named)
    file = _lasting(named) or (Path(name) if name not in {"", ".", ".."} else None)
    bounds = {
        name: said[key] for name, key in (("size_bytes", "filesize"), ("kept", "filenum")) if key in said
    }
    return Log(said.get("level", "info"), file, **bounds)


def _lasting(text: str) -> Path | None:
    """Return a path that somebody meant: absolute, and not in a directory for temporary files."""
    path = PurePosixPath(os.path.normpath(text))
    if not path.is_absolute() or any(path.is_relative_to(directory) for directory in _TEMPORARY):
        return None
    return Path(path)


def _protocols(value: object) -> set[str]:
    if not isinstance(value, dict):
        return set()
    found = {value["protocol_conf"]} if isinstance(value.get("protocol_conf"), str) else set()
    return found.union(*(_protocols(item) for item in value.values()))
