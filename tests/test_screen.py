"""What is seen of a job that runs: on terminals wide and narrow, in logs, without Unicode."""

import io
import os
import pty
import subprocess
import sys
import time

import pytest
from rich.console import Console

from hatcli.cli import _drawing, _screen
from hatcli.cli._encoding import NEAREST
from hatcli.errors import StoppedBySignal
from hatcli.events import EpochDone, Note, Progress, StepDone, Warned

JOB = """
import sys, time
from hatcli.cli._encoding import prepare_streams
prepare_streams()
from hatcli.cli import _screen
from hatcli.events import Note, Progress
def job():
    yield Note("unet · step float, \\u00e9t\\u00e9 \\u8857")
    for done in range(41):
        yield Progress("packing train", done, 40)
        time.sleep(0.005)
_screen.follow(job())
_screen.say("mIoU 61.90 · done")
"""


def step(epoch, done):
    return StepDone(epoch, 4, done, 10, 0.5, 0.01, 52.3)


def epoch_done(number):
    return EpochDone(number, 4, {"loss": 0.5}, {"mIoU": 60.0}, 0.01, 52.3, 9.0)


def plain(events, capsys, monkeypatch, seconds=0.0):
    """What a log gets of events that come so many seconds apart."""
    now = [0.0]
    monkeypatch.setattr(_drawing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(_drawing, "memory_texts", lambda: ["87 MB"])
    with _drawing.PlainLines() as lines:
        for event in events:
            lines.show(event)
            now[0] += seconds
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_a_line_every_ten_seconds(capsys, monkeypatch):
    events = [Progress("packing", done, 101) for done in range(1, 101)]
    found = plain(events, capsys, monkeypatch, seconds=1.0)
    assert len(found) == 9
    assert found[0] == "packing: 11/101 images  1 images/s  1:30 left  87 MB"


def test_a_log_is_not_flooded_by_what_is_done_again_and_again(capsys, monkeypatch):
    events = []
    for number in range(1, 5):
        events += [Progress("validating", done, 3) for done in range(4)] + [epoch_done(number)]
    found = plain(events, capsys, monkeypatch, seconds=0.1)
    assert [line.split()[0] for line in found] == ["validating:", "epoch", "1", "2", "3", "4"]


def test_a_log_of_a_training_tells_rate_and_time_left_once_each(capsys, monkeypatch):
    found = plain([step(1, n) for n in range(1, 11)], capsys, monkeypatch, seconds=5.0)
    assert found[0] == "epoch 1/4  step 3/10  loss 0.5  52.3 images/s  3:05 left  87 MB"


def bars(events, width, monkeypatch, encoding="utf-8"):
    """What a terminal gets; a clock makes every event worth drawing."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(file=file, force_terminal=True, width=width, soft_wrap=True, highlight=False)
    monkeypatch.setattr(_drawing, "memory_texts", lambda: ["87 MB"])
    monkeypatch.setattr(_drawing, "DRAW_EVERY_S", 0.0)
    with _drawing.Bars(console) as drawing:
        for event in events:
            drawing.show(event)
    file.seek(0)
    return file.buffer.getvalue().decode(encoding)


def visible(text):
    """The lines of a terminal's output without its control sequences."""
    import re

    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_no_line_of_progress_is_as_wide_as_the_terminal(width, monkeypatch):
    events = [
        Progress("verifying 数据_lmdb of a long name", n, 3000, detail="x" * 9) for n in range(9)
    ]
    drawn = visible(bars(events, width, monkeypatch))
    from rich.cells import cell_len

    assert max(map(cell_len, drawn)) <= width - 3
    assert any("8/3000" in line for line in drawn)


def test_lines_that_stay_stand_above_and_markup_is_text(monkeypatch):
    events = [Note("run folder: [x]/<y>"), step(1, 1), Warned("odd [bold]"), epoch_done(1)]
    drawn = visible(bars(events, 80, monkeypatch))
    for line in ("run folder: [x]/<y>", "warning: odd [bold]", str(epoch_done(1))):
        assert line in drawn


def test_every_table_and_line_of_metrics_says_percent_once(capsys):
    values = {"mIoU": 60.0, "mIoU_present": 61.0, "mAcc": 70.0, "aAcc": float("nan")}
    epoch = EpochDone(1, 4, {"loss": 0.5}, values, 0.01, 52.3, 9.0, is_best=True)
    assert epoch.header().split("seconds ")[1] == "mIoU % mIoU_present   mAcc   aAcc"
    assert len(str(epoch)) == len(epoch.header() + "  best") == 80
    _screen.print_metrics({**values, "IoU.road": 90.0, "acc.road": 95.0})
    _screen.print_accuracies(["step", "mIoU", "aAcc", "mIoU - float"], [["qat", 60.0, 90.0, -1.0]])
    assert capsys.readouterr().out.splitlines() == [
        "class  IoU %    acc",
        "road   90.00  95.00",
        "mIoU 60.00 %   mIoU_present 61.00 %   mAcc 70.00 %   aAcc -",
        "step  mIoU %   aAcc  mIoU - float",
        "qat    60.00  90.00         -1.00",
    ]


def test_a_long_note_is_broken_at_blanks_on_a_terminal(monkeypatch):
    text = "unet · step float · cpu · float32 · 74 of 74 training images · batch 4 · seed 0"
    assert "batch 4 · seed 0" in [
        line.strip() for line in visible(bars([Note(text)], 62, monkeypatch))
    ]


def test_a_table_is_laid_out_as_it_will_be_shown(monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="hat-nearest")
    monkeypatch.setattr(_screen, "out", Console(file=file, highlight=False, soft_wrap=True))
    rows = [["a", "1 … 2", "3"], ["b", "1", "3"]]
    _screen.print_table("", ["name", "output", "count"], rows)
    file.flush()
    lines = file.buffer.getvalue().decode().splitlines()
    assert lines[1:] == ["a     1 ... 2      3", "b           1      3"]
    assert len({len(line) for line in lines}) == 1


def test_a_finished_activity_gives_way_to_the_clock(monkeypatch):
    monkeypatch.setattr(_drawing, "TICK_S", 0.01)
    monkeypatch.setattr(_drawing, "memory_texts", lambda: ["87 MB"])
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with _drawing.Bars(console) as drawing:
        drawing.show(Progress("evaluating", 26, 26))
        drawing.show(Note("exporting"))
        time.sleep(0.1)
    assert "... 0:00  87 MB" in visible(console.file.getvalue())


def test_a_terminal_that_goes_away_ends_no_job(monkeypatch):
    class Gone(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            if "b" in self.getvalue():
                raise OSError(5, "Input/output error")
            return super().write(text)

    monkeypatch.setattr(_screen, "err", Console(file=Gone(), force_terminal=True, width=80))

    def job():
        for done in range(5):
            yield Note("b")
            yield Progress("c", done, 4)
        return 5

    assert _screen.follow(job()) == 5


def test_a_signal_while_an_event_is_drawn_goes_to_the_job(monkeypatch):
    def interrupted(self, event):
        if isinstance(event, Note) and event.text == "now":
            raise StoppedBySignal(2, "stopped")

    monkeypatch.setattr(_drawing.PlainLines, "show", interrupted)
    saved = []

    def job():
        try:
            yield Note("now")
        except StoppedBySignal:
            saved.append(True)
            yield Note("saving")
        return 7

    assert _screen.follow(job()) == 7
    assert saved == [True]


def run_piped(**environment):
    done = subprocess.run(
        [sys.executable, "-c", JOB],
        capture_output=True,
        env={**os.environ, "PYTHONUTF8": "0", **environment},
        check=True,
    )
    return done.stdout, done.stderr


def run_in_terminal(**environment):
    """All that a terminal of 80 columns gets."""
    leader, follower = pty.openpty()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LC_")}
    process = subprocess.Popen(
        [sys.executable, "-c", JOB],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**clean, "COLUMNS": "80", "TERM": "xterm", "LANG": "C.UTF-8", **environment},
    )
    os.close(follower)
    parts = []
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(leader)
    assert process.wait() == 0
    return b"".join(parts)


def test_a_pipe_gets_no_control_codes_even_where_colours_are_forced():
    out, err = run_piped(FORCE_COLOR="1")
    assert b"\x1b" not in out + err
    assert err.decode().splitlines()[-1].startswith("packing train: 40/40 images")
    assert out.decode() == "mIoU 61.90 · done\n"


def test_an_ascii_pipe_gets_the_nearest_signs():
    out, err = run_piped(PYTHONIOENCODING="ascii")
    assert out == b"mIoU 61.90 - done\n"
    assert err.splitlines()[0] == b"unet - step float, \\xe9t\\xe9 \\u8857"


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"TERM": "dumb"}], ids=str)
def test_a_plain_terminal_gets_ascii(environment):
    shown = run_in_terminal(**environment)
    assert shown.isascii()
    assert b"unet - step float" in shown
    assert (b"\x1b" in shown) == ("LC_ALL" in environment)  # a dumb one can't move its cursor


def test_no_color_means_none():
    shown = run_in_terminal(NO_COLOR="1")
    assert b"\x1b[36m" not in shown
    assert b"m" not in [part[-1:] for part in shown.split(b"\x1b[")[1:] if part[:-1].isdigit()]
    assert "━" in shown.decode()
    assert b"\x1b[36m" in run_in_terminal()


def test_every_sign_has_an_ascii_neighbour():
    assert all(not sign.isascii() and near.isascii() for sign, near in NEAREST.items())


@pytest.mark.parametrize("place", ["drawing", "between"])
def test_a_signal_outside_the_job_goes_to_the_job_which_saves(place, monkeypatch):
    saved = []

    def job():
        try:
            yield Note("one")
            yield Note("two")
        except StoppedBySignal:
            saved.append(True)
            raise StoppedBySignal(15, "saved") from None

    class Interrupted:
        """Raises while an event is drawn, or just before the next one is asked for."""

        def __init__(self, generator):
            self._generator, self._calls = generator, 0
            self.throw = generator.throw

        @property
        def gi_frame(self):
            return self._generator.gi_frame

        def __next__(self):
            self._calls += 1
            if place == "between" and self._calls == 2:
                raise StoppedBySignal(15, "stopped by SIGTERM")
            return next(self._generator)

    def show(_self, event):
        if place == "drawing":
            raise StoppedBySignal(15, "stopped by SIGTERM")

    monkeypatch.setattr(_drawing.PlainLines, "show", show)
    with pytest.raises(StoppedBySignal, match="saved"):
        _screen.follow(Interrupted(job()))
    assert saved == [True]


def test_a_table_has_no_blanks_at_the_ends_of_its_lines(capsys):
    _screen.print_table("", ["a", "b"], [["1", "long text"], ["2 [x]", "short"]], texts=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["a      b", "1      long text", "2 [x]  short"]


def test_words_of_the_next_command_are_quoted_where_they_need_it(capsys):
    _screen.next_command(["hat", "eval", "my model.onnx"], "hat eval x.onnx")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["next: hat eval 'my model.onnx'", "      hat eval x.onnx"]
