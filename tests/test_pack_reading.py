"""Packs are read from forked and fresh processes, from threads, and twice in one process."""

import multiprocessing
import os
import pickle
import threading
import warnings
from pathlib import Path

import pytest
from children import in_child
from made_packer import NumbersPacker, build, names_in

from hatcli.data.packs import lmdb as packs_lmdb
from hatcli.data.packs.container import PACK_TYPES
from hatcli.data.packs.reader import open_pack
from hatcli.errors import PackError


@pytest.fixture(scope="module", params=PACK_TYPES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("packs") / "train"
    build(path, NumbersPacker(12), pack_type=request.param)
    return path


def open_files(folder):
    """How often files of a folder are open in this process."""
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(link.parent == folder for link in links)


def test_it_is_a_sequence(folder):
    with open_pack(folder) as pack:
        assert len(pack) == 12
        assert pack[-1]["name"] == "number 11"
        assert [sample["name"] for sample in pack] == [f"number {n}" for n in range(12)]
        for index in (12, -13):
            with pytest.raises(IndexError, match="there are 12"):
                pack[index]


def test_nothing_is_open_before_the_first_read_and_after_closing(folder):
    pack = open_pack(folder)
    assert open_files(folder) == 0
    pack[0]
    assert open_files(folder) > 0
    pack.close()
    assert open_files(folder) == 0
    assert pack[1]["name"] == "number 1"


def test_two_packs_on_one_folder_are_read_and_closed_apart(folder):
    first, second = open_pack(folder), open_pack(folder, order="sequential")
    assert first[0]["name"] == second[0]["name"] == "number 0"
    first.close()
    assert second[1]["name"] == "number 1"
    second.close()
    assert open_files(folder) == 0


def test_packs_on_one_lmdb_file_share_what_is_open(tmp_path):
    build(tmp_path / "train_lmdb")
    before = set(packs_lmdb._shared)  # of tests before this one
    first, second = open_pack(tmp_path / "train_lmdb"), open_pack(tmp_path / "train_lmdb")
    assert first[0]["name"] == second[0]["name"]
    assert len(set(packs_lmdb._shared) - before) == 1
    first.close()
    second.close()
    assert set(packs_lmdb._shared) <= before


def test_a_pack_is_read_through_another_path_to_the_same_file(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    first, second = open_pack(folder), open_pack(tmp_path / "link")
    assert first[3]["name"] == second[3]["name"]


def test_a_forked_child_reads_although_its_parent_does(folder):
    pack, other = open_pack(folder), open_pack(folder)
    pack[0]

    def read():
        assert pack[5]["name"] == "number 5"
        assert other[6]["name"] == "number 6"
        assert open_pack(folder)[7]["name"] == "number 7"

    assert in_child(read) == 0
    assert pack[8]["name"] == "number 8"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_processes_read_a_pack_that_was_handed_to_them(folder, method):
    pack = open_pack(folder)
    pack[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads
        with multiprocessing.get_context(method).Pool(2) as pool:
            names = pool.starmap(_name, [(pack, index) for index in range(12)])
    assert names == [f"number {n}" for n in range(12)]


def _name(pack, index):
    return pack[index]["name"]


def test_a_pickled_pack_is_small(folder):
    pack = open_pack(folder)
    pack[0]
    assert len(pickle.dumps(pack)) < 3000


def test_threads_share_a_pack(folder):
    pack = open_pack(folder)
    wrong = []

    def read(start):
        for step in range(200):
            index = (start + step) % 12
            if pack[index]["name"] != f"number {index}":
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_pack_is_read_without_the_right_to_write(folder, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs another user")
    for path in (folder, *folder.parents):
        if path.stat().st_mode & 0o777 == 0o700:
            path.chmod(0o755)

    def read():
        os.seteuid(65534)
        assert open_pack(folder)[0]["name"] == "number 0"

    before = names_in(folder)
    assert in_child(read) == 0
    assert names_in(folder) == before


def test_a_sample_without_a_field_that_the_metadata_promises_is_refused(tmp_path):
    packer = NumbersPacker(2)
    build(tmp_path / "train_lmdb", packer)
    pack = open_pack(tmp_path / "train_lmdb")
    pack.meta["fields"]["depth"] = {"type": "ndarray", "dtype": "<f4", "required": True}
    with pytest.raises(PackError, match=r"sample 0000000001 in .* field 'depth' is missing"):
        pack[1]
    pack.meta["fields"].pop("depth")
    pack.meta["fields"]["values"]["dtype"] = "<f4"
    with pytest.raises(PackError, match="field 'values' has dtype int32, not <f4"):
        pack[1]
