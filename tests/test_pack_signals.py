"""Signals and deaths while packing: what is ready is kept, and no process is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_cityscapes import (
    frame_name,
    image_file,
    label_file,
    make_cityscapes,
    pack_cityscapes,
)
from made_packer import NumbersPacker

from hatcli.data.packers import _work
from hatcli.errors import HatError


def start(source, *more):
    command = [sys.executable, "-m", "hatcli", "pack", "cityscapes", "--split", "train"]
    return subprocess.Popen(
        [*command, "--src", str(source), *more],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def many_frames(root, count=150):
    """One frame under many names, large enough that packing them takes a while."""
    source = make_cityscapes(root / "cityscapes", train=1, val=0, size=(512, 256))
    for index in range(1, count):
        for place in (image_file, label_file):
            first = place(source, "train", frame_name("aachen", 0))
            os.link(first, place(source, "train", frame_name("aachen", index)))
    return source


def group_is_empty(group):
    """Whether no process of a group is left but zombies."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return False
    return True


def stop_and_go_on(root, number, whole_group, workers):
    source = many_frames(root)
    process = start(source, "-j", workers)
    deadline = time.monotonic() + 30
    while not (source / "train_lmdb.partial" / "data.mdb").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.6)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, messages = process.communicate(timeout=30)
    assert process.returncode == 128 + number, messages
    assert "of 150; run the same command to go on" in messages
    assert "Traceback" not in messages
    assert len(messages.splitlines()) <= 3
    deadline = time.monotonic() + 6
    while not group_is_empty(process.pid):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.05)
    resumed = pack_cityscapes(source).meta
    expected = pack_cityscapes(source, target=root / "whole").meta
    assert resumed["content_sha256"] == expected["content_sha256"]


def test_a_hangup_of_the_group_is_a_stop(tmp_path):
    stop_and_go_on(tmp_path, signal.SIGHUP, True, "0")


def test_a_signal_to_the_process_alone_ends_its_workers(tmp_path):
    stop_and_go_on(tmp_path, signal.SIGTERM, False, "2")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("whole_group", [True, False])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_signal_is_a_stop(tmp_path, number, whole_group, workers):
    stop_and_go_on(tmp_path, number, whole_group, workers)


def test_workers_end_when_the_main_process_is_killed(tmp_path):
    source = many_frames(tmp_path)
    process = start(source, "-j", "2")
    time.sleep(1.5)
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while not group_is_empty(process.pid):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.05)


def test_workers_killed_before_they_have_their_work_are_an_error(tmp_path, monkeypatch):
    """Of a large packer, more than a pipe holds, nobody reads the rest."""
    give = _work._Worker.give

    def killed_first(worker, task, indices):
        worker._process.kill()
        worker._process.join()
        give(worker, task, indices)

    monkeypatch.setattr(_work._Worker, "give", killed_first)
    packer = NumbersPacker(20)
    packer.ballast = bytes(1 << 20)
    with pytest.raises(HatError, match=r"a packing worker died at .* or soon after"):
        list(_work.make_records(packer, 0, 2))
