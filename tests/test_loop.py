import contextlib
import copy
import math
import random
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from small_training import Blobs, Share, flat, new_training, run, small_model, start
from torch import Tensor, nn

from hatcli.engine import OPTIMIZERS, SCHEDULES
from hatcli.engine.data_parallel import DataParallel
from hatcli.engine.ema import Ema
from hatcli.engine.evaluation import evaluate
from hatcli.engine.loop import _goes_by_clock, fit
from hatcli.engine.random_state import seed_step
from hatcli.engine.training import FitSettings, Training
from hatcli.errors import ConfigError, DataError, HatError, StoppedBySignal
from hatcli.events import EpochDone, Progress, StepDone
from hatcli.stopping import uninterrupted


def test_a_run_yields_steps_progress_and_epochs():
    events = run(new_training(), 2, log_every=3)
    steps = [(e.epoch, e.step) for e in events if isinstance(e, StepDone)]
    assert steps == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert [e.done for e in events if isinstance(e, Progress)] == [8, 16, 8, 16]
    epochs = [e for e in events if isinstance(e, EpochDone)]
    assert [e.epoch for e in epochs] == [1, 2]
    assert epochs[-1].train["loss"] < epochs[0].train["loss"]
    assert epochs[0].is_best


def test_it_learns():
    events = run(new_training(), 6)
    assert events[-1].val["top1"] > 90


@pytest.mark.parametrize("node", [{}, {"type": "adamw", "lr": 0.01, "momentum": None}])
def test_a_resumed_run_ends_with_the_same_state_bit_for_bit(node):
    node = {key: value for key, value in node.items() if value is not None}
    if node:
        node |= {"betas": [0.9, 0.99]}

    def fresh() -> Training:
        if not node:
            return new_training()
        model = small_model()
        return Training(model, OPTIMIZERS.build(node, model=model), Ema(model, 0.9))

    whole = fresh()
    run(whole, 4)
    first = fresh()
    run(first, 2)
    torch.manual_seed(12345)  # whatever happened in between
    state = first.state()
    second = fresh()
    second.restore(state)
    run(second, 4)
    expected, got = flat(whole), flat(second)
    assert expected.keys() == got.keys()
    different = [name for name in expected if not torch.equal(expected[name], got[name])]
    assert different == []
    assert second.history == whole.history
    assert second.best == whole.best


def test_a_loss_that_is_not_finite_stops_at_its_step_with_the_samples_named():
    training = new_training()
    with pytest.raises(HatError) as caught:
        run(training, 2, Blobs(bad_step=2))
    assert "the loss is nan" in caught.value.message
    assert "e0s2n0, e0s2n1" in caught.value.message
    assert training.epoch == 0


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    training = new_training()

    class Steep(nn.Module):
        def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
            return (scores * 0).abs().sqrt().sum()  # the slope of sqrt at 0 is infinite

    events = fit(
        training,
        Blobs(),
        FitSettings(epochs=1, clip_grad_norm=1.0),
        loss=Steep(),
        prepare=nn.Identity(),
        schedule=lambda step: 1.0,
    )
    before = {name: tensor.clone() for name, tensor in training.model.named_parameters()}
    with pytest.raises(HatError, match="the gradient is nan"):
        list(events)
    after = dict(training.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_step_that_is_not_finite_can_be_left_out_with_its_statistics():
    training, untouched = new_training(), new_training()
    run(training, 1, Blobs(1, bad_step=0), on_nonfinite="skip")
    assert training.skipped == 1
    names = [name for name, tensor in flat(untouched).items() if not name.startswith("optimizer")]
    assert [n for n in names if not torch.equal(flat(training)[n], flat(untouched)[n])] == []
    run(training, 2, Blobs(4), on_nonfinite="skip")
    assert training.skipped == 0
    assert all(tensor.isfinite().all() for tensor in training.model.state_dict().values())


def test_ten_bad_steps_in_a_row_are_no_accident():
    with pytest.raises(HatError, match="10 steps in a row"):
        run(new_training(), 12, Blobs(1, bad_step=0), on_nonfinite="skip")


def test_two_halves_of_a_batch_make_the_same_step():
    class Halves(Blobs):
        samples_a_batch = 4

        def __len__(self) -> int:
            return 2 * self.steps

        def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
            for images, targets, names in super().epoch(number, start):
                yield images[:4], targets[:4], names[:4]
                yield images[4:], targets[4:], names[4:]

    def trained(batches: Blobs, accumulate: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(24, 2)).double()  # nothing sees the batch
        optimizer = OPTIMIZERS.build({"type": "sgd", "lr": 0.1}, model=model)
        events = fit(
            Training(model, optimizer),
            batches,
            FitSettings(epochs=2, accumulate=accumulate),
            loss=nn.CrossEntropyLoss(),
            prepare=nn.Identity().double(),
            schedule=lambda step: 1 / (1 + step),
        )
        assert [event.step for event in events if isinstance(event, StepDone)] == [4, 4]
        return model.state_dict()

    class Double(Blobs):
        def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
            for images, targets, names in super().epoch(number, start):
                yield images.double(), targets, names

    class DoubleHalves(Halves, Double):
        pass

    whole, halves = trained(Double(), 1), trained(DoubleHalves(), 2)
    for name, tensor in whole.items():
        torch.testing.assert_close(halves[name], tensor, rtol=1e-12, atol=1e-12)


def test_a_run_resumed_within_an_epoch_ends_with_the_same_state_bit_for_bit():
    whole = new_training()
    run(whole, 3, log_every=1)
    for stop_at in (1, 3, 6):
        first = new_training()
        steps = (e for e in start(first, 3, log_every=1) if isinstance(e, StepDone))
        list(islice(steps, stop_at))
        random.random()  # whatever happened in between
        second = new_training()
        second.restore(copy.deepcopy(first.state()))
        run(second, 3, log_every=1)
        expected, got = flat(whole), flat(second)
        assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
        assert second.history == whole.history


def test_what_a_step_draws_follows_from_its_place():
    cpu = torch.device("cpu")
    drawn = set()
    for place in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]:
        seed_step(*place, cpu)
        drawn.add(float(torch.rand(1)))
        seed_step(*place, cpu)
        assert float(torch.rand(1)) in drawn
    assert len(drawn) == 5


def test_a_teacher_gives_the_loss_its_scores_and_learns_nothing():
    teacher = small_model().eval()
    seen = []

    class Watching(nn.Module):
        def forward(self, scores: Tensor, targets: Tensor, taught: Tensor) -> Tensor:
            seen.append(taught)
            return (scores - taught).square().mean()

    training = new_training()
    events = fit(
        training,
        Blobs(),
        FitSettings(epochs=2),
        loss=Watching(),
        prepare=nn.Identity(),
        schedule=lambda step: 1.0,
        teacher=teacher,
    )
    assert len(list(events)) == 4
    first, _, _ = next(Blobs().epoch(0))
    assert torch.equal(seen[0], teacher(first))
    assert len(seen) == 8
    assert not any(taught.requires_grad for taught in seen)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_targets_may_be_a_dict_of_tensors_for_each_image():
    class Boxes(Blobs):
        def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, list, list[str]]]:
            for images, targets, names in super().epoch(number, start):
                yield images, [{"classes": one[None]} for one in targets], names

    class OfBoxes(nn.Module):
        def forward(self, scores: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
            classes = torch.cat([target["classes"] for target in targets])
            return nn.functional.cross_entropy(scores, classes)

    training = new_training()
    settings = FitSettings(epochs=1)
    list(fit(training, Boxes(), settings, loss=OfBoxes(), prepare=nn.Identity(),
             schedule=lambda step: 1.0))  # fmt: skip
    assert training.epoch == 1


def test_slow_steps_are_reported_as_they_come(monkeypatch):
    monkeypatch.setattr("hatcli.engine.meter.REPORT_WITHIN_S", -1.0)
    training = new_training()
    reports = [e for e in run(training, 1, log_every=100) if isinstance(e, StepDone)]
    assert [event.step for event in reports] == [1, 2, 3, 4]


@pytest.mark.parametrize(("device", "goes"), [("cpu", True), ("cuda", False)])
def test_on_gpus_no_process_reads_losses_by_its_own_clock(device, goes):
    shared = DataParallel.__new__(DataParallel)
    assert _goes_by_clock(torch.device(device), shared) == goes
    assert _goes_by_clock(torch.device(device), None)


def test_nan_is_never_best():
    training = new_training()
    assert training.finish_epoch({"a": math.nan}, "a") is False
    assert training.finish_epoch({"a": 3.0}, "a") is True
    assert training.finish_epoch({"a": 3.0}, "a") is False


def test_validation_comes_every_nth_epoch_and_after_the_last():
    events = run(new_training(), 5, val_every=2)
    validated = [e.epoch for e in events if isinstance(e, EpochDone) and e.val]
    assert validated == [2, 4, 5]


def test_weight_decay_acts_on_weights_only():
    training = new_training()
    decayed, kept = training.optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (1e-3, 0.0)
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert [p.ndim for p in kept["params"]] == [1, 1, 1, 1]


def test_a_bfloat16_run_keeps_float32_weights():
    training = new_training()
    run(training, 1, dtype=torch.bfloat16)
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}


def test_an_average_trails_the_weights():
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    ema = Ema(model, 0.5)
    nn.init.ones_(model.weight)
    ema.update()
    assert ema.model.weight.item() == pytest.approx(1 - 2 / 11)
    for _ in range(20):
        ema.update()
    assert ema.model.weight.item() == pytest.approx(1, abs=1e-5)


def test_nothing_to_evaluate_is_an_error():
    cpu = torch.device("cpu")
    job = evaluate(nn.Identity(), [], Share(), prepare=nn.Identity(), device=cpu, total=0)
    with pytest.raises(DataError, match="nothing to evaluate"):
        list(job)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_rate_that_torch_refuses_is_an_error_of_the_config(kind):
    with pytest.raises(ConfigError, match=f"optimizer '{kind}': Invalid learning rate: -1"):
        OPTIMIZERS.build({"type": kind, "lr": -1.0}, model=nn.Linear(2, 2))


@pytest.mark.parametrize("betas", [[0.9], [0.9, 0.99, 0.999], ["a", "b"], [0.9, 1.5]])
def test_betas_that_cannot_be_are_an_error_of_the_config(betas):
    with pytest.raises(ConfigError, match="optimizer 'adamw': "):
        OPTIMIZERS.build({"type": "adamw", "lr": 0.1, "betas": betas}, model=nn.Linear(2, 2))


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_a_schedule_is_positive_and_never_above_the_base_rate(name):
    node = {"type": name, **({"milestones": [2, 3]} if name == "step" else {})}
    schedule = SCHEDULES.build(node, steps_per_epoch=5, epochs=4)
    factors = [schedule(step) for step in range(20)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[0] == 1
    warm = SCHEDULES.build({**node, "warmup_epochs": 1}, steps_per_epoch=5, epochs=4)
    rise = [warm(step) for step in range(5)]
    assert rise == sorted(rise)
    assert 0 < rise[0] < 0.2


def test_the_step_schedule_drops_at_its_milestones():
    schedule = SCHEDULES.build({"type": "step", "milestones": [1, 3]}, steps_per_epoch=2, epochs=4)
    assert [schedule(s) for s in range(8)] == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_the_cosine_is_half_way_down_at_half_time():
    schedule = SCHEDULES.build({"type": "cosine", "final": 0.2}, steps_per_epoch=10, epochs=2)
    assert schedule(10) == pytest.approx(0.6)
    assert schedule(20) == pytest.approx(0.2)


def test_a_signal_whose_exception_got_lost_stops_at_the_next_step():
    uninterrupted.reset()
    with contextlib.suppress(StoppedBySignal):  # as Python does for a destructor
        uninterrupted.ask(15)
    with pytest.raises(StoppedBySignal, match="SIGTERM"):
        run(new_training(), 1)
    uninterrupted.reset()
