"""A log stays within its bounds, is always the file of its name, and has what is written to standard error too."""

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support import processes

# Logs what it reads from its standard input, a line at a time, and says when it has.
LOGGER = """
    import logging, os, sys
    from pathlib import Path
    from chronolog_hpc.services.logfile import LogFile

    logging.basicConfig(handlers=[LogFile(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))], format="%(message)s")
    for line in sys.stdin:
        logging.warning(line.strip())
        os.write(2, b"stray\\n")
        print("done", flush=True)
"""


class Logging:
    def __init__(self, path: Path, size_bytes: int, kept: int) -> None:
        argv = [sys.executable, "-c", textwrap.dedent(LOGGER), str(path), str(size_bytes), str(kept)]
        self.process = subprocess.Popen(
            argv,
            env=processes.child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Logging":
        return self

    def log(self, line: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def __exit__(self, *exception: object) -> None:
        out, err = self.process.communicate(timeout=30)
        assert (self.process.returncode, out, err) == (0, "", "")


def test_a_file_that_is_full_is_kept_under_another_name_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with Logging(path, 1000, 2) as logging:
        for number in range(100):
            logging.log(f"{number:03} {'x' * 90}")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    kept = "".join((tmp_path / name).read_text() for name in ("a.log.2", "a.log.1", "a.log"))
    numbers = [int(line[:3]) for line in kept.splitlines() if line != "stray"]
    assert numbers == list(range(numbers[0], 100))
    assert all(each.stat().st_size < 1100 for each in tmp_path.iterdir())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().endswith("stray\n")


def test_a_file_that_was_moved_away_or_deleted_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with Logging(path, 0, 3) as logging:
        logging.log("one")
        path.rename(tmp_path / "moved")
        logging.log("two")
        assert path.read_text() == "two\nstray\n"
        path.unlink()
        logging.log("three")
    assert (tmp_path / "moved").read_text() == "one\nstray\n"
    assert path.read_text() == "three\nstray\n"


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.log").symlink_to(tmp_path / "elsewhere")
    done = processes.run(
        [sys.executable, "-m", "chronolog_hpc.services", "visor", "--directory", str(tmp_path / "v"),
         "--tokens", str(tmp_path / "t"), "--log", str(tmp_path / "a.log")],
        timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert "a.log: it cannot be logged there: Too many levels of symbolic links" in done.stderr
    assert not os.path.lexists(tmp_path / "elsewhere")


pytestmark = pytest.mark.slow
