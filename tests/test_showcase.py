"""What an evaluation keeps for the page of its run: confused classes, best and worst pictures."""

import math

import torch
from made_run import COUNTS, NAMES, metric_of

from hatcli.metrics.accuracy import Accuracy
from hatcli.metrics.mean_iou import MeanIoU
from hatcli.recipes.reporting.showcase import Showcase
from hatcli.recipes.runs.confusion import FILE, load_confusion, save_confusion


def test_a_confusion_comes_back_as_it_was_saved(tmp_path):
    save_confusion(tmp_path, metric_of(COUNTS))
    counts, names = load_confusion(tmp_path)
    assert counts.tolist() == COUNTS.tolist()
    assert names == NAMES
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text()[:30])
    assert load_confusion(tmp_path) is None


def test_a_metric_that_counts_no_pairs_leaves_no_file(tmp_path):
    save_confusion(tmp_path, Accuracy())  # has seen nothing
    save_confusion(tmp_path, object())
    assert list(tmp_path.iterdir()) == []
    assert load_confusion(tmp_path) is None


def segmented(showcase, predicted, labels, names):
    images = torch.zeros(len(names), 3, *labels.shape[1:], dtype=torch.uint8)
    scores = torch.nn.functional.one_hot(predicted.long(), 3).permute(0, 3, 1, 2).float()
    showcase(images, scores, labels, names)


def test_the_best_and_worst_pictures_are_those_of_the_highest_and_lowest_miou():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (12, 8, 8), generator=generator).to(torch.uint8)
    predicted = labels.clone()
    wrong = torch.randperm(12, generator=generator).tolist()
    for number, count in enumerate(wrong):
        rows = predicted[number].view(-1)
        rows[:count] = (rows[:count] + 1) % 3
    labels[:, -2:] = 255  # doesn't count
    names = [f"s{number}" for number in range(12)]
    showcase = Showcase("segmentation", NAMES, 3)
    for start in (0, 5, 10):
        part = slice(start, start + 5)
        segmented(showcase, predicted[part], labels[part], names[part])

    def by_metric(number):
        metric = MeanIoU(3, NAMES)
        scores = torch.nn.functional.one_hot(predicted[number : number + 1].long(), 3)
        metric.update(scores.permute(0, 3, 1, 2).float(), labels[number : number + 1])
        return metric.compute()["mIoU"]

    order = sorted(range(12), key=by_metric)
    assert [one.name for one in showcase.worst] == [names[n] for n in order[:3]]
    assert [one.name for one in showcase.best] == [names[n] for n in order[:-4:-1]]
    assert showcase.seen == 12
    assert showcase.best[0].label.shape == (6, 8)  # the rows that don't count are cut off
    assert showcase.worst[0].lines[0].startswith(f"mIoU {by_metric(order[0]):.1f} %, ")


def test_a_picture_of_a_small_set_is_shown_once():
    labels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    showcase = Showcase("segmentation", NAMES, 2)
    segmented(showcase, labels, labels, ["a", "b", "c"])
    assert [one.name for one in showcase.best] == ["a", "b"]
    assert not {one.name for one in showcase.worst} & {"a", "b"}


def test_pictures_without_any_label_are_not_judged():
    labels = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    showcase = Showcase("segmentation", NAMES, 2)
    segmented(showcase, torch.zeros(1, 4, 4), labels, ["a"])
    assert (showcase.best, showcase.worst, showcase.seen) == ([], [], 0)


def test_classified_pictures_are_ordered_by_the_probability_of_the_label():
    scores = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [1.0, 0.5, 0.0], [math.nan, 0, 0]])
    showcase = Showcase("classification", NAMES, 2)
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    showcase(images, scores, torch.tensor([0, 0, 0, 0]), ["sure", "wrong", "close", "broken"])
    assert [one.name for one in showcase.best] == ["sure", "close"]
    assert [one.name for one in showcase.worst] == ["broken", "wrong"]
    assert showcase.worst[1].lines[0] == "road: wrong"
    assert showcase.worst[1].lines[1].startswith("predicted: car 98.7 %, ")
