"""The line of progress: rates, times, memory, and what is left out where it is narrow."""

import mmap
import os
import subprocess
import sys

import pytest

from hatcli.cli import _memory
from hatcli.cli._line import BAR, Line, Pace, bar_text, rate_text, time_text, wrapped
from hatcli.events import Progress, StepDone


def step(epoch, done):
    return StepDone(epoch, 4, done, 10, 0.5, 0.01, 52.3)


def test_the_rate_is_that_of_what_was_done_while_watched():
    pace = Pace()
    assert pace.line(Progress("packing", 1000, 3000), 0.0).rate == ""  # went on from there
    line = pace.line(Progress("packing", 1200, 3000), 10.0)
    assert (line.rate, line.left) == ("20 images/s", "1:30 left")


def test_a_rate_forgets_what_was_more_than_a_minute_ago():
    pace = Pace()
    for second in range(100):
        pace.line(Progress("packing", second * 100, 100_000), float(second))
    for second in range(100, 261):
        line = pace.line(Progress("packing", 9900 + (second - 99), 100_000), float(second))
    assert line.rate == "1 images/s"


def test_another_activity_and_one_that_begins_again_have_a_rate_of_their_own():
    pace = Pace()
    pace.line(Progress("packing", 0, 100), 0.0)
    assert pace.line(Progress("packing", 50, 100), 1.0).rate == "50 images/s"
    assert pace.line(Progress("reading back", 99, 100), 2.0).rate == ""
    assert pace.line(Progress("reading back", 3, 100), 4.0).rate == ""


def test_nothing_is_left_of_what_is_done():
    pace = Pace()
    pace.line(Progress("packing", 0, 100), 0.0)
    assert pace.line(Progress("packing", 100, 100), 4.0).left == ""


def test_a_training_tells_the_time_of_all_epochs_with_their_validations():
    pace = Pace()
    assert pace.line(step(1, 5), 0.0).left == ""
    pace.line(Progress("validating", 26, 26), 50.0)
    line = pace.line(step(2, 5), 100.0)  # one epoch in 100 s; two and a half are left
    assert line.left == "4:10 left"
    assert (line.activity, line.rate, line.detail) == ("epoch 2/4", "52.3 images/s", "loss 0.5")


def test_a_second_training_starts_anew():
    pace = Pace()
    pace.line(step(4, 10), 0.0)
    assert pace.line(step(1, 1), 1000.0).left == ""


FULL = Line("packing train", 1234, 2975, "55.1 images/s", "0:31 left", "berlin_000123",
            ("1.2 GB", "GPU 10.3/79.2 GB"))  # fmt: skip


def test_a_line_fits_into_any_width():
    for width in range(4, 140):
        before, length, after = FULL.fitted(width)
        used = len(before) + len(after) + 1 + (length + 1 if length else 0)
        assert used <= max(width, len(after) + 1)
        assert length == 0 or BAR[0] <= length <= BAR[1]


def test_what_tells_least_is_left_out_first():
    kept = [FULL.fitted(width)[2] for width in range(140, 20, -1)]
    tails = list(dict.fromkeys(kept))
    assert [tail.split("  ")[1:] for tail in tails] == [
        ["55.1 images/s", "0:31 left", "berlin_000123", "1.2 GB", "GPU 10.3/79.2 GB"],
        ["55.1 images/s", "0:31 left", "berlin_000123", "GPU 10.3/79.2 GB"],
        ["55.1 images/s", "0:31 left", "berlin_000123"],
        ["55.1 images/s", "0:31 left"],
        ["0:31 left"],
    ]
    assert all(tail.startswith("1234/2975") for tail in tails)


def test_at_80_columns_a_training_shows_all_it_has():
    line = Line(
        "epoch 12/100", 120, 185, "52.3 images/s", "3:12:40 left", "loss 0.5123", ("2.1 GB",)
    )
    tail = "120/185  52.3 images/s  3:12:40 left  loss 0.5123  2.1 GB"
    assert line.fitted(79) == ("epoch 12/100", 8, tail)


@pytest.mark.parametrize("is_ascii", [True, False])
def test_a_bar_tells_what_is_done_without_colours(is_ascii):
    assert bar_text(1, 4, 12, is_ascii=is_ascii)[0] in ("###", "━━━")
    for done, total in ((0, 0), (0, 7), (3, 7), (7, 7), (9, 7), (-1, 7)):
        full, rest = bar_text(done, total, 12, is_ascii=is_ascii)
        assert len(full + rest) == 12
        assert not set(full) & set(rest)
        assert (full + rest).isascii() == is_ascii


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (725, "12:05"), (11525, "3:12:05"), (187300, "2d 04h")],
)
def test_times_are_short(seconds, text):
    assert time_text(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(0.034, "0.034"), (55.12, "55.1"), (1234.5, "1234")])
def test_rates_have_three_digits(rate, text):
    assert rate_text(rate) == text


def test_a_line_is_broken_at_blanks_and_what_follows_is_indented():
    text = "  check   1x3: differs by 1e-05 of the largest score"
    assert wrapped(text, 80) == text
    assert wrapped(text, 30).split("\n") == [
        "  check   1x3: differs by",
        "    1e-05 of the largest score",
    ]
    path = "best checkpoint: " + "x" * 70
    assert wrapped(path, 40) == "best checkpoint:\n  " + "x" * 70
    assert wrapped(f"{path}\na b", 40).endswith("x\na b")


def test_the_memory_grows_by_what_is_taken_here_and_by_a_child():
    before = _memory.resident_bytes()
    block = mmap.mmap(-1, 41_000_000)  # fresh pages, whatever the heap has left over
    block.write(os.urandom(1000) * 41_000)
    assert _memory.resident_bytes() - before > 30e6
    code = "b = bytearray(b'x') * 60_000_000; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        assert _memory.resident_bytes() - before > 90e6
        child.communicate(b"\n")
    assert _memory.resident_bytes(2**22 + 1) is None
    block.close()


@pytest.mark.parametrize(("count", "text"), [(87e6, "87 MB"), (1.24e9, "1.2 GB"), (0, "0 MB")])
def test_sizes_are_short(count, text):
    assert _memory.size_text(count) == text


def test_a_gpu_in_use_is_told(monkeypatch):
    class Cuda:
        is_initialized = staticmethod(lambda: True)
        mem_get_info = staticmethod(lambda: (60e9, 80e9))
        memory_reserved = staticmethod(lambda: 10.34e9)

    monkeypatch.setitem(sys.modules, "torch", type("torch", (), {"cuda": Cuda}))
    assert _memory.memory_texts()[-1] == "GPU 10.3/80.0 GB"
