"""What a training consists of: its settings, and all that changes."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from hatcli.engine.ema import Ema
from hatcli.engine.meter import LossMeter
from hatcli.engine.random_state import global_state, restore_global_state
from hatcli.events import headline


@dataclass(frozen=True)
class FitSettings:
    """How to train.

    Attributes:
        epochs: to finish, those that a resumed run brings along included.
        seed: what is drawn in a step follows from it and the step's place.
        dtype: bfloat16 or float16 runs the model under autocast; weights, loss and optimiser stay
            float32.
        accumulate: batches whose gradients are averaged to one step.
        clip_grad_norm: largest global norm of the gradients.
        on_nonfinite: what a loss or gradient that isn't finite does: "stop" ends the training;
            "skip" leaves the step out, batch norm statistics included, and stops after ten in
            a row. It looks at each loss before the step, and so waits for a GPU at each.
        compile: compile the model's forward pass by `torch.compile`.
        log_every: steps between two reports; where they take longer, one every two seconds,
            unless several processes train on GPUs.
        save_every: steps between two reports at which the caller saves; None for none.
        val_every: epochs between two validations; the last epoch is always validated.
    """

    epochs: int
    seed: int = 0
    dtype: torch.dtype = torch.float32
    accumulate: int = 1
    clip_grad_norm: float | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    compile: bool = False
    log_every: int = 20
    save_every: int | None = None
    val_every: int = 1

    def is_saved_at(self, step: int) -> bool:
        """Whether the caller saves when this step of an epoch, counted from 1, is reported."""
        return self.save_every is not None and step % self.save_every == 0


@dataclass
class Training:
    """All that changes while training, and so all that a checkpoint must hold.

    Attributes:
        model: in training mode between events.
        ema: its moving average, which is validated and deployed in the model's place.
        scaler: of the loss, for float16.
        epoch: how many are finished.
        samples: that all processes together have taken of the unfinished epoch.
        skipped: steps in a row that were left out.
        best: highest validation metric so far.
        history: one {"epoch", "loss", metric...} for each finished epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    ema: Ema | None = None
    scaler: GradScaler | None = None
    epoch: int = 0
    samples: int = 0
    skipped: int = 0
    best: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)
    meter: LossMeter = field(default_factory=LossMeter)

    @property
    def deployed(self) -> nn.Module:
        """The model whose accuracy counts: the average where there is one."""
        return self.model if self.ema is None else self.ema.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return self.optimizer.param_groups[0]["lr"]

    def finish_epoch(self, metrics: dict[str, float], best_by: str) -> bool:
        """Count an epoch and remember its figures; tell whether it is the best (NaN never is)."""
        score = metrics.get(best_by, math.nan)
        is_best = score > self.best
        if is_best:
            self.best = score
        self.epoch, self.samples = self.epoch + 1, 0
        loss = self.meter.epoch_mean()
        self.history.append({"epoch": self.epoch, "loss": loss, **headline(metrics)})
        return is_best

    def state(self) -> dict[str, Any]:
        """Everything as tensors and plain values."""
        return {
            "state_dict": self.model.state_dict(),
            "ema_state_dict": None if self.ema is None else self.ema.model.state_dict(),
            "ema_updates": 0 if self.ema is None else self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "epoch": self.epoch,
            "samples": self.samples,
            "skipped": self.skipped,
            "losses": self.meter.state(),
            "random": global_state(),
            "best": self.best,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, bit for bit."""
        self.model.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema_state_dict"] or state["state_dict"])
            self.ema.updates = state["ema_updates"]
        if self.scaler is not None and state.get("scaler") is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.best = state["epoch"], state["best"]
        if "samples" in state:  # older ones are of whole epochs
            self.samples, self.skipped = state["samples"], state["skipped"]
            self.meter.restore(state["losses"])
            restore_global_state(state["random"])
        self.history = list(state["history"])
