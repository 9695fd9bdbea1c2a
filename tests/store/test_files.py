"""Small files appear whole or not at all, with the mode that was asked for. More in test_root.py."""

import errno
import os
import pathlib
import stat
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.errors import DamageError, NotAuthorizedError, StoreError
from py_chronolog_client.store import files


@pytest.fixture(params=[0o000, 0o077, 0o777])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("_umask")
@pytest.mark.parametrize("wanted", [0o600, 0o640, 0o664])
def test_modes_are_exact(tmp_path: pathlib.Path, wanted: int) -> None:
    os.close(files.create_file(tmp_path / "made", os.O_WRONLY, wanted))
    files.write_file(tmp_path / "written", b"data", wanted)
    assert files.publish_file(tmp_path / "published", b"data", wanted)
    assert [mode(tmp_path / name) for name in ("made", "written", "published")] == [wanted] * 3
    files.make_directory(tmp_path / "directory", 0o2750)
    assert mode(tmp_path / "directory") == 0o2750


@given(data=st.binary(max_size=100), piece=st.integers(1, 30), limit=st.integers(0, 110))
def test_a_file_is_written_and_read_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, piece: int, limit: int
) -> None:
    """Also where the system takes and gives a part at a time."""
    path, write, read = tmp_path_factory.mktemp("files") / "file", os.write, os.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, view: write(descriptor, view[:piece]))
        patch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, piece)))
        files.write_file(path, data, 0o600)
        if len(data) <= limit:
            assert files.read_file(path, limit) == data
        else:
            with pytest.raises(DamageError, match=f"longer than the {limit} bytes"):
                files.read_file(path, limit)
    assert path.read_bytes() == data


def test_a_write_that_fails_leaves_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    for action in (files.write_file, files.publish_file):
        with pytest.raises(OSError, match="No space left"):
            action(tmp_path / "file", b"data", 0o600)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("links", [True, False])
def test_what_appears_appears_once_and_over_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "making").write_text("new")
    files.appear(tmp_path / "making", tmp_path / "made")
    assert (tmp_path / "made").read_text() == "new"
    assert (tmp_path / "making").exists() == links
    if links:
        with pytest.raises(FileExistsError):
            files.appear(tmp_path / "making", tmp_path / "made")


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (errno.EACCES, NotAuthorizedError, "/place: Permission denied: ask the owner"),
        (errno.EROFS, NotAuthorizedError, "/place: Read-only file system: ask the owner"),
        (errno.ENOSPC, StoreError, "/place: No space left on device"),
        (errno.EIO, StoreError, "/place: Input/output error"),
    ],
)
def test_errors_of_the_system_are_sentences(number: int, kind: type[Exception], sentence: str) -> None:
    for error in (OSError(number, os.strerror(number)), OSError(number, os.strerror(number), "/place")):
        with pytest.raises(kind, match=sentence), files.os_errors("/place"):
            raise error
    with pytest.raises(DamageError), files.os_errors("/place"):
        raise DamageError("/file", 3, "is left as it is")


def test_temporary_names_are_unused_beside_the_file_and_ignored(tmp_path: pathlib.Path) -> None:
    names = {files.temporary_beside(tmp_path / "file") for _ in range(100)}
    assert len(names) == 100
    assert all(name.parent == tmp_path and name.name.startswith(".") for name in names)
