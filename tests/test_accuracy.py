import math

import pytest
import torch

from hatcli.errors import ConfigError, DataError
from hatcli.metrics import METRICS
from hatcli.metrics.accuracy import Accuracy, places_of


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def score(metric, scores, targets):
    metric.update(scores, targets)
    return metric.compute()


SCORES = torch.tensor(
    [
        [9.0, 1, 2, 3, 4, 5, 6],  # order: 0 6 5 4 3 2 1
        [9.0, 1, 2, 3, 4, 5, 6],
        [9.0, 1, 2, 3, 4, 5, 6],
        [0.0, 1, 2, 3, 4, 5, 6],  # order: 6 5 4 3 2 1 0
    ]
)
LABELS = torch.tensor([0, 3, 2, 6])


def test_accuracy_by_hand():
    assert score(Accuracy(), SCORES, LABELS) == {"top1": 50.0, "top5": 75.0}
    assert score(Accuracy([6, 2]), SCORES, LABELS) == {"top2": 50.0, "top6": 100.0}
    assert places_of(SCORES, LABELS).tolist() == [0, 4, 5, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_accuracy_is_that_of_topk(dtype):
    scores = noise(200, 50).argsort(1).to(dtype)  # no ties, also in bfloat16
    targets = torch.randint(0, 50, (200,), generator=torch.Generator().manual_seed(1))
    hits = scores.topk(7, 1).indices == targets[:, None]
    expected = {f"top{k}": 100 * hits[:, :k].any(1).double().mean().item() for k in (1, 3, 7)}
    assert score(Accuracy([1, 3, 7]), scores, targets) == pytest.approx(expected)


def test_of_equal_scores_the_lower_class_comes_first_as_argmax_has_it():
    scores = noise(300, 20).mul(1.5).round()  # few levels, so nearly all rows have ties at the top
    targets = torch.randint(0, 20, (300,), generator=torch.Generator().manual_seed(1))
    places = places_of(scores, targets)
    assert torch.equal(places == 0, scores.argmax(1) == targets)
    stable = scores.sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(places, (stable == targets[:, None]).int().argmax(1))


def test_an_argmax_inside_the_model_scores_the_same_top1_and_no_top5():
    scores = noise(300, 20).round()
    targets = torch.randint(0, 20, (300,), generator=torch.Generator().manual_seed(1))
    expected = score(Accuracy(num_classes=20), scores, targets)["top1"]
    for indices in (scores.argmax(1), scores.argmax(1, keepdim=True), scores.argmax(1).int()):
        values = score(Accuracy(num_classes=20), indices, targets)
        assert values["top1"] == expected
        assert math.isnan(values["top5"])


def test_scores_with_a_nan_are_wrong_for_every_k():
    scores = torch.tensor([[math.nan, 1.0], [2.0, math.nan], [1.0, 0.0]])
    assert score(Accuracy([1, 2]), scores, torch.zeros(3).long()) == {
        "top1": pytest.approx(100 / 3),
        "top2": pytest.approx(100 / 3),
    }


def test_infinite_scores_are_ranked():
    scores = torch.tensor([[math.inf, 1.0, -math.inf]])
    assert [places_of(scores, torch.tensor([k])).item() for k in range(3)] == [0, 1, 2]


def test_integer_scores_are_scores():
    assert score(Accuracy(), SCORES.to(torch.int8), LABELS) == {"top1": 50.0, "top5": 75.0}


def test_of_several_heads_the_first_is_counted():
    assert score(Accuracy(), (SCORES, -SCORES), LABELS)["top1"] == 50


def test_nothing_counted_is_nan_and_all_names_are_known():
    metric = Accuracy(num_classes=5, per_class=True)
    metric.update(torch.zeros(0, 5), torch.zeros(0).long())
    values = metric.compute()
    assert list(values) == ["top1", "top5", *(f"acc.{label}" for label in range(5))]
    assert all(math.isnan(value) for value in values.values())


def test_accuracy_by_class_is_told_when_asked_for():
    names = ["tram", "crane", "van", "crane", "car", "bus", "bike"]
    metric = METRICS.build({"type": "Accuracy", "per_class": True}, classes=names)
    metric.update(SCORES, LABELS)
    metric.update(SCORES[:1], torch.tensor([6]))
    values = metric.compute()
    assert values["acc.tram"] == 100
    assert values["acc.bike"] == 50
    assert values["acc.crane#3"] == 0  # of two classes of one name neither is lost
    assert math.isnan(values["acc.crane#1"])
    assert metric.class_counts.tolist()[6] == [1, 2]
    assert "acc.tram" not in Accuracy(classes=names).compute()


def test_counts_of_two_processes_add_up():
    whole, parts = Accuracy(), [Accuracy(), Accuracy()]
    whole.update(SCORES, LABELS)
    parts[0].update(SCORES[:1], LABELS[:1])
    parts[1].update(SCORES[1:], LABELS[1:])
    parts[0].counts += parts[1].counts
    assert parts[0].compute() == whole.compute()


def test_the_best_checkpoint_is_by_the_smallest_k():
    assert Accuracy().best_by == "top1"
    assert Accuracy([5, 3]).best_by == "top3"


# Wrong input


def test_more_than_all_classes_is_an_error_as_soon_as_it_is_known():
    with pytest.raises(ConfigError, match="top5 of 3 classes") as refusal:
        Accuracy(classes=["a", "b", "c"])
    assert refusal.value.hint == "set metric.topk=[1]"
    with pytest.raises(ConfigError, match="top5 of 4 classes"):
        Accuracy().update(noise(2, 4), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (noise(2, 7), torch.tensor([0, 7]), "labels from 0 to 7; they must be 0 to 6"),
        (noise(2, 7), torch.tensor([-1, 2]), "labels from -1 to 2"),
        (torch.tensor([0, 1]), torch.tensor([0, 7]), "labels from 0 to 7; they must be 0 to 6"),
        (noise(2, 6), torch.tensor([0, 1]), "scores of 6 classes for 7 classes"),
        (noise(2, 7), torch.tensor([0, 1, 2]), r"scores \(2, 7\) and labels \(3,\)"),
        (noise(2, 7, 1, 1), torch.tensor([0, 1]), r"scores \(2, 7, 1, 1\)"),
        (noise(2), torch.tensor([0, 1]), r"scores \(2,\)"),
        (noise(2, 7), torch.zeros(2, 4, 4).long(), r"labels \(2, 4, 4\)"),
    ],
)
def test_what_does_not_fit_is_an_error_and_counts_nothing(scores, targets, message):
    metric = Accuracy(num_classes=7)
    with pytest.raises(DataError, match=message):
        metric.update(scores, targets)
    assert not metric.counts.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topk": []}, "topk must be numbers above 0"),
        ({"topk": [0, 1]}, "topk must be numbers above 0"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"num_classes": 3, "classes": ["a", "b"]}, "num_classes is 3, the dataset has 2 classes"),
        ({"per_class": True}, "per_class needs the number of classes"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Accuracy(**arguments)
