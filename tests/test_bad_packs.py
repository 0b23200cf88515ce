"""Every bad input has its message, its exit code, at most three lines, and leaves nothing."""

import shutil

import pytest
from bad_packs import BAD_PACKS, change_meta
from bad_sources import BAD_SOURCES
from made_cityscapes import IMAGES_ZIP, LABELS_ZIP, make_cityscapes, pack_cityscapes

from hatcli.cli import run
from hatcli.data.packs.place import hold_lock
from hatcli.data.packs.reader import open_pack
from hatcli.errors import HatError


@pytest.fixture
def source(tmp_path):
    return make_cityscapes(tmp_path / "cityscapes", train=4, val=0)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_source_is_explained_and_leaves_no_pack(name, source, capsys):
    spoil, code, message = BAD_SOURCES[name]
    target = source / "train_lmdb"
    more = spoil(source) or []
    before = sorted(target.iterdir()) if target.is_dir() else target.exists()
    if isinstance(more, dict):
        more = ["--src", str(more["src"]), "--out", str(source)]
    elif "DATASET" not in more:
        more = ["--src", str(source), *more]
    command = ["pack", "cityscapes", "--split", "train", "-j", "0", *more]
    if "DATASET" in more:
        command = ["pack", more[1]]
    capsys.readouterr()
    assert run(command) == code
    out, err = capsys.readouterr()
    assert out == ""
    _assert_short(err, message)
    after = sorted(target.iterdir()) if target.is_dir() else target.exists()
    assert after == before


def _assert_short(err, message):
    assert message in err
    assert "Traceback" not in err
    explained = err[err.index("error: ") :].splitlines()
    assert len(explained) <= 3
    assert len(err.splitlines()) <= 4  # a warning about the number of images may come first


def test_a_locked_target_has_its_own_code(source, capsys):
    with hold_lock(source / "train_lmdb"):
        assert run(["pack", "cityscapes", "--split", "train", "--src", str(source)]) == 75
    _assert_short(capsys.readouterr().err, "another pack is writing train_lmdb here (pid ")


def test_a_full_disk_is_told_before_the_start(source, capsys, monkeypatch):
    usage = shutil.disk_usage(source)._replace(free=10)
    monkeypatch.setattr("hatcli.disk.shutil.disk_usage", lambda path: usage)
    assert run(["pack", "cityscapes", "--split", "train", "--src", str(source), "-j", "0"]) == 1
    _assert_short(capsys.readouterr().err, "10 bytes free")
    assert not (source / "train_lmdb").exists()


def test_the_missing_source_tells_where_it_comes_from(tmp_path, capsys):
    assert run(["pack", "cityscapes", "--split", "train", "--src", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    for text in (
        IMAGES_ZIP,
        LABELS_ZIP,
        "https://www.cityscapes-dataset.com/downloads/",
        f"csDownload -d {tmp_path} gtFine_trainvaltest.zip leftImg8bit_trainvaltest.zip",
    ):
        assert text in err
    assert len(err.splitlines()) == 3


@pytest.mark.parametrize("name", BAD_PACKS)
def test_a_bad_pack_is_explained(name, source):
    spoil, code, message = BAD_PACKS[name]
    folder = pack_cityscapes(source).path
    spoil(folder)
    with pytest.raises(HatError) as caught:
        list(open_pack(folder))
    assert message in caught.value.message
    assert caught.value.exit_code == code
    assert "\n" not in caught.value.message


def test_unknown_entries_of_a_newer_minor_version_are_passed_over(source):
    folder = pack_cityscapes(source).path
    change_meta(schema=[1, 7], flavour="new")(folder)
    assert len(list(open_pack(folder))) == 4
