import errno
import os
from pathlib import Path

import pytest

from hatcli.errors import CheckFailed, HatError, UsageError
from hatcli.export.publish import unpublished


def publish(path: Path, *contents: bytes, stop=None, overwrite=False) -> None:
    with unpublished(path, overwrite=overwrite) as temporary:
        for content in contents:
            temporary.write_bytes(content)
        if callable(stop):
            stop()
        elif stop is not None:
            raise stop


def test_a_file_gets_its_name_only_at_the_end(tmp_path):
    path, named = tmp_path / "net.onnx", []
    publish(path, b"model", stop=lambda: named.append(path.exists()))
    assert named == [False]
    assert path.read_bytes().startswith(b"model")
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "other").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("stop", [CheckFailed("x"), KeyboardInterrupt(), ZeroDivisionError()])
def test_an_error_leaves_no_file_and_the_old_one_whole(stop, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with pytest.raises(type(stop)):
        publish(path, b"half", stop=stop, overwrite=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_replaced_only_when_asked_for(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match=r"net.onnx: exists already") as caught:
        publish(path, stop=lambda: pytest.fail("nothing may be computed first"))
    assert caught.value.hint == "replace it with --overwrite"
    assert path.read_bytes() == b"old"
    publish(path, b"new", overwrite=True)
    assert path.read_bytes().startswith(b"new")


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(UsageError, match="exists already"):
        publish(path, b"ours", stop=lambda: path.write_bytes(b"theirs"))
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_and_a_folder_in_the_way_are_named(tmp_path):
    with pytest.raises(HatError, match="no such folder") as caught:
        publish(tmp_path / "a" / "b.onnx")
    assert (caught.value.exit_code, caught.value.hint) == (1, f"make it: mkdir -p {tmp_path}/a")
    with pytest.raises(UsageError, match="is a folder"):
        publish(tmp_path, overwrite=True)


def test_a_write_that_fails_is_one_line_and_leaves_nothing(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(HatError, match=r"net.onnx: cannot be written: No space left"):
        publish(path, b"half", stop=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert list(tmp_path.iterdir()) == []
