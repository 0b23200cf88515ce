"""Ways to show the events of a job: a line that moves, whole lines for a log, nothing."""

import contextlib
import sys
import threading
import time

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text

from hatcli.cli._line import Line, Pace, bar_text, time_text, wrapped
from hatcli.cli._memory import memory_texts
from hatcli.events import EpochDone, Event, Progress, StepDone, Warned

PLAIN_LINE_EVERY_S = 10.0
DRAW_EVERY_S = 0.1
MEMORY_EVERY_S = 2.0
TICK_S = 1.0


class Silence:
    """For a process beside the one that speaks."""

    def __enter__(self) -> "Silence":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, event: Event) -> None:
        """Nothing."""


class PlainLines:
    """For logs and pipes: whole lines only, and few of them.

    A line of progress comes every ten seconds, and where an activity ends for the first time.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._header = ""
        self._pace = Pace(memory_texts)
        self._ended: set[str] = set()

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, event: Event) -> None:
        """Print an event, or keep it to oneself."""
        if isinstance(event, Progress | StepDone):
            self._show_progress(event)
            return
        if isinstance(event, EpochDone) and len(event.header()) > len(self._header):
            self._header = event.header()
            print(self._header, file=sys.stderr, flush=True)
        print(event, file=sys.stderr, flush=True)

    def _show_progress(self, event: Progress | StepDone) -> None:
        now = time.monotonic()
        line = self._pace.line(event, now)
        is_first_end = False
        if isinstance(event, Progress) and event.done == event.total:
            is_first_end = event.activity not in self._ended
            self._ended.add(event.activity)
        if is_first_end or now - self._last >= PLAIN_LINE_EVERY_S:
            self._last = now
            print(line.plain(event), file=sys.stderr, flush=True)


class Bars:
    """For a terminal: one line that moves, above it the lines that stay.

    It is drawn when something happens, ten times a second at most. While nothing does, as in an
    export, a clock shows once a second that the job goes on.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # else it would move a result to stderr
        )
        self._pace = Pace(self._memory)
        self._drawn = self._measured = self._waits_since = time.monotonic()
        self._memory_texts: list[str] = []
        self._line: Line | None = None
        self._header = ""
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Bars":
        self._memory_texts = memory_texts()
        self._live.start()
        self._clock.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._clock.join()
        with contextlib.suppress(OSError):  # the terminal is gone
            self._live.stop()

    def show(self, event: Event) -> None:
        """Draw an event."""
        if isinstance(event, Progress | StepDone):
            self._show_progress(event)
            return
        if self._line is not None and self._line.done >= self._line.total:
            self._wait()
        if isinstance(event, EpochDone) and len(event.header()) > len(self._header):
            self._header = event.header()
            self._console.print(self._header, markup=False)
        style = "yellow" if isinstance(event, Warned) else None
        text = wrapped(str(event), self._console.width, cell_len)
        self._console.print(text, markup=False, style=style)

    def _show_progress(self, event: Progress | StepDone) -> None:
        now = time.monotonic()
        line = self._pace.line(event, now)
        is_new = self._line is None or line.activity != self._line.activity
        self._line = line
        if is_new or now - self._drawn >= DRAW_EVERY_S or line.done == line.total:
            self._drawn = now
            self._live.update(self._text(line), refresh=True)

    def _wait(self) -> None:
        """Take away the line of what is over."""
        self._line, self._waits_since = None, time.monotonic()
        self._live.update(Text(""), refresh=True)

    def _tick(self) -> None:
        while not self._ended.wait(TICK_S):
            if self._line is not None:
                continue
            passed = time_text(time.monotonic() - self._waits_since)
            text = "  ".join([f"... {passed}", *self._memory()])
            with contextlib.suppress(OSError):  # the terminal is gone
                self._live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)

    def _text(self, line: Line) -> Text:
        # Three columns stay free: a terminal whose line is full may have gone to the next, and
        # the "^C" that it adds for Ctrl-C must not take it there, where the line isn't taken away.
        before, length, after = line.fitted(self._console.width - 3, cell_len)
        is_ascii = not self._console.encoding.lower().startswith("utf")
        done, rest = bar_text(line.done, line.total, length, is_ascii=is_ascii)
        text = Text(f"{before} ", no_wrap=True, overflow="crop")
        if length:
            text.append(done, "cyan").append(rest, "bright_black").append(" ")
        return text.append(after)

    def _memory(self) -> list[str]:
        now = time.monotonic()
        if now - self._measured >= MEMORY_EVERY_S:
            self._measured, self._memory_texts = now, memory_texts()
        return self._memory_texts
