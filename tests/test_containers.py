"""What every container does, by the same tests: one more kind of pack is tested by being there."""

import os
import random
import resource
import shutil
import signal
import time

import lmdb
import pytest
from children import die_at_call, in_child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_packer import NumbersPacker, build, names_in, numbers_in

from hatcli import disk
from hatcli.data.packs import publish
from hatcli.data.packs.container import PACK_TYPES, data_size, find_container, find_pack_type
from hatcli.data.packs.meta import META_KEY, STATE_KEY, sample_key
from hatcli.data.packs.reader import open_pack
from hatcli.errors import HatError, PackError, UsageError

MAGIC = b"\x0a\x23\xd7\xce"  # of RecordIO, whose container must hold it like other bytes


@pytest.fixture(params=PACK_TYPES)
def kind(request):
    return request.param


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(publish, "BATCH_RECORDS", 4)


def write(kind, folder, records, first=0):
    """A finished container of these records, without a pack's metadata."""
    writer = find_container(kind).open_writer(folder, 0)
    keyed = [(sample_key(first + number), record) for number, record in enumerate(records)]
    writer.commit(keyed, {META_KEY: b"about"})
    writer.seal_file()
    return find_container(kind).open_reader(folder, "random")


def test_a_folder_tells_what_container_it_is(kind, tmp_path):
    assert find_pack_type(tmp_path) is None
    build(tmp_path / "pack", pack_type=kind)
    assert find_pack_type(tmp_path / "pack") == kind
    data_file = tmp_path / "pack" / find_container(kind).data_file
    assert data_size(tmp_path / "pack") == data_file.stat().st_size
    data_file.unlink()
    with pytest.raises((UsageError, PackError)):
        open_pack(tmp_path / "pack")


def test_an_unknown_pack_type_is_refused():
    with pytest.raises(UsageError, match="pack type 'lmbd' unknown; choose lmdb, ") as caught:
        find_container("lmbd")
    assert caught.value.hint == "did you mean 'lmdb'?"


@given(
    records=st.lists(
        st.lists(
            st.one_of(st.just(MAGIC), st.just(MAGIC[1:]), st.binary(max_size=9)), max_size=8
        ).map(b"".join),
        min_size=1,
        max_size=6,
    ),
    first=st.sampled_from([0, 7, 1234567890]),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_come_back(kind, tmp_path, records, first):
    folder = tmp_path / "container"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    reader = write(kind, folder, records, first)
    assert reader.count() == len(records) + 1
    for number, record in enumerate(records, first):
        assert reader.read(sample_key(number), bytes) == record
    assert reader.read(META_KEY, bytes) == b"about"
    for key in (STATE_KEY, sample_key(first + len(records)), b"5", b"x" * 10):
        assert reader.read(key, bytes) is None


def test_a_batch_may_be_given_again_and_named_records_are_replaced(kind, tmp_path):
    writer = find_container(kind).open_writer(tmp_path, 0)
    writer.commit([(sample_key(0), b"zero"), (sample_key(1), b"one")], {STATE_KEY: b"1"})
    for number in (0, 1):
        with pytest.raises(PackError, match="is there, or out of order"):
            writer.commit([(sample_key(number), b"other")], {STATE_KEY: b"2"})
    assert writer.get(STATE_KEY) == b"1"
    assert writer.count() == 3
    writer.commit([(sample_key(2), b"two")], {STATE_KEY: None, META_KEY: b"meta"})
    writer.close()
    again = find_container(kind).open_writer(tmp_path, 0)
    assert [again.get(sample_key(number)) for number in range(4)] == [b"zero", b"one", b"two", None]
    assert (again.get(STATE_KEY), again.get(META_KEY), again.count()) == (None, b"meta", 4)
    again.close()


def test_all_containers_hold_the_same_content(tmp_path):
    metas = [build(tmp_path / kind, NumbersPacker(9), pack_type=kind) for kind in PACK_TYPES]
    assert all(meta == metas[0] for meta in metas)
    for kind in PACK_TYPES:
        assert numbers_in(tmp_path / kind) == list(range(9))


def test_the_bytes_dont_depend_on_the_number_of_workers(kind, tmp_path):
    build(tmp_path / "none", pack_type=kind)
    build(tmp_path / "two", workers=2, pack_type=kind)
    for name in names_in(tmp_path / "none"):
        if name != "meta.json":  # it holds the time
            one, other = tmp_path / "none" / name, tmp_path / "two" / name
            assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_a_sample_is_used_while_its_record_is_at_hand(kind, order, tmp_path):
    build(tmp_path / "pack", NumbersPacker(3), pack_type=kind)
    pack = open_pack(tmp_path / "pack", order=order)
    assert pack.read(-1, lambda sample: sample["name"]) == "number 2"
    assert pack.read(0, lambda sample: None) is None
    with pytest.raises(ZeroDivisionError):
        pack.read(1, lambda sample: 1 / 0)
    values = pack.read(1, lambda sample: sample["values"], views=True)
    assert values.flags.writeable
    with pytest.raises(IndexError, match="there are 3"):
        pack.read(3, bool)


@pytest.mark.parametrize(("order", "reads_ahead"), [("random", False), ("sequential", True)])
def test_the_system_is_told_in_which_order_records_are_read(
    kind, tmp_path, monkeypatch, order, reads_ahead
):
    build(tmp_path / "pack", pack_type=kind)
    told = []
    real_open, real_advise = lmdb.open, os.posix_fadvise
    monkeypatch.setattr(
        lmdb, "open", lambda *a, **k: told.append(k["readahead"]) or real_open(*a, **k)
    )
    monkeypatch.setattr(
        os,
        "posix_fadvise",
        lambda *a: told.append(a[3] == os.POSIX_FADV_SEQUENTIAL) or real_advise(*a),
    )
    pack = open_pack(tmp_path / "pack", order=order)
    assert pack[3]["name"] == "number 3"
    assert told == [reads_ahead] * 2


def test_damaged_samples_are_left_out_without_a_gap(kind, tmp_path):
    packer = NumbersPacker(20, damaged=(0, 5, 6, 19))
    meta = build(tmp_path / "pack", packer, pack_type=kind, leave_out=True)
    assert meta["length"] == 16
    assert meta["quarantine"]["count"] == 4
    assert numbers_in(tmp_path / "pack") == [n for n in range(20) if n not in (0, 5, 6, 19)]
    lines = (tmp_path / "pack" / "quarantine.jsonl").read_text().splitlines()
    assert [line.partition(":")[2] for line in lines][1].endswith('"number 5"}')


def test_an_unfinished_pack_is_told_from_a_damaged_one(kind, tmp_path):
    with pytest.raises(HatError, match="number 8 is damaged"):
        build(tmp_path / "pack", NumbersPacker(damaged=(8,)), pack_type=kind)
    partial = tmp_path / "pack.partial"
    with (partial / find_container(kind).data_file).open("ab") as file:
        file.write(bytes(5000))  # as a power cut leaves it
    with pytest.raises(PackError, match=r"pack is unfinished \(8 of 20\)"):
        open_pack(partial)
    build(tmp_path / "pack", pack_type=kind)
    assert numbers_in(tmp_path / "pack") == list(range(20))


# Killed


def _kill_at(kind, tmp_path, calls, *, overwrite):
    """Kill a run at each of these calls that change files, until one is behind the last."""
    packer = NumbersPacker(8, size=50)
    expected = build(tmp_path / "whole", packer, pack_type=kind)["content_sha256"]
    for call in calls:
        folder = tmp_path / str(call)
        folder.mkdir()
        target = folder / "train"
        if overwrite:
            build(target, NumbersPacker(3, size=50), pack_type=kind)

        def run(call=call, target=target):
            # What LMDB itself calls can't be told apart from here.
            die_at_call(call, (find_container(kind).open_writer.__self__, "commit"))
            build(target, packer, pack_type=kind, overwrite=overwrite)

        code = in_child(run)
        assert code in (0, -signal.SIGKILL)
        if target.exists():
            assert len(numbers_in(target)) in (3, 8)
        build(target, packer, pack_type=kind, overwrite=True)
        assert open_pack(target).meta["content_sha256"] == expected
        assert names_in(folder) == ["train"]
        shutil.rmtree(folder)
        if code == 0:
            return call
    return None


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_between_two_steps_the_same_call_ends_with_the_same_content(
    kind, tmp_path, overwrite
):
    calls = (4, 9) if overwrite else (1, 6, 10)
    assert _kill_at(kind, tmp_path, calls, overwrite=overwrite) is None


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_between_any_two_steps_the_same_call_ends_with_the_same_content(
    kind, tmp_path, overwrite
):
    assert _kill_at(kind, tmp_path, range(200), overwrite=overwrite) > 10


def _kill_often(kind, tmp_path, kills):
    packer = NumbersPacker(120, size=2000)
    started = time.monotonic()
    expected = build(tmp_path / "whole", packer, pack_type=kind)["content_sha256"]
    duration = time.monotonic() - started
    target, rng, left = tmp_path / "train", random.Random(1), kills

    while left:
        pid = os.fork()
        if pid == 0:
            try:
                build(target, packer, pack_type=kind, overwrite=True)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, duration))
        os.kill(pid, signal.SIGKILL)
        left -= os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        if target.exists():
            assert open_pack(target).meta["content_sha256"] == expected
    build(target, packer, pack_type=kind, overwrite=True)
    with open_pack(target) as pack:
        assert pack.meta["content_sha256"] == expected
        assert [int(sample["values"][0]) for sample in pack] == list(range(120))
    assert names_in(tmp_path) == ["train", "whole"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # other tests may have left threads
def test_killed_at_any_time_the_content_is_the_same(kind, tmp_path):
    _kill_often(kind, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_killed_fifty_times_the_content_is_the_same(kind, tmp_path):
    _kill_often(kind, tmp_path, 50)


# A disk that is full


def test_a_disk_too_small_is_refused_before_a_batch(kind, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    with pytest.raises(HatError, match=r"disk full at .*need about .* MB, 200 KB free"):
        build(tmp_path / "train", pack_type=kind)
    assert not (tmp_path / "train").exists()


def test_a_write_that_fails_midway_is_explained_and_gone_on_with(kind, tmp_path):
    target = tmp_path / "train"
    packer = NumbersPacker(60, size=5000)
    expected = build(tmp_path / "whole", packer, pack_type=kind)["content_sha256"]

    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        with pytest.raises(HatError, match=r"cannot write to .*(Input/output|file too large)"):
            build(target, packer, pack_type=kind)

    assert in_child(run) == 0
    assert not target.exists()
    assert build(target, packer, pack_type=kind)["content_sha256"] == expected


def test_a_disk_that_fills_up_is_explained_and_gone_on_with(kind, tmp_path, monkeypatch):
    packer = NumbersPacker(60, size=50_000)
    expected = build(tmp_path / "whole", packer, pack_type=kind)["content_sha256"]
    small = tmp_path / "small"
    small.mkdir()
    plenty = shutil.disk_usage(tmp_path)._replace(free=2**40)

    def run():
        os.system("mount --make-rprivate /")
        if os.system(f"mount -t tmpfs -o size=5m none {small}"):
            os._exit(SKIPPED)
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: plenty)  # so it does run full
        with pytest.raises(HatError, match=r"cannot write to .*(Input/output|no space left)"):
            build(small / "train", packer, pack_type=kind)
        assert os.system(f"mount -o remount,size=64m {small}") == 0
        draft = small / "train.partial"
        assert sum(path.stat().st_size for path in draft.iterdir()) > 2_000_000
        assert build(small / "train", packer, pack_type=kind)["content_sha256"] == expected
        assert numbers_in(small / "train") == list(range(60))

    code = in_child(_apart, run)
    if code == SKIPPED:
        pytest.skip("a disk of its own can't be mounted here")
    assert code == 0


SKIPPED = 77


def _apart(run):
    """Run with mounts that no other process sees."""
    import ctypes

    new_mounts = 0x20000
    if ctypes.CDLL(None).unshare(new_mounts):
        os._exit(SKIPPED)
    run()
