import math

import pytest
import torch
import torch.nn.functional as F

from hatcli.errors import ConfigError
from hatcli.losses import LOSSES
from hatcli.losses.cross_entropy import CrossEntropy
from hatcli.losses.multi_stride import labels_where_all_agree
from hatcli.losses.softmax_focal import SoftmaxFocal

MATCHES = ("nearest", "agree", "upsample")
MAP_LOSSES = [  # those that also take label maps; test_soft_target.py has the others
    name for name in LOSSES.names() if "match" in {p.name for p in LOSSES.part(name).parameters}
]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape, classes=5, ignored=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(0, classes, shape, generator=generator).to(torch.uint8)
    return made.masked_fill(torch.rand(shape, generator=generator) < ignored, 255)


def blocky_labels(height, width, block, seed=0):
    return (
        labels(1, height // block, width // block, seed=seed)
        .repeat_interleave(block, 1)
        .repeat_interleave(block, 2)
    )


# What every loss of label maps keeps


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_loss_of_a_single_head_is_a_finite_scalar_with_a_finite_gradient(name):
    scores = noise(2, 5, 8, 8).requires_grad_()
    loss = LOSSES.build({"type": name})(scores, labels(2, 32, 32))
    loss.backward()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() > 0
    assert scores.grad.isfinite().all()
    assert scores.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_loss_of_several_heads_reaches_each_of_them(name):
    heads = tuple(noise(2, 5, 32 // s, 32 // s, seed=s).requires_grad_() for s in (2, 4))
    LOSSES.build({"type": name})(heads, blocky_labels(32, 32, 8).expand(2, 32, 32)).backward()
    assert all(head.grad.abs().sum() > 0 for head in heads)


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_a_batch_without_a_label_gives_zero_with_a_zero_gradient(name):
    scores = noise(1, 5, 4, 4).requires_grad_()
    loss = LOSSES.build({"type": name})(scores, torch.full((1, 16, 16), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros(1, 5, 4, 4))


@pytest.mark.parametrize("name", MAP_LOSSES)
@pytest.mark.parametrize("size", [1e4, 1e-30])
def test_extreme_scores_stay_finite(name, size):
    scores = (noise(1, 5, 4, 4).sign() * size).requires_grad_()
    loss = LOSSES.build({"type": name})(scores, labels(1, 4, 4))
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_loss_is_computed_in_float32_under_autocast(name):
    loss = LOSSES.build({"type": name})
    scores, targets = noise(1, 5, 4, 4).bfloat16(), labels(1, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss(scores, targets)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, loss(scores.float(), targets))


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_class_weights_move_with_the_loss_and_are_not_saved(name):
    loss = LOSSES.build({"type": name, "class_weights": [1, 2, 3, 4, 5]})
    assert loss.double().class_weights.dtype == torch.float64
    assert not loss.state_dict()  # a loss has nothing to learn, so nothing to save


# The two losses against torch and by hand


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 0.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_equal_sizes_is_that_of_torch(weights, smoothing):
    scores, targets = noise(2, 5, 6, 7), labels(2, 6, 7)
    theirs = torch.nn.CrossEntropyLoss(
        None if weights is None else torch.tensor(weights),
        ignore_index=255,
        label_smoothing=smoothing,
    )(scores, targets.long())
    mine = CrossEntropy(class_weights=weights, label_smoothing=smoothing)(scores, targets)
    torch.testing.assert_close(mine, theirs)


def test_cross_entropy_of_whole_images_is_that_of_torch():
    scores, targets = noise(4, 5), torch.tensor([0, 4, 2, 2])
    torch.testing.assert_close(CrossEntropy()(scores, targets), F.cross_entropy(scores, targets))


def test_cross_entropy_upsampled_is_that_of_torch_on_enlarged_scores():
    scores, targets = noise(1, 5, 4, 8), labels(1, 16, 32)
    enlarged = F.interpolate(scores, (16, 32), mode="bilinear", align_corners=False)
    theirs = F.cross_entropy(enlarged, targets.long(), ignore_index=255)
    torch.testing.assert_close(CrossEntropy(match="upsample")(scores, targets), theirs)


def test_softmax_focal_by_hand():
    # p = 3/4 and 1/4 of the true class: 0.25 * (1/16 * ln 4/3 + 9/16 * ln 4) / 2
    scores = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    expected = 0.25 * (math.log(4 / 3) / 16 + 9 * math.log(4) / 16) / 2
    assert SoftmaxFocal()(scores, torch.tensor([0, 0])).item() == pytest.approx(expected)


def test_softmax_focal_with_gamma_0_is_alpha_times_cross_entropy():
    scores, targets = noise(2, 5, 6, 7), labels(2, 6, 7)
    weights = [1.0, 2.0, 0.5, 1.0, 3.0]
    focal = SoftmaxFocal(alpha=0.5, gamma=0.0, match="nearest", class_weights=weights)
    entropy = CrossEntropy(class_weights=weights)
    torch.testing.assert_close(focal(scores, targets), 0.5 * entropy(scores, targets))


def test_softmax_focal_has_the_gradient_of_its_formula():
    scores, targets = noise(3, 4).double().requires_grad_(), torch.tensor([1, 0, 3])
    probability = scores.softmax(1)[torch.arange(3), targets]
    (0.25 * (1 - probability) ** 2 * -probability.log()).mean().backward()
    expected, scores.grad = scores.grad, None
    SoftmaxFocal()(scores, targets).backward()
    torch.testing.assert_close(scores.grad, expected, rtol=1e-5, atol=1e-7)


def test_softmax_focal_with_a_gamma_below_1_is_differentiable_at_certainty():
    scores = torch.tensor([[200.0, 0.0]], requires_grad=True)
    SoftmaxFocal(gamma=0.5)(scores, torch.tensor([0])).backward()
    assert torch.equal(scores.grad, torch.zeros(1, 2))


# Labels and scores of different sizes


def test_nearest_takes_the_label_at_the_centre_of_the_cell():
    targets = torch.full((1, 4, 8), 255, dtype=torch.uint8)
    targets[0, 1, 1], targets[0, 1, 5] = 3, 1
    scores = noise(1, 5, 1, 2)
    expected = F.cross_entropy(scores, torch.tensor([[[3, 1]]]))
    torch.testing.assert_close(CrossEntropy()(scores, targets), expected)


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
def test_agreement_is_where_the_bilinearly_sampled_one_hot_map_is_whole(stride):
    targets = blocky_labels(66, 96, 3)[:, :64]
    one_hot = F.one_hot(targets.long(), 256)[..., :5].permute(0, 3, 1, 2).float()
    size = (64 // stride, 96 // stride)
    sampled = F.interpolate(one_hot, size, mode="bilinear", align_corners=False).int()
    mine = labels_where_all_agree(targets, size, 255)
    assert torch.equal(mine != 255, sampled.any(1))
    assert torch.equal(mine[mine != 255], sampled.argmax(1)[mine != 255])
    assert (mine == 255).any()
    assert stride > 8 or (mine != 255).any()


def test_agreement_reads_only_the_middle_of_the_cell():
    targets = torch.zeros(1, 4, 8, dtype=torch.uint8)
    targets[0, 0, 0] = 1  # a corner of the first cell, which is not sampled
    targets[0, 2, 6] = 1  # in the middle of the second cell
    assert labels_where_all_agree(targets, (1, 2), 255).tolist() == [[[0, 255]]]


def test_cells_without_agreement_carry_no_loss_but_count_in_the_mean():
    targets = torch.zeros(1, 4, 8, dtype=torch.uint8)
    targets[0, 2, 6] = 1
    scores = noise(1, 5, 1, 2).requires_grad_()
    loss = CrossEntropy(match="agree")(scores, targets)
    loss.backward()
    expected = F.cross_entropy(scores[..., :1], torch.zeros(1, 1, 1, dtype=torch.long)) / 2
    torch.testing.assert_close(loss, expected)
    assert torch.equal(scores.grad[..., 1], torch.zeros(1, 5, 1))


def test_ignored_cells_do_not_count_in_the_mean_of_nearest_and_upsample():
    scores, targets = noise(1, 5, 1, 2), torch.full((1, 4, 8), 255, dtype=torch.uint8)
    targets[0, :, :4] = 2
    expected = F.cross_entropy(scores[..., :1], torch.full((1, 1, 1), 2))
    torch.testing.assert_close(CrossEntropy(match="nearest")(scores, targets), expected)


@pytest.mark.parametrize("match", MATCHES)
def test_any_ratio_of_sizes_works(match):
    scores, targets = noise(2, 5, 7, 9).requires_grad_(), labels(2, 30, 41)
    loss = SoftmaxFocal(match=match)(scores, targets)
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()


# Weights


def test_stride_weights_multiply_the_loss_of_each_head():
    heads, targets = (noise(1, 5, 8, 8), noise(1, 5, 4, 4, seed=1)), labels(1, 16, 16)
    plain = CrossEntropy()
    expected = 3 * plain(heads[0], targets) + 0.5 * plain(heads[1], targets)
    weighted = CrossEntropy(stride_weights=[3.0, 0.5])
    torch.testing.assert_close(weighted(heads, targets), expected)
    torch.testing.assert_close(weighted(heads[0], targets), plain(heads[0], targets))


def test_a_wrong_number_of_stride_weights_is_refused():
    heads = (noise(1, 5, 8, 8), noise(1, 5, 4, 4))
    with pytest.raises(ConfigError, match="5 stride_weights for the 2 heads of the model"):
        SoftmaxFocal(stride_weights=[1.0] * 5)(heads, labels(1, 16, 16))


def test_a_wrong_number_of_class_weights_is_refused():
    with pytest.raises(ConfigError, match="2 class_weights for the 5 classes of the model"):
        CrossEntropy(class_weights=[1.0, 2.0])(noise(1, 5, 4, 4), labels(1, 4, 4))


def test_inverse_sqrt_weights_have_mean_1_over_the_pixels_and_forget_absent_classes():
    loss = CrossEntropy(class_weights="inverse_sqrt", class_pixels=[100, 25, 0])
    common, rare, absent = loss.class_weights.tolist()
    assert rare == pytest.approx(2 * common)
    assert (100 * common + 25 * rare) / 125 == pytest.approx(1)
    assert absent == 0


def test_inverse_sqrt_weights_without_known_pixels_are_refused():
    with pytest.raises(ConfigError, match="'inverse_sqrt' needs the number of pixels") as refusal:
        LOSSES.build({"type": "SoftmaxFocal", "class_weights": "inverse_sqrt"})
    assert refusal.value.hint == "give a list of numbers, one a class"


def test_a_config_cannot_name_an_unknown_way_to_match():
    with pytest.raises(ConfigError, match="match must be Literal"):
        LOSSES.build({"type": "CrossEntropy", "match": "linear"})
