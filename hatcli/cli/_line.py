"""The line that shows how far a job has come: how fast, how long still, in how much memory."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hatcli.events import Progress, StepDone

WINDOW_S = 60.0
"""The rate is that of the last minute: what was faster before says little of what comes."""

SURE_S = 0.5
"""A rate needs so long; until then there is none."""

BAR = (8, 40)  # least and most characters
_SIGNS = {True: ("#", "-"), False: ("━", "─")}


@dataclass(frozen=True)
class Line:
    """What there is to say, each a text that may be empty.

    Attributes:
        activity: what is done.
        done: units done so far; so for ``total``.
        rate: with its unit.
        left: the time that is left.
        detail: a short changing remark.
        memory: texts, the most telling last.
    """

    activity: str
    done: int
    total: int
    rate: str = ""
    left: str = ""
    detail: str = ""
    memory: tuple[str, ...] = ()

    def plain(self, event: Progress | StepDone) -> str:
        """A whole line for a log."""
        rate = "" if isinstance(event, StepDone) else self.rate  # it says its own
        return "  ".join(part for part in (str(event), rate, self.left, *self.memory) if part)

    def fitted(self, width: int, measure: Callable[[str], int] = len) -> tuple[str, int, str]:
        """The parts that fit into a width: what stands before the bar, its length, what follows.

        What tells least is left out first: memory, then the remark, the rate, the bar.

        Args:
            width: in columns of the terminal.
            measure: how many columns a text takes.
        """
        count = f"{self.done}/{self.total}"
        least = BAR[0] + 2
        line = self
        for shorter in self._shorter():
            tail = line._tail(count)
            if measure(line.activity) + measure(tail) + least <= width:
                break
            line = shorter
        tail = line._tail(count)
        room = width - measure(line.activity) - measure(tail) - 2
        if room >= BAR[0]:
            return line.activity, min(room, BAR[1]), tail
        room = width - measure(tail) - 1
        activity = line.activity
        while activity and measure(activity) > room:
            activity = activity[:-1]
        return activity, 0, tail

    def _tail(self, count: str) -> str:
        return "  ".join(
            part for part in (count, self.rate, self.left, self.detail, *self.memory) if part
        )

    def _shorter(self) -> "Sequence[Line]":
        """This line with less and less, and at last itself at its shortest."""
        lines = [replace(self, memory=self.memory[n:]) for n in range(1, len(self.memory) + 1)]
        lines.append(replace(self, memory=(), detail=""))
        lines.append(replace(self, memory=(), detail="", rate=""))
        return [*lines, lines[-1]]


class Pace:
    """How fast the current activity goes, and how long it will take.

    Args:
        memory: tells the memory in use.
    """

    def __init__(self, memory: Callable[[], list[str]] = list) -> None:
        self._memory = memory
        self._activity = ""
        self._seen: deque[tuple[float, float]] = deque()
        self._training: tuple[float, float] | None = None

    def line(self, event: Progress | StepDone, now: float) -> Line:
        """What there is to say at a time, in seconds of any clock."""
        if isinstance(event, StepDone):
            return self._step_line(event, now)
        if event.activity != self._activity or (self._seen and event.done < self._seen[-1][1]):
            self._activity = event.activity
            self._seen.clear()
        self._seen.append((now, event.done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()
        begun, first = self._seen[0]
        rate = (event.done - first) / (now - begun) if now - begun >= SURE_S else 0.0
        left = (event.total - event.done) / rate if rate > 0 else None
        return Line(
            event.activity,
            event.done,
            event.total,
            f"{rate_text(rate)} {event.unit}/s" if rate > 0 else "",
            "" if left is None or event.done >= event.total else f"{time_text(left)} left",
            event.detail,
            tuple(self._memory()),
        )

    def _step_line(self, event: StepDone, now: float) -> Line:
        """Of a training: the time left is that of all epochs, with their validations."""
        epochs_done = event.epoch - 1 + event.step / event.steps
        if self._training is None or epochs_done < self._training[1]:
            self._training = now, epochs_done
        begun, first = self._training
        left = ""
        if epochs_done > first and now - begun >= SURE_S:
            seconds = (now - begun) / (epochs_done - first) * (event.epochs - epochs_done)
            left = f"{time_text(seconds)} left" if epochs_done < event.epochs else ""
        return Line(
            f"epoch {event.epoch}/{event.epochs}",
            event.step,
            event.steps,
            f"{rate_text(event.images_per_s)} images/s",
            left,
            f"loss {event.loss:.4g}",
            tuple(self._memory()),
        )


def wrapped(text: str, width: int, measure: Callable[[str], int] = len) -> str:
    """Lines broken at blanks where they are too wide; what follows is indented by two more.

    A word that is too wide by itself, as a path, stays whole.
    """
    if "\n" in text:
        return "\n".join(wrapped(line, width, measure) for line in text.split("\n"))
    if measure(text) <= width:
        return text
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    first, *words = text.split(" ")
    lines = [first]
    for word in words:
        longer = f"{lines[-1]} {word}"
        if measure(longer) <= width or not lines[-1].strip():
            lines[-1] = longer
        else:
            lines.append(indent + word)
    return "\n".join(line.rstrip() for line in lines)


def bar_text(done: int, total: int, length: int, *, is_ascii: bool) -> tuple[str, str]:
    """The part of a bar that is done, and the rest; they differ without colours, too."""
    full, rest = _SIGNS[is_ascii]
    count = length if total <= 0 else round(length * min(max(done / total, 0.0), 1.0))
    return full * count, rest * (length - count)


def rate_text(rate: float) -> str:
    """Three digits, and none behind the point from 100 on."""
    return f"{rate:.0f}" if rate >= 99.95 else f"{rate:.3g}"


def time_text(seconds: float) -> str:
    """'0:42', '12:05', '3:12:05', '2d 04h'."""
    whole = round(seconds)
    if whole >= 86400:
        return f"{whole // 86400}d {whole // 3600 % 24:02d}h"
    if whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"
