"""Sums of losses: of the epoch, and since the last report."""

import math
import time
from typing import Any

from torch import Tensor

from hatcli.errors import HatError
from hatcli.events import StepDone

REPORT_WITHIN_S = 2.0  # where steps are slow, waiting for a number of them looks like a standstill


class NonFinite(HatError):  # noqa: N818 - what was found, not how
    """A loss or a gradient that is infinite or not a number.

    Attributes:
        what: "loss" or "gradient".
        value: what it is.
        names: of the samples of the step.
    """

    def __init__(self, what: str, value: float, where: str, names: list[str]) -> None:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        super().__init__(
            f"the {what} is {value}{where}; samples: {shown}",
            "lower optim.lr, set fit.clip_grad_norm=1.0 or fit.precision=float32; "
            "earlier checkpoints, if any, are whole",
        )
        self.what, self.value, self.names = what, value, names


class LossMeter:
    """Sums losses without waiting for the device, and finds the first that is not finite.

    Reading a value of a CUDA tensor makes the host wait, so there the losses since the last
    report are read together; on the CPU each is looked at when it comes.

    Attributes:
        images: of all processes, in this run's part of the epoch.
        processes: how many there are; each of them adds as many images as the others.
    """

    def __init__(self) -> None:
        self.images, self.processes = 0, 1
        self._pending: list[tuple[Tensor, list[str]]] = []
        self._epoch = [0.0, 0.0]  # weighted sum, images
        self._recent = [0.0, 0.0]
        self.restart_clock()

    def start_epoch(self) -> None:
        """Forget the epoch before."""
        self._epoch, self._recent = [0.0, 0.0], [0.0, 0.0]

    def restart_clock(self) -> None:
        """Count images a second from now on: of this run alone, not of one that it goes on with."""
        self.images, self._timed, self._since = 0, 0, time.perf_counter()

    def add(self, loss: Tensor, names: list[str]) -> None:
        """Take in a step's mean loss."""
        self.images += len(names) * self.processes
        self._timed += len(names) * self.processes
        self._pending.append((loss, names))
        if loss.device.type == "cpu":
            self.read()

    def read(self, epoch: int | None = None, step: int | None = None) -> None:
        """Read what is pending.

        Raises:
            NonFinite: a loss is.
        """
        pending, self._pending = self._pending, []
        for loss, names in pending:
            value = loss.item()
            if not math.isfinite(value):
                where = f" at epoch {epoch}, step {step} or shortly before" if epoch else ""
                raise NonFinite("loss", value, where, names)
            for total in (self._epoch, self._recent):
                total[0] += value * len(names)
                total[1] += len(names)

    def is_overdue(self) -> bool:
        """Whether the last report was long ago."""
        return time.perf_counter() - self._since > REPORT_WITHIN_S

    def report(self, epoch: int, epochs: int, step: int, steps: int, lr: float) -> StepDone:
        """The mean since the last report, and how fast it went."""
        self.read(epoch, step)
        now = time.perf_counter()
        rate = self._timed / max(now - self._since, 1e-9)
        mean = self._recent[0] / max(self._recent[1], 1)
        self._recent, self._timed, self._since = [0.0, 0.0], 0, now
        return StepDone(epoch, epochs, step, steps, mean, lr, rate)

    def epoch_mean(self) -> float:
        """Mean over the images of the epoch."""
        self.read()
        return self._epoch[0] / max(self._epoch[1], 1)

    def state(self) -> dict[str, Any]:
        """The sums, for a checkpoint in the middle of an epoch."""
        self.read()
        return {"epoch": list(self._epoch), "recent": list(self._recent)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with stored sums."""
        self._epoch, self._recent = list(state["epoch"]), list(state["recent"])
