"""Packers in files of the user's own, and what the command line says next."""

import pytest
from made_coco import make_coco
from made_voc import make_voc
from test_docs import ROOT, make_roads, write_parts

from hatcli.cli import run
from hatcli.data.packs.reader import open_pack


@pytest.fixture
def folder(tmp_path, monkeypatch, own_parts):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def next_line(err):
    return err[err.index("next: ") :].splitlines()[0].removeprefix("next: ")


def test_a_packer_in_a_file_packs_with_workers_and_goes_on_after_a_fault(folder, capsys):
    make_roads(folder / "data" / "my_roads")
    write_parts(ROOT / "docs" / "datasets" / "add-your-own.md", folder)
    (folder / "my_roads.py").rename(folder / "own_roads.py")
    mask = folder / "data" / "my_roads" / "masks" / "train" / "road3.png"
    whole = mask.read_bytes()
    mask.write_bytes(whole[:-20])
    command = ["pack", "own_roads.py", "--split", "train", "-j", "2"]
    assert run(command) == 1
    assert "image is truncated" in capsys.readouterr().err
    mask.write_bytes(whole)
    assert run(command) == 0
    out, err = capsys.readouterr()
    assert "from an earlier run" in out
    assert next_line(err) == "hat pack own_roads.py --split val"
    with open_pack(folder / "data" / "my_roads" / "train_lmdb") as pack:
        assert [sample["name"] for sample in pack] == ["road0", "road1", "road2", "road3"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("not_there.py", None, "packer: no such file: not_there.py"),
        ("broken_packer.py", "1 / 0", "packer: 'broken_packer.py' fails: ZeroDivisionError"),
        ("no_packer.py", "x = 1", "packer: no_packer.py registers 0 packers; one is needed"),
        ("json.py", "x = 1", "packer: json.py is hidden by"),
    ],
)
def test_a_file_that_is_no_packer_is_explained(folder, name, text, message, capsys):
    if text is not None:
        (folder / name).write_text(text)
    assert run(["pack", name, "--split", "train"]) == 2
    assert message in capsys.readouterr().err


def test_the_next_command_repeats_what_decides_what_is_packed(folder, capsys):
    make_voc(folder / "data" / "voc")
    words = ["--year", "2007", "--task", "segmentation", "--apply-exif"]
    assert run(["pack", "voc", "--split", "train", "--out", "maps", *words]) == 0
    following = next_line(capsys.readouterr().err)
    assert following.startswith("hat pack voc --split val --out maps")
    for option in ("--year 2007", "--task segmentation", "--apply-exif"):
        assert option in following
    assert run(following.split()[1:]) == 0
    assert next_line(capsys.readouterr().err) == "hat data show maps/val_lmdb"


def test_the_table_tells_how_many_boxes_there_are(folder, capsys):
    make_coco(folder / "data" / "mscoco")
    assert run(["pack", "mscoco", "--split", "train", "-j", "0"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "classes 3 of 3 have boxes boxes a class" in out
    assert "polygons (" in out
