"""A pack that was interrupted goes on: nothing is lost, nothing half-written is seen."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from children import in_child
from made_packer import NumbersPacker, build, names_in, numbers_in

from hatcli.data.packers import _work
from hatcli.data.packs import publish
from hatcli.data.packs.lmdb import LmdbWriter
from hatcli.data.packs.publish import Draft
from hatcli.data.packs.reader import open_pack
from hatcli.errors import HatError, PackError


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(publish, "BATCH_RECORDS", 4)


STEPS = ("commit", "finish", "seal_file", "sync_to_disk", "rename", "rmtree", "write_meta_json")


def _die_at(step, calls):
    """Arrange that the call number ``calls`` of a step ends the process like a power cut would."""
    owner, name = {
        "commit": (LmdbWriter, "commit"),
        "finish": (Draft, "finish"),
        "seal_file": (LmdbWriter, "seal_file"),
        "sync_to_disk": (publish, "sync_to_disk"),
        "rename": (Path, "rename"),
        "rmtree": (shutil, "rmtree"),
        "write_meta_json": (publish, "write_meta_json"),
    }[step]
    real = getattr(owner, name)
    left = [calls]

    def fatal(*arguments, **named):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    setattr(owner, name, fatal)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_step_the_same_call_ends_with_the_same_content(tmp_path, step, overwrite):
    expected = build(tmp_path / "whole")["content_sha256"]
    target = tmp_path / "train_lmdb"
    if overwrite:
        build(target, NumbersPacker(3))
    kills = 0
    for calls in range(20):

        def run(calls=calls):
            _die_at(step, calls)
            build(target, overwrite=overwrite)

        code = in_child(run)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        _assert_whole_if_there(target)
        if not overwrite and target.exists():
            break  # killed after publishing: the call would say that it is packed already
    else:
        pytest.fail("it never ends")
    assert kills or (step == "rmtree" and not overwrite)
    build(target, overwrite=True)
    assert open_pack(target).meta["content_sha256"] == expected
    assert names_in(tmp_path) == ["train_lmdb", "whole"]


def _assert_whole_if_there(target):
    if target.exists():
        with open_pack(target) as pack:
            assert [int(sample["values"][0]) for sample in pack] == list(range(len(pack)))


def test_after_a_kill_only_what_is_missing_is_made_again(tmp_path, monkeypatch):
    target = tmp_path / "train_lmdb"

    def run():
        _die_at("commit", 3)  # the first of them is of the empty draft
        build(target)

    assert in_child(run) == -signal.SIGKILL
    made = []
    real = _work.make_record
    monkeypatch.setattr(
        _work,
        "make_record",
        lambda packer, index, key: made.append(index) or real(packer, index, key),
    )
    build(target)
    assert made == list(range(8, 20))


def test_a_complete_draft_is_only_published(tmp_path, monkeypatch):
    target = tmp_path / "train_lmdb"

    def run():
        _die_at("seal_file", 0)
        build(target)

    assert in_child(run) == -signal.SIGKILL
    monkeypatch.setattr(_work, "make_record", None)
    build(target)
    assert numbers_in(target) == list(range(20))


def _leave_unfinished(target, packer=None):
    def run():
        _die_at("commit", 3)
        build(target, packer)

    assert in_child(run) == -signal.SIGKILL


def test_an_unfinished_pack_with_other_options_is_refused(tmp_path):
    target = tmp_path / "train_lmdb"
    _leave_unfinished(target)
    with pytest.raises(HatError, match=r"other options is here \(differs: size\)") as caught:
        build(target, NumbersPacker(size=400))
    assert "--restart" in caught.value.hint
    build(target, NumbersPacker(size=400), restart=True)
    assert open_pack(target).meta["options"] == {"size": 400}


def test_an_unfinished_pack_of_no_sample_takes_any_options(tmp_path):
    target = tmp_path / "train_lmdb"

    def run():
        _die_at("commit", 1)  # the first is of the empty draft
        build(target)

    assert in_child(run) == -signal.SIGKILL
    build(target, NumbersPacker(size=400))
    assert open_pack(target).meta["options"] == {"size": 400}


def test_a_source_that_changed_where_it_is_packed_already_is_refused(tmp_path):
    target = tmp_path / "train_lmdb"
    _leave_unfinished(target)
    changed = NumbersPacker()
    changed.stamps[7] = "changed"
    with pytest.raises(HatError, match="differs: source files"):
        build(target, changed)
    fewer = NumbersPacker(5)
    with pytest.raises(HatError, match="differs: source files"):
        build(target, fewer)


def test_a_source_that_was_mended_behind_what_is_packed_goes_on(tmp_path):
    target = tmp_path / "train_lmdb"
    _leave_unfinished(target)
    mended = NumbersPacker()
    mended.stamps[8] = "mended"
    build(target, mended)
    assert numbers_in(target) == list(range(20))


def test_a_damaged_draft_is_refused(tmp_path):
    target = tmp_path / "train_lmdb"
    _leave_unfinished(target)
    data = tmp_path / "train_lmdb.partial" / "data.mdb"
    data.write_bytes(data.read_bytes()[: 3 * 4096])
    with pytest.raises(PackError, match="truncated") as caught:
        build(target)
    assert "--restart" in caught.value.hint
    build(target, restart=True)


def test_an_unfinished_pack_cant_be_read(tmp_path):
    _leave_unfinished(tmp_path / "train_lmdb")
    with pytest.raises(PackError, match=r"pack is unfinished \(8 of 20\)") as caught:
        open_pack(tmp_path / "train_lmdb.partial")
    assert "hat pack numbers --split train" in caught.value.hint


def test_a_complete_draft_of_a_source_that_grew_is_refused(tmp_path):
    target = tmp_path / "train_lmdb"

    def run():
        _die_at("seal_file", 0)
        build(target)

    assert in_child(run) == -signal.SIGKILL
    with pytest.raises(HatError, match="differs: source files"):
        build(target, NumbersPacker(21))
    build(target)
