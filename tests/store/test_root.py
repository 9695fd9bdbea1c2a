import errno
import hashlib
import os
import pathlib
import stat
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.errors import (
    DamageError,
    InvalidArgumentError,
    NotAStoreError,
    NotAuthorizedError,
    NotConnectedError,
    StoreError,
    StoreVersionError,
)
from py_chronolog_client.store import files
from py_chronolog_client.store.root import StoreRoot, check_name, name_hash
from tests.store.holding import as_nobody, race
from tests.support.counts import soak

MARKER = "ChronoLog store\nformat 1\nbyte-order little\nmode 0600\n"


def modes(path: pathlib.Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_new_store_is_a_directory_with_a_marker(tmp_path: pathlib.Path) -> None:
    root = StoreRoot.open(tmp_path / "store", create=True)
    assert root.path == tmp_path / "store"
    assert os.listdir(root.path) == ["CHRONOLOG"]
    assert (root.path / "CHRONOLOG").read_text() == MARKER
    assert (root.file_mode, root.directory_mode) == (0o600, 0o700)
    assert (root.chronicles, root.trash) == (root.path / "chronicles", root.path / "trash")


def test_a_store_may_be_made_in_an_empty_directory_which_keeps_its_mode(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o750)
    StoreRoot.open(tmp_path, create=True)
    assert modes(tmp_path) == "0750"
    assert modes(tmp_path / "CHRONOLOG") == "0600"


def test_opening_again_writes_nothing(tmp_path: pathlib.Path) -> None:
    StoreRoot.open(tmp_path / "store", create=True)
    os.utime(tmp_path / "store", ns=(0, 0))
    for create in (True, False):
        assert StoreRoot.open(str(tmp_path / "store"), create=create).file_mode == 0o600
    assert (tmp_path / "store").stat().st_mtime_ns == 0


def test_relative_paths_are_made_absolute(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert StoreRoot.open("store", create=True).path == tmp_path / "store"


def test_a_mistyped_path_makes_no_directories(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotConnectedError, match=f"there is no directory {tmp_path}/experimnet") as caught:
        StoreRoot.open(tmp_path / "experimnet" / "store", create=True)
    assert "make that directory" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_tilde_is_the_home_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    assert StoreRoot.open("~/store", create=True).path == tmp_path / "home" / "store"
    with pytest.raises(NotConnectedError, match=r"~nobody\.of\.that\.name"):
        StoreRoot.open("~nobody.of.that.name/store", create=True)
    assert os.listdir(tmp_path) == ["home"]


def test_a_working_directory_that_was_removed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StoreError, match="the working directory was removed: change to another"):
        StoreRoot.open("store", create=True)
    assert StoreRoot.open(tmp_path / "store", create=True).path == tmp_path / "store"


@pytest.mark.parametrize("path", ["", "with\0nul"])
def test_impossible_paths(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="no path of a store"):
        StoreRoot.open(path, create=True)


def test_no_store_is_found_where_none_is(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NotAStoreError, match="no file CHRONOLOG") as caught:
            StoreRoot.open(path, create=False)
        assert caught.value.path == str(path)
    assert os.listdir(tmp_path) == []


def test_a_directory_with_other_things_is_not_adopted(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(NotAStoreError, match="holds something else"):
        StoreRoot.open(tmp_path, create=True)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_what_a_dead_creator_left_does_no_harm(tmp_path: pathlib.Path) -> None:
    (tmp_path / ".tmp-0123").write_text("ChronoL")
    StoreRoot.open(tmp_path, create=True)


def test_a_file_is_no_store(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    for create in (True, False):
        with pytest.raises(StoreError, match="this is a file"):
            StoreRoot.open(tmp_path / "file", create=create)
    with pytest.raises(StoreError):
        StoreRoot.open(tmp_path / "file" / "below", create=True)


@pytest.mark.parametrize(
    ("marker", "error", "words"),
    [
        ("", NotAStoreError, "no marker"),
        ("Chronicle\n", NotAStoreError, "no marker"),
        ("ChronoLog store\n", NotAStoreError, "which format"),
        ("ChronoLog store\nformat one\nbyte-order little\n", NotAStoreError, "which format"),
        ("ChronoLog store\nformat 0\nbyte-order little\n", NotAStoreError, "which format"),
        ("ChronoLog store\nformat 3\nbyte-order middle\nmode x\n", StoreVersionError, "install a newer one"),
        ("ChronoLog store\nformat 1\nbyte-order big\nmode 0600\n", NotAStoreError, "byte order 'big'"),
        ("ChronoLog store\nformat 1\nbyte-order little\nmode 0999\n", NotAStoreError, "mode '0999'"),
        (MARKER + "x" * 5000, NotAStoreError, "longer than"),
    ],
)
def test_markers_that_cannot_be_believed(
    tmp_path: pathlib.Path, marker: str, error: type[StoreError], words: str
) -> None:
    (tmp_path / "CHRONOLOG").write_text(marker)
    for create in (True, False):
        with pytest.raises(error, match=words):
            StoreRoot.open(tmp_path, create=create)


def test_a_marker_of_the_future_may_say_more(tmp_path: pathlib.Path) -> None:
    (tmp_path / "CHRONOLOG").write_text(
        "ChronoLog store\nformat 1\ncolour green\nnonsense\nbyte-order little\n"
    )
    assert StoreRoot.open(tmp_path, create=False).file_mode == 0o600


def test_a_marker_is_a_regular_file(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "CHRONOLOG")
    with pytest.raises(NotAStoreError, match="no regular file"):
        StoreRoot.open(tmp_path, create=False)
    (tmp_path / "CHRONOLOG").unlink()
    (tmp_path / "real").write_text(MARKER)
    (tmp_path / "CHRONOLOG").symlink_to("real")
    with pytest.raises(NotAStoreError, match="no regular file"):
        StoreRoot.open(tmp_path, create=False)


def test_nothing_is_removed_after_the_marker_is_gone(tmp_path: pathlib.Path) -> None:
    root = StoreRoot.open(tmp_path, create=True)
    root.require_marker()
    (tmp_path / "CHRONOLOG").unlink()
    with pytest.raises(NotAStoreError, match="nothing is removed"):
        root.require_marker()


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mask", [0o000, 0o077, 0o027])
@pytest.mark.parametrize(
    ("text", "file_mode", "directory_mode"),
    [("0600", "0600", "0700"), ("0o640", "0640", "2750"), ("660", "0660", "2770"), ("0664", "0664", "2775")],
)
def test_modes_do_not_depend_on_the_umask(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    mask: int,
    text: str,
    file_mode: str,
    directory_mode: str,
) -> None:
    monkeypatch.setenv("CHRONOLOG_MODE", text)
    os.umask(mask)
    root = StoreRoot.open(tmp_path / "store", create=True)
    monkeypatch.setenv("CHRONOLOG_MODE", "0666")  # counts at creation only
    root = StoreRoot.open(tmp_path / "store", create=True)
    os.close(root.create_file(root.path / "file", os.O_WRONLY))
    root.make_directory(root.path / "directory")
    root.ensure_directory(root.path / "directory")
    assert [modes(root.path / name) for name in ("CHRONOLOG", "file", "directory", "")] == [
        file_mode,
        file_mode,
        directory_mode,
        directory_mode,
    ]


@pytest.mark.parametrize(
    "text", ["rw", "8", "0800", "0400", "0200", "0700", "0620", "0602", "0641", "1600", "-600", "77"]
)
def test_modes_that_make_no_sense(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CHRONOLOG_MODE", text)
    with pytest.raises(InvalidArgumentError, match="CHRONOLOG_MODE="):
        StoreRoot.open(tmp_path / "store", create=True)
    assert os.listdir(tmp_path) == []


def test_files_are_created_and_never_opened(tmp_path: pathlib.Path) -> None:
    root = StoreRoot.open(tmp_path / "store", create=True)
    (tmp_path / "precious").write_text("precious")
    (root.path / "link").symlink_to(tmp_path / "precious")
    (root.path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("link", "dangling", "CHRONOLOG"):
        with pytest.raises(FileExistsError):
            root.create_file(root.path / name, os.O_WRONLY | os.O_TRUNC)
    descriptor = root.create_file(root.path / "new", os.O_RDWR)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_told_so() -> None:
    def attempts(path: pathlib.Path) -> list[str]:
        said = []
        for create in (False, True):
            try:
                StoreRoot.open(path, create=create)
            except StoreError as error:
                said.append(type(error).__name__)
            except NotAuthorizedError as error:
                said.append(str(error))
        return said

    with tempfile.TemporaryDirectory() as name:  # not below a directory that only root may search
        directory = pathlib.Path(name)
        directory.chmod(0o755)
        StoreRoot.open(directory / "store", create=True)
        refusal = "Permission denied: ask the owner of the store for access"
        closed = as_nobody(lambda: attempts(directory / "store"))
        assert isinstance(closed, list)
        assert [refusal in line for line in closed] == [True, True]
        absent = as_nobody(lambda: attempts(directory / "new"))
        assert isinstance(absent, list)
        assert absent[0] == "NotAStoreError"
        assert refusal in absent[1]


def test_a_full_disk_is_a_store_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        StoreRoot.open(tmp_path / "store", create=True)
    assert caught.value.path == str(tmp_path / "store")
    assert os.listdir(tmp_path / "store") == []


# -- names ---


@given(st.text(min_size=1))
def test_every_text_is_a_name(name: str) -> None:
    data = name.encode()
    assert check_name(name) == data
    assert name_hash(name) == hashlib.sha256(data).hexdigest()[:32]


@pytest.mark.parametrize(
    "name", ["/", "..", "a\0b", "x" * 100_000, "\N{GREEK SMALL LETTER ALPHA}", " ", "\n"]
)
def test_names_of_every_kind(name: str) -> None:
    assert len(name_hash(name)) == 32


@given(st.text(), st.characters(categories=["Cs"]), st.text())
def test_lone_surrogates_are_no_text(before: str, surrogate: str, after: str) -> None:
    for function in (check_name, name_hash):
        with pytest.raises(InvalidArgumentError, match="no Unicode text"):
            function(before + surrogate + after)


def test_names_are_not_empty_and_are_text() -> None:
    with pytest.raises(InvalidArgumentError, match="must not be empty"):
        check_name("")
    for name in (b"bytes", 1, None):
        with pytest.raises(TypeError, match="must be str"):
            check_name(name)  # type: ignore[arg-type]


# -- small files ---


def test_only_the_first_publication_counts(tmp_path: pathlib.Path) -> None:
    assert files.publish_file(tmp_path / "file", b"first", 0o640, sync=True)
    assert not files.publish_file(tmp_path / "file", b"second", 0o640)
    assert files.read_file(tmp_path / "file", 5) == b"first"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_publication_without_hard_links(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_args: object, **_named: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    assert StoreRoot.open(tmp_path / "store", create=True).file_mode == 0o600
    assert os.listdir(tmp_path / "store") == ["CHRONOLOG"]


def test_publication_whose_answer_was_lost(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_and_deny(*args: object, **named: object) -> None:
        link(*args, **named)  # type: ignore[arg-type]
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", link_and_deny)
    assert files.publish_file(tmp_path / "file", b"data", 0o600)


def test_reading_is_bounded(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(bytes(11))
    assert files.read_file(tmp_path / "file", 11) == bytes(11)
    with pytest.raises(DamageError, match="longer than the 10 bytes"):
        files.read_file(tmp_path / "file", 10)
    with pytest.raises(DamageError, match="no regular file"):
        files.read_file(tmp_path, 10)
    with pytest.raises(DamageError, match="no regular file"):
        files.read_file("/dev/zero", 10)


def test_a_read_only_file_system_is_a_matter_of_rights(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotAuthorizedError, match="Read-only file system"), files.os_errors(tmp_path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


# -- races ---


def open_stores(barrier: object, path: str, mode: str, rounds: int) -> list[int]:
    os.environ["CHRONOLOG_MODE"] = mode
    found = []
    for number in range(rounds):
        barrier.wait()  # type: ignore[attr-defined]
        found.append(StoreRoot.open(f"{path}/{number}", create=True).file_mode)
    return found


@pytest.mark.slow
def test_of_many_creators_one_chooses_the_mode(tmp_path: pathlib.Path) -> None:
    rounds = soak(40, 500)
    answers = race(
        *((open_stores, (str(tmp_path), mode, rounds)) for mode in ["0600", "0640", "0660", "0644"] * 2)
    )
    for number, found in enumerate(zip(*answers, strict=True)):
        assert len(set(found)) == 1, "all found the same marker"
        assert os.listdir(tmp_path / str(number)) == ["CHRONOLOG"]
