"""The test helpers have to be right themselves: above all, a time-out must leave nothing running."""

import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from tests.support import counts, processes
from tests.support.launch import Mpi
from tests.support.namespaces import run_in_tmpfs
from tests.support.requirements import require, required

HELLO = """
    from mpi4py import MPI
    print(f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size}")
"""

# Writes its pid, then neither ends nor listens to SIGTERM.
STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1], str(os.getpid())).touch()
time.sleep(600)
"""


def gone(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def all_gone(directory: pathlib.Path, timeout_s: float = 5) -> bool:
    """Tell whether every process that left its pid as a file name ends in time."""
    deadline = time.monotonic() + timeout_s
    while not (done := all(gone(int(p.name)) for p in directory.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    return done


class TestCounts:
    @pytest.mark.parametrize(("soaking", "expected"), [(False, 3), (True, 70)])
    def test_soak_chooses(self, monkeypatch: pytest.MonkeyPatch, soaking: bool, expected: int) -> None:
        monkeypatch.setattr(counts, "SOAKING", soaking)
        assert counts.soak(3, 70) == expected

    @pytest.mark.soak
    def test_soak_marker_needs_soak(self) -> None:
        assert counts.SOAKING


class TestRequire:
    def test_available_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CHRONOLOG_REQUIRE", "mpi")
        require("mpi", None)

    def test_missing_is_a_skip(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CHRONOLOG_REQUIRE", "mpi")
        with pytest.raises(pytest.skip.Exception, match="no such kernel"):
            require("namespaces", "no such kernel")

    def test_missing_but_required_is_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CHRONOLOG_REQUIRE", "slurm, mpi")
        with pytest.raises(pytest.fail.Exception, match="asks for mpi, but: no mpiexec"):
            require("mpi", "no mpiexec")

    def test_unknown_names_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match="known are mpi"):
            require("mpl", "mistyped")
        monkeypatch.setenv("CHRONOLOG_REQUIRE", "mpi,namespace")
        with pytest.raises(ValueError, match="CHRONOLOG_REQUIRE names namespace; known are"):
            required()


class TestRun:
    def test_output_and_status(self) -> None:
        code = "import sys; print('out', repr(sys.stdin.read())); print('err', file=sys.stderr); sys.exit(7)"
        done = processes.run([sys.executable, "-c", code], timeout=30)
        assert (done.returncode, done.stdout, done.stderr) == (7, "out ''\n", "err\n")

    def test_environment_is_our_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("PMI_RANK", "PMIX_ID", "OMPI_COMM_WORLD_SIZE", "SLURM_PROCID"):
            monkeypatch.setenv(name, "1")
        env = processes.child_environment({"ADDED": "yes"})
        assert not [n for n in env if n.startswith(processes.FOREIGN_JOB)]
        assert env["OMP_NUM_THREADS"] == "1"
        assert env["ADDED"] == "yes"
        assert env["PYTHONPATH"].split(os.pathsep)[0] == str(processes.ROOT)

    def test_timeout_keeps_the_output(self) -> None:
        code = "import time; print('so far', flush=True); time.sleep(600)"
        with pytest.raises(processes.RunTimeoutError, match=r"still running after 0\.5 s") as caught:
            processes.run([sys.executable, "-c", code], timeout=0.5)
        assert caught.value.stdout == "so far\n"

    def test_timeout_kills_descendants_in_other_sessions(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processes, "TERM_GRACE_S", 0.1)
        parent = (
            "import subprocess, sys\n"
            "subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], start_new_session=True).wait()"
        )
        with pytest.raises(processes.RunTimeoutError):
            processes.run([sys.executable, "-c", parent, STUBBORN, str(tmp_path)], timeout=2)
        assert len(list(tmp_path.iterdir())) == 1
        assert all_gone(tmp_path)

    def test_interruption_leaves_nothing(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object, **__: object) -> tuple[str, str]:
            while not list(tmp_path.iterdir()):
                time.sleep(0.01)
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            processes.run([sys.executable, "-c", STUBBORN, str(tmp_path)], timeout=60)
        assert all_gone(tmp_path)


@pytest.mark.slow
class TestMpi:
    def test_hello(self, mpi: Mpi) -> None:
        done = mpi(2, "-c", HELLO)
        assert sorted(done.stdout.splitlines()) == ["rank 0 of 2", "rank 1 of 2"]

    def test_script_arguments_environment(self, mpi: Mpi, tmp_path: pathlib.Path) -> None:
        script = tmp_path / "program.py"
        script.write_text("import os, sys; print(sys.argv[1:], os.environ['ADDED'], os.getcwd())")
        done = mpi(1, script, "a b", 3, env={"ADDED": "yes"}, cwd=tmp_path)
        assert done.stdout == f"['a b', '3'] yes {tmp_path}\n"

    def test_module(self, mpi: Mpi) -> None:
        assert re.search(r"Hello.* 0 of 1", mpi(1, "-m", "mpi4py.bench", "helloworld").stdout)

    def test_failing_rank_ends_the_job(self, mpi: Mpi) -> None:
        code = "from mpi4py import MPI; w = MPI.COMM_WORLD; 1 / w.rank; w.barrier()"
        done = mpi(2, "-c", code, check=False, timeout=30)
        assert done.returncode != 0
        assert "ZeroDivisionError" in done.stderr
        with pytest.raises(pytest.fail.Exception, match=r"exit status(.|\n)*ZeroDivisionError"):
            mpi(2, "-c", code, timeout=30)

    def test_timeout_ends_ranks_that_ignore_sigterm(
        self, mpi: Mpi, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processes, "TERM_GRACE_S", 0.2)
        with pytest.raises(pytest.fail.Exception, match="2 ranks still running after 3 s"):
            mpi(2, "-c", STUBBORN, tmp_path, timeout=3)
        assert len(list(tmp_path.iterdir())) == 2
        assert all_gone(tmp_path)


class TestTmpfs:
    def test_a_full_one_is_enospc(self, tmp_path: pathlib.Path) -> None:
        code = """
            import errno, os, sys
            usage = os.statvfs(sys.argv[1])
            assert usage.f_blocks * usage.f_frsize == 1 << 20, usage
            fd = os.open(sys.argv[1] + "/file", os.O_CREAT | os.O_WRONLY)
            try:
                os.posix_fallocate(fd, 0, 2 << 20)
            except OSError as error:
                print(errno.errorcode[error.errno])
        """
        assert run_in_tmpfs(tmp_path, 1 << 20, "-c", code, tmp_path).stdout == "ENOSPC\n"
        assert list(tmp_path.iterdir()) == []

    def test_inodes(self, tmp_path: pathlib.Path) -> None:
        code = "import sys; [open(f'{sys.argv[1]}/{i}', 'w').close() for i in range(5)]"
        run_in_tmpfs(tmp_path, 1 << 20, "-c", code, tmp_path, inodes=6)
        done = run_in_tmpfs(tmp_path, 1 << 20, "-c", code, tmp_path, inodes=5, check=False)
        assert "No space left on device" in done.stderr

    def test_remount_makes_room(self, tmp_path: pathlib.Path) -> None:
        code = """
            import os, subprocess, sys
            subprocess.run(["mount", "-o", "remount,size=2m", "tmpfs", sys.argv[1]], check=True)
            usage = os.statvfs(sys.argv[1])
            print(usage.f_blocks * usage.f_frsize)
        """
        assert run_in_tmpfs(tmp_path, 1 << 20, "-c", code, tmp_path).stdout == f"{2 << 20}\n"

    def test_status_and_timeout(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(pytest.fail.Exception, match="exit status 3"):
            run_in_tmpfs(tmp_path, 1 << 20, "-c", "raise SystemExit(3)")
        killed = run_in_tmpfs(tmp_path, 1 << 20, "-c", "import os; os.kill(os.getpid(), 9)", check=False)
        assert killed.returncode == -9
        with pytest.raises(pytest.fail.Exception, match="still running after 1 s"):
            run_in_tmpfs(tmp_path, 1 << 20, "-c", "import time; time.sleep(600)", timeout=1)

    def test_arguments_that_would_mean_no_limit(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(ValueError, match="no limit"):
            run_in_tmpfs(tmp_path, 0, "-c", "pass")
        with pytest.raises(ValueError, match="no limit"):
            run_in_tmpfs(tmp_path, 1 << 20, "-c", "pass", inodes=0)
        with pytest.raises(NotADirectoryError, match="make it first"):
            run_in_tmpfs(tmp_path / "absent", 1 << 20, "-c", "pass")

    def test_namespace_command(self, namespace: tuple[str, ...]) -> None:
        assert processes.run([*namespace, "id", "-u"], timeout=30).stdout == "0\n"
