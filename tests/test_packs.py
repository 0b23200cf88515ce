"""Packs on disk: whole or not there, gone on with after any stop, the same from any run."""

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import pytest
from children import REFUSED, in_child
from made_packer import NumbersPacker, build

from hatcli.data.packers import _work
from hatcli.data.packs import disk, publish
from hatcli.data.packs.lmdb import LmdbWriter
from hatcli.data.packs.meta import META_KEY, sample_key
from hatcli.data.packs.publish import Draft, hold_lock
from hatcli.data.packs.reader import open_pack
from hatcli.errors import HatError, LockedError, PackError, UsageError


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(publish, "BATCH_RECORDS", 4)


def sha256(path):
    return hashlib.sha256((path / "data.mdb").read_bytes()).hexdigest()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def numbers_in(path):
    with open_pack(path) as pack:
        return [int(sample["values"][0]) for sample in pack]


def test_samples_come_back_in_order(tmp_path):
    meta = build(tmp_path / "train_lmdb", NumbersPacker(25))
    assert numbers_in(tmp_path / "train_lmdb") == list(range(25))
    assert meta["length"] == 25
    assert meta["sum"] == sum(range(25))


def test_byte_order_of_the_keys_is_numeric_order():
    indices = [0, 1, 2, 9, 10, 11, 99, 100, 999, 1000, 123456, 10**9]
    keys = [sample_key(index) for index in indices]
    assert keys == sorted(keys)
    assert keys[-1] < META_KEY


def test_a_published_pack_is_two_files_and_nothing_beside(tmp_path):
    build(tmp_path / "train_lmdb")
    assert names_in(tmp_path) == ["train_lmdb"]
    assert names_in(tmp_path / "train_lmdb") == ["data.mdb", "meta.json"]


def test_the_bytes_dont_depend_on_the_number_of_workers(tmp_path):
    build(tmp_path / "none")
    build(tmp_path / "two", workers=2)
    assert sha256(tmp_path / "none") == sha256(tmp_path / "two")


def test_the_file_is_written_durably_and_in_the_old_format(tmp_path, monkeypatch):
    calls = []
    real_open = lmdb.open
    monkeypatch.setattr(lmdb, "open", lambda *a, **k: calls.append(k) or real_open(*a, **k))
    monkeypatch.setenv("LMDB_DEFAULT_LIB_VERSION", "1")
    build(tmp_path / "train_lmdb")
    (flags,) = calls
    assert flags["lib_version"] == 0
    allowed = {"map_size", "mode", "lib_version"}
    assert flags.keys() <= allowed, "sync, metasync, lock and meminit stay on, writemap off"
    head = (tmp_path / "train_lmdb" / "data.mdb").read_bytes()[:24]
    assert head[20:24] == (1).to_bytes(4, "little")
    assert numbers_in(tmp_path / "train_lmdb") == list(range(20))


def test_a_full_map_loses_no_record_of_the_batch(tmp_path):
    writer = LmdbWriter(tmp_path, map_bytes=2**20)
    records = [(sample_key(index), bytes([index % 256]) * 50_000) for index in range(200)]
    for start in range(0, 200, 40):
        writer.commit(records[start : start + 40], {META_KEY: b"x" * start or b"y"})
    assert writer.count() == 201
    assert [writer.get(key) for key, _ in records] == [value for _, value in records]
    writer.close()


def test_a_key_that_stands_already_or_comes_late_is_refused(tmp_path):
    writer = LmdbWriter(tmp_path)
    writer.commit([(sample_key(5), b"x")], {})
    for index in (5, 4):
        with pytest.raises(PackError, match="is there, or out of order"):
            writer.commit([(sample_key(index), b"y")], {})
    assert writer.get(sample_key(5)) == b"x"
    assert writer.count() == 1
    writer.close()


def test_a_second_pack_of_the_same_target_is_locked_out(tmp_path):
    with hold_lock(tmp_path / "train_lmdb"):
        assert in_child(build, tmp_path / "train_lmdb") == REFUSED
        with pytest.raises(LockedError, match=rf"pid {os.getpid()} on .+ since \d"):
            build(tmp_path / "train_lmdb")
    build(tmp_path / "train_lmdb")


def test_the_lock_dies_with_its_owner(tmp_path):
    target = tmp_path / "train_lmdb"

    def die_with_lock():
        with hold_lock(target):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die_with_lock) == -signal.SIGKILL
    assert (tmp_path / "train_lmdb.lock").exists()
    build(target)
    assert names_in(tmp_path) == ["train_lmdb"]


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
        _work, "make_record", lambda packer, index: made.append(index) or real(packer, index)
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


def test_a_pack_isnt_replaced_unless_asked(tmp_path):
    target = tmp_path / "train_lmdb"
    build(target)
    with pytest.raises(HatError, match=r"already packed \(20 samples\)"):
        build(target)
    build(target, NumbersPacker(3), overwrite=True)
    assert numbers_in(target) == [0, 1, 2]


def test_a_folder_that_is_no_pack_is_never_replaced(tmp_path):
    target = tmp_path / "train_lmdb"
    target.mkdir()
    (target / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="is no pack"):
        build(target, overwrite=True)
    assert (target / "thesis.txt").exists()


def test_a_reader_goes_on_while_its_pack_is_replaced(tmp_path):
    target = tmp_path / "train_lmdb"
    build(target)
    pack = open_pack(target)
    assert pack[0]["name"] == "number 0"
    build(target, NumbersPacker(3), overwrite=True)
    assert pack[19]["name"] == "number 19"
    pack.close()
    with pytest.raises(PackError, match="another pack took this place"):
        pack[0]


def test_a_pack_that_was_aside_when_the_run_was_killed_comes_back(tmp_path):
    target = tmp_path / "train_lmdb"
    build(target)
    target.rename(tmp_path / "train_lmdb.old")
    with pytest.raises(HatError, match="already packed"):
        build(target)
    assert numbers_in(target) == list(range(20))


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_the_files_have_the_rights_that_the_user_asked_for(tmp_path, mask):
    before = os.umask(mask)
    try:
        build(tmp_path / "train_lmdb")
    finally:
        os.umask(before)
    folder = tmp_path / "train_lmdb"
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
    for name in ("data.mdb", "meta.json"):
        assert (folder / name).stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_disk_too_small_is_refused_before_a_batch(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))
    with pytest.raises(HatError, match=r"disk full at .*need about .* MB, 2 MB free"):
        build(tmp_path / "train_lmdb")
    assert not (tmp_path / "train_lmdb").exists()


def test_a_write_that_fails_midway_is_explained_and_gone_on_with(tmp_path):
    target = tmp_path / "train_lmdb"
    packer = NumbersPacker(60, size=5000)
    expected = build(tmp_path / "whole", packer)["content_sha256"]

    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        with pytest.raises(HatError, match=r"cannot write to .*Input/output error"):
            build(target, packer)

    assert in_child(run) == 0
    assert not target.exists()
    assert build(target, packer)["content_sha256"] == expected


def test_a_map_beyond_the_address_space_is_explained(tmp_path):
    def run():
        resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
        with pytest.raises(HatError, match=r"no address space for 1.1 TB of the 8.59 GB allowed"):
            LmdbWriter(tmp_path, map_bytes=2**40)

    assert in_child(run) == 0


@pytest.mark.parametrize("size", [500, 500_000])  # the latter fill the pipe when it dies
def test_a_worker_that_dies_is_explained_and_gone_on_after(tmp_path, size):
    target = tmp_path / "train_lmdb"
    started = time.monotonic()
    with pytest.raises(HatError, match="a packing worker died") as caught:
        build(target, NumbersPacker(size=size, deadly=9), workers=2)
    assert time.monotonic() - started < 20
    assert "--num-workers" in caught.value.hint
    build(target, NumbersPacker(size=size))
    assert numbers_in(target) == list(range(20))


def test_nothing_of_packing_loads_torch():
    code = "import sys, hatcli.recipes.pack, hatcli.data.packers.cityscapes;"
    code += "assert not {'torch', 'torchvision', 'rich', 'typer'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_folder_can_be_made_in_a_folder_of_others(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs another user")
    tmp_path.chmod(0o755)

    def run():
        os.seteuid(65534)
        with pytest.raises(HatError, match=r"cannot write to .*: permission denied"):
            build(tmp_path / "deeper" / "train_lmdb")

    parents = [path for path in tmp_path.parents if path.stat().st_mode & 0o777 == 0o700]
    for path in parents:
        path.chmod(0o755)
    assert in_child(run) == 0


def test_a_complete_draft_of_a_source_that_grew_is_refused(tmp_path):
    target = tmp_path / "train_lmdb"

    def run():
        _die_at("seal_file", 0)
        build(target)

    assert in_child(run) == -signal.SIGKILL
    with pytest.raises(HatError, match="differs: source files"):
        build(target, NumbersPacker(21))
    build(target)
