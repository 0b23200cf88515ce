"""Learning from a teacher: Hinton et al., "Distilling the Knowledge", arXiv 1503.02531."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hatcli.errors import ConfigError

Scores = Tensor | tuple[Tensor, ...]


class Distilled(nn.Module):
    """A loss of the task plus the distance to a teacher's scores.

    The distance is the Kullback-Leibler divergence from the teacher's softmax to the student's,
    both at a temperature, times the temperature's square (section 2 of the paper), as a mean over
    the images, of maps over their cells. Cells without a label count: the teacher has scores
    there as well.

    Args:
        task_loss: raw scores and targets to a scalar.
        weight: of the distance.
        temperature: that both scores are divided by; above 0.
    """

    def __init__(self, task_loss: nn.Module, weight: float, temperature: float) -> None:
        super().__init__()
        self.task_loss = task_loss
        self.weight = weight
        self.temperature = temperature

    def forward(self, scores: Scores, targets: Tensor, teacher_scores: Scores) -> Tensor:
        """The loss, a float32 scalar.

        Args:
            scores: (N, C) or (N, C, h, w) of the student, any floating type; of several heads
                the finest, which comes first, learns from the teacher's finest.
            targets: as the task's loss takes them.
            teacher_scores: as ``scores``, without a gradient.

        Raises:
            ConfigError: student and teacher have scores of other shapes.
        """
        own, taught = _finest(scores), _finest(teacher_scores)
        if own.shape != taught.shape:
            raise ConfigError(
                f"distillation: the student's scores are {tuple(own.shape)}, "
                f"the teacher's {tuple(taught.shape)}"
            )
        task: Tensor = self.task_loss(scores, targets)
        with torch.autocast(own.device.type, enabled=False):
            student = F.log_softmax(own.float() / self.temperature, dim=1)
            teacher = F.log_softmax(taught.float() / self.temperature, dim=1)
            cells = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
            return task + self.weight * self.temperature**2 * cells.mean()


def _finest(scores: Scores) -> Tensor:
    return scores if isinstance(scores, Tensor) else scores[0]
