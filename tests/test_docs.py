"""The examples of the documentation run as they stand, and the documents name files that exist."""

import re
import sys
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.launch import Mpi

ROOT = processes.ROOT
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_mpi_example(mpi: Mpi, tmp_path: Path) -> None:
    (example,) = (block for block in BLOCKS if "COMM_WORLD" in block)
    (tmp_path / "program.py").write_text(example)
    done = mpi(3, "program.py", cwd=tmp_path, timeout=60)
    counts = [int(count) for count in re.findall(r"rank \d: (\d+) events", done.stdout)]
    assert sum(counts) == 300
    assert len(counts) == 3
    assert "step 0 residual 1.000e+00" in done.stdout


def test_the_example_of_clocks(mpi: Mpi, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "clock.md").read_text(), re.DOTALL)
    (tmp_path / "program.py").write_text(f"from mpi4py import MPI\ncomm = MPI.COMM_WORLD\n{example}")
    done = mpi(2, "program.py", cwd=tmp_path, timeout=60)
    assert done.stdout.split() == ["None", "None"], "a slice has one event here, and that overlaps itself"


@pytest.mark.parametrize("example", [block for block in BLOCKS if "COMM_WORLD" not in block])
def test_an_example_without_mpi(example: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(example)
    done = processes.run([sys.executable, "program.py"], timeout=60, cwd=tmp_path)
    assert done.returncode == 0, processes.describe(done)
    assert "temperature 1184" in done.stdout


@pytest.mark.parametrize(
    "document", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"], ids=lambda path: path.name
)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
        for module in re.findall(r"`(store/\w+\.py)`", document.read_text()):
            assert (ROOT / "py_chronolog_client" / module).exists()
