import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hatcli.errors import ConfigError
from hatcli.losses.distillation import Distilled


class Zero(nn.Module):
    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        return scores.sum() * 0 + targets.sum()


def distance(scores: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    return Distilled(Zero(), 1.0, temperature)(scores, torch.zeros(1), teacher)


def test_two_classes_by_hand():
    student, teacher = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.8, 0.2]]))
    expected = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert distance(student, teacher).item() == pytest.approx(expected)


def test_the_gradient_is_the_difference_of_the_shares_at_any_temperature():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    for temperature in (1.0, 4.0):
        (grad,) = torch.autograd.grad(distance(student, teacher, temperature), student)
        shares = [F.softmax(scores / temperature, 1) for scores in (student, teacher)]
        torch.testing.assert_close(grad, (shares[0] - shares[1]) * temperature / 4)


def test_an_agreeing_student_has_the_loss_of_the_task_alone():
    scores = torch.randn(2, 3, 4, 4)
    loss = Distilled(Zero(), 7.0, 2.0)(scores, torch.tensor([1.5]), scores + 3)
    assert loss.item() == pytest.approx(1.5, abs=1e-5)


def test_maps_count_by_the_cell():
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    rows = [scores.permute(0, 2, 3, 1).reshape(-1, 3) for scores in (student, teacher)]
    assert distance(student, teacher).item() == pytest.approx(distance(*rows).item(), rel=1e-5)


def test_of_several_heads_the_finest_learn_from_each_other():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    coarse = torch.randn(2, 3, 2, 2)

    class First(nn.Module):
        def forward(self, scores: tuple[Tensor, ...], targets: Tensor) -> Tensor:
            return scores[0].sum() * 0 + len(scores)

    both = Distilled(First(), 1.0, 2.0)((student, coarse), torch.zeros(1), (teacher, coarse))
    assert both.item() == pytest.approx(2 + distance(student, teacher, 2.0).item(), rel=1e-5)


def test_scores_of_other_shapes_are_refused():
    with pytest.raises(ConfigError, match="the teacher's"):
        distance(torch.zeros(2, 3), torch.zeros(2, 4))
