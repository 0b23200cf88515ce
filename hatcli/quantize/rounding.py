"""The optimisation behind AdaRound: the codes of one layer from samples of what it should give."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hatcli.quantize.spec import AdaRoundSpec

# The rectified sigmoid reaches 0 and 1, equation 23 of arXiv 2004.10568.
ZETA, GAMMA = 1.1, -0.1
WARM_UP = 0.2  # of the iterations run without the regulariser
BETAS = (20.0, 2.0)  # its exponent, from the first to the last iteration
WEIGHT = 1.0  # of the regulariser, beside an error that is normalised by that of plain rounding
BATCH = 256  # places at a time, at most
MOST_VALUES = 1 << 20  # of the inputs at a time
SWEEPS = 4  # of the descent behind the learning, at most

_CEILINGS = {None: (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}


@dataclass(frozen=True)
class Problem:
    """One layer, by groups of channels that share no inputs.

    Attributes:
        weight: (G, O / G, K).
        scale: (O,) positive.
        highest: largest code; the smallest is its negative.
        bias: (G, 1, O / G).
        inputs: (G, P, K) what comes in at P places, from the quantized layers before.
        targets: (G, P, O / G) what the float layer gives there, before its activation.
        activation: "relu", "relu6" or None.
    """

    weight: Tensor
    scale: Tensor
    highest: int
    bias: Tensor
    inputs: Tensor
    targets: Tensor
    activation: str | None


@torch.no_grad()
def learn_codes(problem: Problem, spec: AdaRoundSpec, generator: torch.Generator) -> Tensor:
    """(G, O / G, K) float32 whole numbers: floor or ceiling of each weight in steps.

    Minimises equation 25 of the paper, the squared error behind the activation plus a regulariser
    that pushes each weight to one of the two codes, with Adam; equation 24 is the regulariser.
    The gradient is written out, which takes a third of the time of autograd.
    """
    scale = problem.scale.reshape(*problem.weight.shape[:2], 1)
    steps = (problem.weight / scale).clamp(-problem.highest, problem.highest)
    floor = steps.floor().clamp(-problem.highest, problem.highest - 1)
    up = (steps - floor).clamp(0, 1)
    unit = _plain_error(problem, (steps.round() - steps) * scale)
    if unit == 0.0:  # all weights lie on the grid, or nothing comes in
        return steps.round()
    up = torch.logit((up - GAMMA) / (ZETA - GAMMA))
    raw = torch.nn.Parameter(up)
    adam = torch.optim.Adam([raw], lr=spec.learning_rate)
    bias = problem.bias + _mean_error(problem)
    gain = scale * (problem.weight.numel() / unit)
    batch = _Batches(problem, generator)
    for iteration in range(spec.iterations):
        sigmoid = torch.sigmoid(raw)
        up = (sigmoid * (ZETA - GAMMA)).add_(GAMMA).clamp_(0, 1)
        slope = sigmoid.mul_(1 - sigmoid).mul_(ZETA - GAMMA)
        slope.mul_((up > 0) & (up < 1))
        grad = batch.gradient((floor + up).mul_(scale), bias).mul_(gain)
        share = iteration / spec.iterations
        if share >= WARM_UP:
            grad.add_(_push(up, share))
        raw.grad = grad.mul_(slope)
        adam.step()
    return _better(problem, bias, floor + (raw > 0), steps.round())


def _push(up: Tensor, share: float) -> Tensor:
    """The gradient of the regulariser: 1 - abs(2 up - 1) ** beta for each weight."""
    done = (share - WARM_UP) / (1 - WARM_UP)
    beta = BETAS[1] + (BETAS[0] - BETAS[1]) * 0.5 * (1 + math.cos(math.pi * done))
    off = (2 * up).sub_(1)
    return off.abs().pow_(beta - 1).mul_(off.sign()).mul_(-2 * beta * WEIGHT)


def _better(problem: Problem, bias: Tensor, learned: Tensor, nearest: Tensor) -> Tensor:
    """For each output the best of what was learned and what descents from there come to.

    The descents know nothing of the activation; what they come to is judged behind it.
    """
    best, least = learned, _errors(problem, bias, learned)
    for start in (learned, nearest):
        codes = _descended(problem, start)
        error = _errors(problem, bias, codes)
        best = torch.where((error < least)[:, :, None], codes, best)
        least = torch.minimum(error, least)
    return best


def _descended(problem: Problem, codes: Tensor) -> Tensor:
    """Codes of which none alone can be changed to its floor or ceiling for a smaller error.

    The error of each output is d S d, where d is what its weights are off and S the mean product
    of each two inputs. Few places tell little of many inputs: a part of the mean square, which
    grows with their ratio, is added to the diagonal and draws weights to the nearest code.
    """
    inputs, scale = problem.inputs, problem.scale.reshape(*codes.shape[:2], 1)
    places, width = inputs.shape[1:]
    products = torch.bmm(inputs.transpose(1, 2), inputs).div_(places)
    squares = products.diagonal(dim1=1, dim2=2)
    squares.add_(squares.mean(1, keepdim=True) * (width / places))
    steps = (problem.weight / scale).clamp(-problem.highest, problem.highest)
    both = steps.floor() + steps.ceil()  # of a weight on the grid, or beyond it, twice its code
    codes, scale = codes.clone(), scale[:, :, 0]
    slopes = torch.bmm(codes * scale[:, :, None] - problem.weight, products)
    for _ in range(SWEEPS):
        changed = False
        for k in range(width):
            change = (both[:, :, k] - 2 * codes[:, :, k]) * scale
            change *= change * (2 * slopes[:, :, k] + change * squares[:, None, k]) < 0
            if change.any():
                changed = True
                codes[:, :, k] += (change / scale).round()
                slopes.addcmul_(change[:, :, None], products[:, None, k])
        if not changed:
            break
    return codes


def _errors(problem: Problem, bias: Tensor, codes: Tensor) -> Tensor:
    """(G, O / G): the mean squared error of each output behind the activation."""
    weight = codes * problem.scale.reshape(*codes.shape[:2], 1)
    low, high = _CEILINGS[problem.activation]
    found = torch.baddbmm(bias, problem.inputs, weight.transpose(1, 2)).clamp_(low, high)
    return found.sub_(problem.targets.clamp(low, high)).square_().mean(1)


class _Batches:
    """The samples of a problem in one random order, a few of them at a time, again and again."""

    def __init__(self, problem: Problem, generator: torch.Generator) -> None:
        groups, places, width = problem.inputs.shape
        order = torch.randperm(places, generator=generator).to(problem.inputs.device)
        # Shuffled once: slices are free, while picking rows takes longer than to multiply them.
        self._inputs = problem.inputs[:, order]
        self._targets = problem.targets[:, order]
        self._limits = _CEILINGS[problem.activation]
        self._size = min(places, max(32, min(BATCH, MOST_VALUES // (groups * width))))
        self._start = 0

    def gradient(self, weight: Tensor, bias: Tensor) -> Tensor:
        """(G, O / G, K): of half the mean squared error of one batch, summed over the outputs."""
        if self._start + self._size > self._inputs.shape[1]:
            self._start = 0
        chosen = slice(self._start, self._start + self._size)
        self._start += self._size
        inputs, wanted = self._inputs[:, chosen], self._targets[:, chosen]
        found = torch.baddbmm(bias, inputs, weight.transpose(1, 2))
        low, high = self._limits
        inside = (found > low) & (found < high)
        off = found.clamp_(low, high).sub_(wanted.clamp(low, high)).mul_(inside)
        return torch.bmm(off.transpose(1, 2), inputs).div_(self._size)


def _plain_error(problem: Problem, change: Tensor) -> float:
    """The mean square, summed over the outputs, of what a change of the weights does."""
    error = torch.bmm(problem.inputs, change.transpose(1, 2))
    return float(error.square().sum(2).mean(1).sum())


def _mean_error(problem: Problem) -> Tensor:
    """(G, 1, O / G): what the float weights are off on average, through their inputs alone."""
    found = torch.baddbmm(problem.bias, problem.inputs, problem.weight.transpose(1, 2))
    return (problem.targets - found).mean(1, keepdim=True)
