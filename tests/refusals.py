"""A source that can't be packed: one message, its exit code, and nothing that looks like a pack."""

import shutil
from pathlib import Path

from hatcli.cli import run


def check_refusal(arguments, source: Path, code: int, message: str, capsys) -> None:
    """Pack train, or a split that is given; it has to fail with this message and leave no pack."""
    capsys.readouterr()
    split = [] if "--split" in arguments else ["--split", "train"]
    assert run(["pack", *arguments, "--src", str(source), *split, "-j", "0"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("warning")]
    assert len(lines) <= 3, err
    assert "Traceback" not in err
    assert message in " ".join(err.split()), err
    assert not list(source.glob("*_lmdb"))


def no_folder(source):
    shutil.rmtree(source)


def a_file_as_source(source):
    shutil.rmtree(source)
    source.write_text("x")


def empty_folder(source):
    shutil.rmtree(source)
    source.mkdir()
