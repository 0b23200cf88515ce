"""Packs on disk: whole or not there, gone on with after any stop, the same from any run."""

import os
import resource
import signal
import subprocess
import sys
import time

import lmdb
import pytest
from children import REFUSED, in_child
from made_packer import NumbersPacker, build, names_in, numbers_in

from hatcli.data.packs import publish
from hatcli.data.packs.lmdb import LmdbWriter
from hatcli.data.packs.meta import META_KEY, sample_key
from hatcli.data.packs.place import hold_lock
from hatcli.data.packs.reader import open_pack
from hatcli.errors import HatError, LockedError, PackError, UsageError


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(publish, "BATCH_RECORDS", 4)


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
    code = "import sys, hatcli.recipes.packing.pack, hatcli.data.packers.cityscapes;"
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
