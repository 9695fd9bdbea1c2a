"""The doctor, in rooms that are really small, locked, slow or strange."""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.store.holding import as_nobody
from tests.support import launch, namespaces, processes
from tests.support.requirements import require

DOCTOR = ("-m", "chronolog_hpc", "doctor", "--json")


def found(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, dict[str, Any]]:
    """Return the findings by check; nothing of the doctor's is left, and the exit code says whether there are errors."""
    assert done.returncode == code, processes.describe(done)
    said = json.loads(done.stdout)
    levels = [finding["level"] for finding in said["findings"]]
    assert said["schema"] == "chronolog-doctor/1"
    assert (said["errors"], said["warnings"]) == (levels.count("error"), levels.count("warning"))
    assert (said["errors"] > 0) == (code == 1)
    for finding in said["findings"]:
        assert set(finding) == {"check", "level", "found", "todo", "nodes"}
        assert (finding["level"] == "ok") == (not finding["todo"])
    return {finding["check"]: finding for finding in said["findings"]}


def doctor(
    *arguments: object, code: int = 0, limit: Callable[[], None] | None = None, **env: str
) -> dict[str, dict[str, Any]]:
    argv = [sys.executable, *DOCTOR, *map(str, arguments)]
    if limit is None:
        return found(processes.run(argv, timeout=60, env=env), code)
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=limit,
        env=processes.child_environment(env),
        check=False,
    )
    return found(done, code)


def errors(findings: dict[str, dict[str, Any]]) -> set[str]:
    return {check for check, finding in findings.items() if finding["level"] == "error"}


def test_a_node_where_all_is_well(tmp_path: Path) -> None:
    findings = doctor(
        "--store", tmp_path / "store", CHRONOLOG_TAIL_DIR=str(tmp_path), CHRONOLOG_SPOOL=str(tmp_path / "s")
    )
    assert set(findings) == {
        *(
            "MPI library",
            "ranks",
            "Slurm",
            "software",
            "clock source",
            "clock resolution",
            "time of day",
            "store",
            "file system",
        ),
        *(
            "exclusive creation",
            "hard links",
            "renaming",
            "mmap",
            "fallocate",
            "hole punching",
            "free space",
            "inodes",
        ),
        *("tail directory", "spool directory", "open files", "locked memory", "file size", "processes"),
    }
    for check in (
        "store",
        "exclusive creation",
        "hard links",
        "renaming",
        "mmap",
        "tail directory",
        "spool directory",
        "ranks",
    ):
        assert findings[check]["level"] == "ok", findings[check]
    assert list(tmp_path.iterdir()) == []


def test_the_text_has_a_line_for_each_finding(tmp_path: Path) -> None:
    done = processes.run(
        [sys.executable, *DOCTOR[:-1], "--store", str(tmp_path / "no" / "store")], timeout=60
    )
    assert done.returncode == 1
    *lines, last = done.stdout.splitlines()
    assert all(line.startswith(("ok       ", "warning  ", "error    ")) for line in lines)
    assert (
        f"error    store: there is no directory {tmp_path}/no: make it, or choose another one with --store"
        in lines
    )
    assert last.startswith("# 1 node, 1 rank: 1 error, ")
    refused = processes.run([sys.executable, *DOCTOR, "--stores", "x"], timeout=60)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)


def test_places_where_no_store_can_be(tmp_path: Path) -> None:
    from chronolog_hpc.doctor.storage import store_findings

    (tmp_path / "file").touch()
    for store, words in (
        (tmp_path / "file", "is no directory"),
        (tmp_path, "holds no store"),
        (tmp_path / "file/s", "no directory"),
    ):
        (finding,) = store_findings(store, 1)
        assert (finding.check, finding.level) == ("store", "error")
        assert words in finding.found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not")
def test_directories_that_may_not_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from chronolog_hpc.doctor import storage
    from chronolog_hpc.slurm import JobEnvironment

    with tempfile.TemporaryDirectory() as name:
        locked = Path(name)
        locked.chmod(0o555)
        monkeypatch.setenv("CHRONOLOG_TAIL_DIR", name)
        monkeypatch.setenv("CHRONOLOG_SPOOL", f"{name}/s")
        monkeypatch.setenv("CHRONOLOG_PORTAL", "x:1")

        def check() -> list[list[str]]:
            return [
                list(storage.store_findings(locked, 1)[0]),
                list(storage.tails(locked, JobEnvironment({}))),
                list(storage.spools()),
            ]

        for check_name, level, found, todo in as_nobody(check):  # type: ignore[attr-defined]
            assert level == "error"
            assert "Permission denied" in found + todo, check_name
        monkeypatch.delenv("CHRONOLOG_PORTAL")
        assert as_nobody(check)[2][1] == "warning"  # type: ignore[index]


def test_limits(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))

    findings = doctor("--store", tmp_path / "s", code=1, limit=limit)
    assert errors(findings) >= {"open files", "file size", "mmap"}
    assert findings["open files"]["found"] == "50, at most 50"
    assert "File too large" in findings["mmap"]["found"]
    assert list(tmp_path.iterdir()) == []


STORE = """
    import json, sys
    from pathlib import Path
    from chronolog_hpc.doctor.storage import store_findings
    print(json.dumps({finding.check: finding for finding in store_findings(Path(sys.argv[1]), 1)}))
    assert not list(Path(sys.argv[1]).parent.iterdir())
"""


def test_rooms_that_are_nearly_full(tmp_path: Path) -> None:
    def check(size_bytes: int, inodes: int) -> dict[str, list[str]]:
        done = namespaces.run_in_tmpfs(tmp_path, size_bytes, "-c", STORE, tmp_path / "s", inodes=inodes)
        found: dict[str, list[str]] = json.loads(done.stdout)
        return found

    little = check(3 * 2**19, 100)
    assert [little[name][1] for name in ("free space", "inodes", "file system", "mmap")] == [
        *["warning"] * 3,
        "ok",
    ]
    least = check(2**16, 5)
    assert [least[name][1] for name in ("free space", "inodes", "mmap")] == ["error"] * 3
    assert "No space left on device" in least["mmap"]


def test_a_file_system_without_fallocate(tmp_path: Path, namespace: tuple[str, ...]) -> None:
    mount = 'mount -t ramfs ramfs "$1" && shift && exec "$@"'
    program = launch.python_argv("-c", STORE, tmp_path / "s")
    done = processes.run(
        [*namespace, "sh", "-c", mount, "sh", os.fspath(tmp_path), sys.executable, *program], timeout=60
    )
    assert done.returncode == 0, processes.describe(done)
    findings = json.loads(done.stdout)
    assert findings["file system"][2].startswith("ramfs")
    for check in ("fallocate", "hole punching"):
        assert findings[check][1:3] == ["warning", "Operation not supported"]
    assert [findings[check][1] for check in ("mmap", "renaming", "free space", "inodes")] == ["ok"] * 4


def test_a_variable_that_names_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from chronolog_hpc.doctor.storage import tails
    from chronolog_hpc.slurm import JobEnvironment

    monkeypatch.setenv("CHRONOLOG_TAIL_DIR", "/nonexistent")
    finding = tails(tmp_path, JobEnvironment({}))
    assert finding.level == "error"
    assert "make it or unset the variable" in finding.todo


def test_without_mpi(tmp_path: Path) -> None:
    blocked = tmp_path / "mpi4py"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('mpi4py is blocked')\n")
    env = {"PYTHONPATH": f"{tmp_path}:{processes.ROOT}", "CHRONOLOG_STORE": str(tmp_path / "s")}
    assert doctor(**env)["MPI library"]["level"] == "warning"
    assert errors(doctor(code=1, **env, PMI_RANK="0", PMI_SIZE="2")) == {"MPI library", "ranks"}


def test_ranks_of_a_job(tmp_path: Path) -> None:
    require("mpi", launch.mpi_problem())
    # Node names that differ stand for nodes; the directory is looked for from each.
    two_nodes = """
        import os, sys
        from mpi4py import MPI
        os.environ["SLURMD_NODENAME"] = f"n{MPI.COMM_WORLD.rank // 2}"
        from chronolog_hpc.cli import main
        sys.exit(main(["doctor", "--json", "--store", sys.argv[1]]))
    """
    argv = [
        *launch.mpiexec(),
        "-n",
        "3",
        sys.executable,
        *launch.python_argv("-c", two_nodes),
        str(tmp_path / "s"),
    ]
    findings = found(processes.run(argv, timeout=60))
    assert findings["ranks"]["found"] == "MPI sees 3, as were asked for"
    assert findings["shared store"]["level"] == "ok"
    assert findings["shared store"]["nodes"] == ["n0", "n1"]
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_of_another_mpi(tmp_path: Path) -> None:
    require("mpi", launch.mpi_problem())
    env = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}
    findings = doctor("--store", tmp_path / "s", code=1, **env)
    assert errors(findings) == {"ranks"}
    assert findings["ranks"]["found"].startswith("srun --mpi=none has started 4 ranks and MPI sees 1")
    assert findings["ranks"]["todo"].startswith("use srun --mpi=pm")
