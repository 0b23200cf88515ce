import math

import pytest
import torch
import torch.nn.functional as F

from hatcli.errors import ConfigError
from hatcli.losses import LOSSES
from hatcli.losses.cross_entropy import CrossEntropy
from hatcli.losses.soft_target import SoftTargetCrossEntropy
from hatcli.losses.softmax_focal import SoftmaxFocal


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shares(images=8, classes=7):
    return noise(images, classes, seed=9).softmax(1)


def by_formula(scores, targets, smoothing):
    """-sum q log p in float64, q being the smoothed shares."""
    wanted = (1 - smoothing) * targets.double() + smoothing / targets.shape[1]
    return -(wanted * scores.double().log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_shares_of_classes_give_the_loss_of_torch(smoothing):
    scores, targets = 5 * noise(8, 7), shares()
    mine = SoftTargetCrossEntropy(smoothing)(scores, targets)
    theirs = F.cross_entropy(scores, targets, label_smoothing=smoothing)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
    expected = by_formula(scores, targets, smoothing).float()
    torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_a_class_index_is_a_share_of_1(smoothing, dtype):
    scores, labels = noise(4, 7), torch.tensor([6, 0, 3, 3])
    loss = SoftTargetCrossEntropy(smoothing)
    whole = loss(scores, F.one_hot(labels, 7).float())
    torch.testing.assert_close(loss(scores, labels.to(dtype)), whole, rtol=1e-6, atol=1e-6)


def test_two_equal_scores_cost_ln_2_whatever_the_shares():
    targets = torch.tensor([[0.3, 0.7], [1.0, 0.0]])
    loss = SoftTargetCrossEntropy(0.1)(torch.zeros(2, 2), targets)
    assert loss.item() == pytest.approx(math.log(2))


def test_the_gradient_is_softmax_minus_shares_over_the_images():
    scores, targets = noise(8, 7).requires_grad_(), shares()
    SoftTargetCrossEntropy()(scores, targets).backward()
    torch.testing.assert_close(scores.grad, (scores.detach().softmax(1) - targets) / 8)


@pytest.mark.parametrize("size", [1e4, 1e-30])
def test_extreme_scores_stay_finite(size):
    scores = (noise(8, 7).sign() * size).requires_grad_()
    loss = SoftTargetCrossEntropy(0.1)(scores, shares())
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()


def test_the_loss_is_computed_in_float32_under_autocast():
    loss = SoftTargetCrossEntropy(0.1)
    scores = noise(8, 7).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss(scores, shares())
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, loss(scores.float(), shares()))


def test_several_heads_add_up():
    loss, heads = SoftTargetCrossEntropy(), (noise(8, 7), noise(8, 7, seed=1))
    torch.testing.assert_close(
        loss(heads, shares()), loss(heads[0], shares()) + loss(heads[1], shares())
    )


@pytest.mark.parametrize(
    ("scores", "targets"),
    [
        (noise(4, 7), noise(4, 6).softmax(1)),
        (noise(4, 7), torch.zeros(3, dtype=torch.int64)),
        (noise(4, 7, 2, 2), torch.zeros(4, 2, 2, dtype=torch.int64)),
        (noise(4, 7, 2, 2), noise(4, 7, 2, 2).softmax(1)),
    ],
)
def test_scores_and_targets_that_do_not_fit_are_refused_with_both_shapes(scores, targets):
    with pytest.raises(ConfigError) as refusal:
        SoftTargetCrossEntropy()(scores, targets)
    assert str(tuple(scores.shape)) in refusal.value.message
    assert str(tuple(targets.shape)) in refusal.value.message


def test_a_smoothing_above_1_is_refused():
    with pytest.raises(ConfigError, match=r"label_smoothing must be from 0 to 1, got 1\.5"):
        LOSSES.build({"type": "SoftTargetCrossEntropy", "label_smoothing": 1.5})


# The losses of labels, on whole images


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_of_whole_images_smooths_as_torch_does(smoothing):
    scores, labels = noise(6, 1000), torch.tensor([0, 999, 17, 255, 500, 255])
    theirs = F.cross_entropy(scores, labels, label_smoothing=smoothing)
    mine = CrossEntropy(label_smoothing=smoothing)(scores, labels)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [CrossEntropy(), SoftmaxFocal()])
def test_class_255_of_1000_is_learnt_and_255_beyond_the_classes_is_not(loss):
    labels = torch.tensor([3, 255])
    for classes in (1000, 255):
        scores = noise(2, classes).requires_grad_()
        loss(scores, labels).backward()
        assert scores.grad[0].any()
        assert scores.grad[1].any() == (classes == 1000)


@pytest.mark.parametrize("name", ["CrossEntropy", "SoftmaxFocal"])
def test_losses_of_labels_refuse_shares_and_name_the_one_that_takes_them(name):
    with pytest.raises(ConfigError, match="targets are shares of classes") as refusal:
        LOSSES.build({"type": name})(noise(8, 7), shares())
    assert "loss.type=SoftTargetCrossEntropy" in refusal.value.hint
