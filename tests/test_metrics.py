import contextlib
import importlib.util
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hatcli.data.classes import CITYSCAPES, CITYSCAPES_CLASSES
from hatcli.errors import ConfigError, DataError
from hatcli.metrics import METRICS
from hatcli.metrics.mean_iou import MeanIoU, predictions

VOID = 255


def maps(rows):
    return torch.tensor([rows], dtype=torch.uint8)


def random_maps(seed, classes=19, shape=(2, 40, 56)):
    """Labels with some 255 and predictions that are often right, sometimes outside."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, shape, generator=generator)
    predicted = torch.randint(0, classes, shape, generator=generator)
    right = torch.rand(shape, generator=generator) < 0.6
    predicted[right] = targets[right]
    targets[torch.rand(shape, generator=generator) < 0.1] = VOID
    predicted[torch.rand(shape, generator=generator) < 0.05] = VOID
    return predicted.to(torch.uint8), targets.to(torch.uint8)


def plain_confusion(predicted, targets, classes):
    """The textbook way: a mask, then one pixel at a time."""
    confusion = np.zeros((classes, classes + 1), np.int64)
    for row, column in zip(targets.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if row != VOID:
            confusion[row, min(column, classes)] += 1
    return torch.from_numpy(confusion)


def same(first, second):
    return first.keys() == second.keys() and all(
        first[name] == second[name] or (math.isnan(first[name]) and math.isnan(second[name]))
        for name in first
    )


# What every metric keeps


OF_BOXES = {"CocoAP", "VocAP"}  # they take lists of detections and have tests of their own


@pytest.fixture(params=sorted({*METRICS.names()} - OF_BOXES))
def metric(request):
    accepted = [parameter.name for parameter in METRICS.part(request.param).parameters]
    return METRICS.build({"type": request.param, **dict.fromkeys({"num_classes"} & {*accepted}, 5)})


@pytest.fixture
def batch(metric):
    size = {"Accuracy": ()}.get(type(metric).__name__, (8, 8))  # whole images, or their pixels

    def made(seed):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(6, 5, *size, generator=generator)
        return scores, torch.randint(0, 5, (6, *size), generator=generator)

    return made


def test_values_are_percent_and_the_best_checkpoint_is_by_a_headline(metric, batch):
    metric.update(*batch(0))
    values = metric.compute()
    assert metric.best_by in values
    assert "." not in metric.best_by
    assert all(type(value) is float and 0 <= value <= 100 for value in values.values())


def test_reset_forgets_and_batches_add_up(metric, batch):
    metric.update(*batch(1))
    metric.reset()
    metric.update(*batch(2))
    metric.update(*batch(3))
    in_two = metric.compute()
    metric.reset()
    scores, targets = zip(batch(2), batch(3), strict=True)
    metric.update(torch.cat(scores), torch.cat(targets))
    assert same(metric.compute(), in_two)


# MeanIoU by hand


def test_mean_iou_by_hand():
    metric = MeanIoU(3, classes=["road", "car", "sky"])
    metric.update(maps([[0, 0, 1, 1], [0, 1, 1, 2]]), maps([[0, 0, 0, 1], [255, 1, 1, 1]]))
    values = metric.compute()
    assert values["IoU.road"] == pytest.approx(100 * 2 / 3)  # 2 hits, 1 miss
    assert values["IoU.car"] == pytest.approx(100 * 3 / 5)  # 3 hits, 1 miss, 1 false alarm
    assert values["IoU.sky"] == 0  # predicted once, never labelled
    assert values["mIoU"] == pytest.approx(100 * (2 / 3 + 3 / 5) / 3)
    assert values["mIoU_present"] == pytest.approx(100 * (2 / 3 + 3 / 5) / 2)
    assert values["mAcc"] == pytest.approx(100 * (2 / 3 + 3 / 4) / 2)
    assert values["aAcc"] == pytest.approx(100 * 5 / 7)


def test_a_prediction_outside_the_classes_is_a_miss_and_no_false_alarm():
    metric = MeanIoU(2)
    metric.update(maps([[0, 255, 7, 1]]), maps([[0, 0, 0, 1]]))
    values = metric.compute()
    assert values["IoU.0"] == pytest.approx(100 / 3)
    assert values["IoU.1"] == 100
    assert metric.confusion.tolist() == [[1, 0, 2], [0, 1, 0]]


def test_a_class_that_is_nowhere_is_nan_and_left_out_of_the_means():
    metric = MeanIoU(3)
    metric.update(maps([[0, 0]]), maps([[0, 0]]))
    values = metric.compute()
    assert math.isnan(values["IoU.2"])
    assert values["mIoU"] == values["mIoU_present"] == values["mAcc"] == 100


def test_predictions_on_ignored_pixels_count_nowhere():
    metric = MeanIoU(2)
    metric.update(maps([[0, 1, 1]]), maps([[0, 255, 255]]))
    assert math.isnan(metric.compute()["IoU.1"])


def test_nothing_labelled_is_nan_and_no_failure():
    metric = MeanIoU(2)
    metric.update(maps([[0, 1]]), maps([[255, 255]]))
    assert all(math.isnan(value) for value in metric.compute().values())


def test_any_label_can_be_the_ignored_one():
    metric = MeanIoU(3, ignore_index=1)
    metric.update(maps([[0, 1, 1]]), maps([[0, 1, 2]]))
    assert metric.confusion.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("classes", [2, 19, 255])
def test_confusion_is_that_of_counting_pixel_by_pixel(classes):
    predicted, targets = random_maps(seed=classes, classes=min(classes, 200))
    metric = MeanIoU(classes)
    metric.update(predicted, targets)
    assert metric.confusion.dtype == torch.int64
    assert torch.equal(metric.confusion, plain_confusion(predicted, targets, classes))


# Scores to index maps


def test_scores_are_compared_at_their_own_size_and_the_winner_repeated():
    scores = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    best = scores.argmax(1).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(predictions(scores, (12, 16)), best.to(torch.uint8))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bilinear_is_the_argmax_of_the_enlarged_scores(layout, dtype):
    scores = torch.randn(2, 5, 6, 8, generator=torch.Generator().manual_seed(0))
    scores = scores.to(dtype).contiguous(memory_format=layout)
    enlarged = F.interpolate(scores.float(), (24, 32), mode="bilinear", align_corners=False)
    mine = predictions(scores, (24, 32), "bilinear")
    assert torch.equal(mine, enlarged.argmax(1).to(torch.uint8))


def test_of_equal_scores_the_lowest_class_wins():
    scores = torch.zeros(1, 4, 2, 2)
    assert not predictions(scores, (4, 4)).any()
    assert not predictions(scores, (4, 4), "bilinear").any()


def test_an_index_map_is_taken_as_it_is_and_repeated():
    index = torch.tensor([[[[0, 300], [-1, 18]]]])
    expected = torch.tensor([[[0, 0, 255, 255], [255, 255, 18, 18]]], dtype=torch.uint8)
    assert torch.equal(predictions(index, (2, 4)), expected)
    assert torch.equal(predictions(index[:, 0], (2, 4)), expected)


def test_sizes_that_do_not_divide_take_the_cell_below_the_pixel():
    index = torch.arange(3, dtype=torch.uint8).view(1, 1, 3)
    assert predictions(index, (1, 7)).flatten().tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_of_several_heads_the_finest_is_scored():
    fine, coarse = F.one_hot(torch.tensor([[[0, 1]]]), 2).permute(0, 3, 1, 2).float(), 0
    metric = MeanIoU(2)
    metric.update((fine, coarse), maps([[0, 1]]))
    assert metric.compute()["mIoU"] == 100


def test_the_metric_upsamples_as_it_is_told():
    scores = torch.tensor([[[[1.0, 0.0, 0.0]], [[0.9, 0.9, 0.9]]]])
    sharp, smooth = MeanIoU(2), MeanIoU(2, upsample="bilinear")
    for metric in (sharp, smooth):
        metric.update(scores, torch.zeros(1, 1, 6, dtype=torch.uint8))
    assert sharp.confusion[0].tolist() == [2, 4, 0]
    assert smooth.confusion[0].tolist() == [1, 5, 0]


# Wrong input


def test_a_label_that_is_no_class_is_an_error():
    with pytest.raises(DataError, match=r"2 pixels have labels .* nor 255: \[3, 254\]"):
        MeanIoU(3).update(maps([[0, 0, 0]]), maps([[3, 254, 255]]))


def test_labels_outside_8_bits_are_an_error_and_do_not_wrap():
    with pytest.raises(DataError, match="labels from 0 to 256; they must be 0 to 255"):
        MeanIoU(3).update(maps([[0, 0]]), torch.tensor([[[0, 256]]]))


def test_scores_of_another_number_of_classes_are_an_error():
    with pytest.raises(DataError, match="scores of 4 channels for 3 classes"):
        MeanIoU(3).update(torch.zeros(1, 4, 2, 2), maps([[0, 0], [0, 0]]))


def test_names_that_do_not_fit_the_number_of_classes_are_refused():
    with pytest.raises(ConfigError, match="num_classes is 3, the dataset has 2 classes"):
        MeanIoU(3, classes=["road", "car"])


@pytest.mark.parametrize("classes", [0, 256])
def test_a_number_of_classes_that_8_bits_cannot_hold_is_refused(classes):
    with pytest.raises(ConfigError, match=f"num_classes={classes}"):
        MeanIoU(classes)


# The official scripts as a witness


@pytest.fixture(scope="module")
def official():
    name = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    if importlib.util.find_spec("cityscapesscripts") is None:
        pytest.skip("cityscapesscripts is not installed")
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")  # theirs, about old spellings
        scripts = importlib.import_module(name)
    scripts.args.evalInstLevelScore = False
    scripts.args.JSONOutput = False
    scripts.args.quiet = True
    return scripts


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_those_of_the_official_scripts(official, tmp_path, seed):
    train_ids = np.full(256, 255, np.uint8)
    for row in CITYSCAPES:
        if row.id >= 0:
            train_ids[row.id] = row.train_id
    generator = np.random.default_rng(seed)
    known = np.array([row.id for row in CITYSCAPES if row.id >= 0], np.uint8)
    used = generator.choice(known, 12 if seed else len(known), replace=False)  # some are absent
    pairs, metric = [], MeanIoU(19, classes=CITYSCAPES_CLASSES)
    for number in range(3):
        truth = generator.choice(used, (48, 80))
        predicted = np.where(
            generator.random((48, 80)) < 0.7, truth, generator.choice(known, (48, 80))
        )
        paths = [str(tmp_path / f"{kind}{number}.png") for kind in ("predicted", "truth")]
        for path, labels in zip(paths, (predicted, truth), strict=True):
            Image.fromarray(labels).save(path)
        pairs.append(paths)
        metric.update(*(torch.from_numpy(train_ids[m])[None] for m in (predicted, truth)))
    theirs = official.evaluateImgLists(*map(list, zip(*pairs, strict=True)), official.args)
    mine = metric.compute()
    assert mine["mIoU"] == pytest.approx(100 * theirs["averageScoreClasses"], abs=1e-9)
    for name in CITYSCAPES_CLASSES:
        expected = pytest.approx(100 * theirs["classScores"][name], abs=1e-9, nan_ok=True)
        assert mine[f"IoU.{name}"] == expected
