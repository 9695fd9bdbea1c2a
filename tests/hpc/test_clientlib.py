"""The door to the client package: what is in the way, and where things are."""

import json
import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest

from chronolog_hpc import clientlib
from chronolog_hpc.clientlib import EventList, StoryFiles
from tests.support import processes

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def blocking(*names: str) -> str:
    """Return code that makes the import of some packages fail."""
    return f"BLOCKED = {names!r}\n{BLOCKED}"


def python(code: str, *options: str, path: str = "", before: str = "") -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": ":".join(filter(None, (path, str(processes.ROOT))))}
    argv = [sys.executable, *options, "-c", before + textwrap.dedent(code)]
    return processes.run(argv, timeout=60, env=env, cwd="/")  # -c puts the working directory before the path


FOREIGN = {
    "a module": ("py_chronolog_client.py", "raise SystemExit('a foreign client was run')"),
    "a compiled extension": ("py_chronolog_client.abi3.so", "\x7fELF"),
    "a package": ("py_chronolog_client/__init__.py", "raise SystemExit('a foreign client was run')"),
    "a directory": ("py_chronolog_client/notes.txt", "nothing"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_client_that_hides_ours_is_named_and_not_run(kind: str, tmp_path: pathlib.Path) -> None:
    name, text = FOREIGN[kind]
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    if kind == "a directory":  # without __init__ it hides nothing that stands behind it on the path
        assert python("import chronolog_hpc.clientlib", path=str(tmp_path)).returncode == 0
        return
    done = python("import chronolog_hpc.clientlib", path=str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("chronolog_hpc.clientlib.ForeignClientError: ")
    assert str(file) in last
    assert "PYTHONPATH" in last


def test_a_foreign_client_that_is_loaded_already_is_named() -> None:
    code = """
        import sys, types
        sys.modules["py_chronolog_client"] = types.ModuleType("py_chronolog_client")
        sys.modules["py_chronolog_client"].__file__ = "/elsewhere/py_chronolog_client.so"
        try:
            import chronolog_hpc.clientlib
        except ImportError as error:
            print(error.path, "hides" in str(error))
    """
    assert python(code).stdout.split() == ["/elsewhere/py_chronolog_client.so", "True"]


def test_a_missing_client_is_said_to_be_missing(tmp_path: pathlib.Path) -> None:
    shutil.copytree(processes.ROOT / "chronolog_hpc", tmp_path / "chronolog_hpc")
    env = {"PYTHONPATH": str(tmp_path)}
    argv = [sys.executable, "-S", "-c", "import chronolog_hpc.clientlib"]
    done = processes.run(argv, timeout=60, env=env, cwd=tmp_path)
    assert "there is no py_chronolog_client, which comes with chronolog-hpc: pip install" in done.stderr


def test_the_package_imports_neither_numpy_nor_mpi() -> None:
    code = """
        import sys
        import chronolog_hpc
        import py_chronolog_client
        assert chronolog_hpc.__version__ == py_chronolog_client.__version__ != ""
        chronolog_hpc.open_story, chronolog_hpc.guard, chronolog_hpc.describe_clients
        print(sorted({"numpy", "mpi4py"} & sys.modules.keys()))
        print(sorted(set(chronolog_hpc.__all__) - set(dir(chronolog_hpc))))
        chronolog_hpc.nothing
    """
    done = python(code)
    assert done.stdout.split() == ["[]", "[]"]
    assert "has no attribute 'nothing'" in done.stderr


def test_every_module_can_be_imported_without_mpi4py() -> None:
    code = """
        import importlib, pkgutil, chronolog_hpc, py_chronolog_client
        names = []
        for package in (py_chronolog_client, chronolog_hpc):
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                if not module.name.endswith("__main__"):
                    importlib.import_module(module.name)
                    names.append(module.name)
        print(len(names))
    """
    done = python(code, before=blocking("mpi4py"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_a_session_of_one_works_without_mpi4py(tmp_path: pathlib.Path) -> None:
    code = f"""
        import json
        from chronolog_hpc import open_story, replay_story, describe_clients
        with open_story(None, "c", "s", store={str(tmp_path)!r}) as story:
            times = [story.log_event(str(number)) for number in range(100)]
            story.log_events(["a", b"b"])
            assert story.flush() == 102
            assert (story.rank, story.size, story.story) == (0, 1, "s")
            info = describe_clients(story.client, "c", "s")[story.client_id]
        assert (info.rank, info.size, info.job, info.attempt) == (0, 1, "", 0)
        events = replay_story(None, "c", "s", store={str(tmp_path)!r})
        assert events.times.tolist()[:100] == times
        print(json.dumps([event.log_record() for event in events]))
    """
    done = python(code, before=blocking("mpi4py"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [*map(str, range(100)), "a", "b"]


def test_the_store_is_the_environments_then_the_arguments_then_the_working_directorys(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert clientlib.store_directory() == (tmp_path / "chronolog_store", False)
    assert clientlib.store_directory("here") == (tmp_path / "here", True)
    monkeypatch.setenv("CHRONOLOG_STORE", "there")
    assert clientlib.store_directory("here") == (tmp_path / "there", True)


def test_a_code_becomes_the_error_behind_it(tmp_path: pathlib.Path) -> None:
    client = clientlib.open_client(tmp_path)
    with pytest.raises(clientlib.NotFoundError, match="nowhere"):
        clientlib.acquire(client, "nowhere", "s", None)
    assert clientlib.check(client, client.CreateChronicle("c")) == 0
    accepted = clientlib.ErrorCode.CL_ERR_CHRONICLE_EXISTS
    assert clientlib.check(client, client.CreateChronicle("c"), accepted) == accepted


def test_a_reader_creates_no_store(tmp_path: pathlib.Path) -> None:
    with pytest.raises(clientlib.NotAStoreError):
        StoryFiles(tmp_path / "missing", "c", "s")
    assert not list(tmp_path.iterdir())


def test_story_files_tell_clients_hosts_and_sizes(tmp_path: pathlib.Path) -> None:
    ids = []
    for count in (1, 5000):
        with clientlib.open_client(tmp_path) as client:
            client.CreateChronicle("c")
            handle = clientlib.acquire(client, "c", "s", None)
            ids.append(handle.client_id)
            handle.log_events(["x" * 100] * count)
            clientlib.release(handle, "done")
    files = StoryFiles(tmp_path, "c", "s")
    assert files.client_ids() == sorted(ids)
    small, large = files.describe(ids)
    assert (small.client_id, large.client_id) == tuple(ids)
    assert large.size > 500_000 > small.size
    assert small.host == large.host != ""
    with pytest.raises(clientlib.StoreError, match="another rank sees this file"):
        files.require([*ids, 12345])


def test_names_that_need_numpy_are_fetched_when_they_are_asked_for() -> None:
    assert issubclass(clientlib.MemoryPage, clientlib.Page)
    assert len(EventList()) == 0
    with pytest.raises(AttributeError, match="nothing"):
        clientlib.nothing  # noqa: B018
