import math

import numpy as np
import pytest

from hatcli.errors import ConfigError
from hatcli.metrics.voc_ap import VocAP, overlaps_of

BOX = [0.0, 0, 10, 10]
FAR = [50.0, 50, 60, 60]


def truth(boxes: list, difficult: list | None = None) -> dict:
    target = {"boxes": boxes, "classes": [0] * len(boxes)}
    return target if difficult is None else {**target, "difficult": difficult}


def found(boxes: list, scores: list) -> dict:
    return {"boxes": boxes, "classes": [0] * len(boxes), "scores": scores}


def ap(pairs: list[tuple[dict, dict]], **settings) -> float:
    metric = VocAP(1, **settings)
    for detection, target in pairs:
        metric.update([detection], [target])
    return metric.compute()["AP.0"]


# By hand


def test_area_and_eleven_points_by_hand():
    # In the order of scores: right, wrong, right; a third object is never found.
    pairs = [
        (found([BOX, FAR], [0.9, 0.8]), truth([BOX])),
        (found([BOX], [0.7]), truth([BOX, FAR])),
    ]
    # Precision 1 up to recall 1/3, then 2/3 up to recall 2/3.
    assert ap(pairs) == pytest.approx(100 * (1 / 3 + 2 / 3 / 3))
    assert ap(pairs, year=2007) == pytest.approx(100 * (4 * 1 + 3 * 2 / 3) / 11)


def test_a_second_detection_of_an_object_is_wrong():
    assert ap([(found([BOX, BOX], [0.9, 0.8]), truth([BOX]))]) == 100
    assert ap([(found([BOX, BOX, FAR], [0.9, 0.8, 0.7]), truth([BOX, FAR]))]) == pytest.approx(
        100 * (1 / 2 + 2 / 3 / 2)
    )


def test_a_difficult_object_is_neither_found_nor_missed():
    target = truth([BOX, FAR], [0, 1])
    assert ap([(found([FAR, FAR, BOX], [0.9, 0.8, 0.7]), target)]) == 100
    assert ap([(found([BOX], [0.7]), target)]) == 100
    assert math.isnan(ap([(found([BOX], [0.7]), truth([BOX], [1]))]))


def test_a_detection_goes_to_the_object_that_it_overlaps_most_though_that_is_taken():
    near = [0.0, 0, 10, 9]
    detections = found([BOX, [0.0, 0, 10, 9.8]], [0.9, 0.8])
    # The second one overlaps `near` by 0.92 and the taken one by 0.98.
    assert ap([(detections, truth([BOX, near]))]) == 50


def test_half_is_enough_and_a_little_less_is_not():
    assert ap([(found([[0, 0, 10, 5]], [0.9]), truth([BOX]))]) == 100
    assert ap([(found([[0, 0, 10, 4.99]], [0.9]), truth([BOX]))]) == 0
    assert ap([(found([[0, 0, 10, 5]], [0.9]), truth([BOX]))], min_iou=0.6) == 0


def test_recalls_are_reached_exactly():
    """3 of 10 is a recall of 0.3; in binary fractions 0.1 * 3 is a little more."""
    places = [[20.0 * k, 0, 20.0 * k + 10, 10] for k in range(10)]
    for hits in range(11):
        detections = found(places[:hits], [0.5] * hits)
        assert ap([(detections, truth(places))], year=2007) == pytest.approx(
            100 * (hits + 1 if hits else 0) / 11
        )


def test_equal_scores_are_taken_in_the_order_of_the_images():
    wrong, right = (found([FAR], [0.5]), truth([])), (found([BOX], [0.5]), truth([BOX]))
    assert ap([right, wrong]) == 100
    assert ap([wrong, right]) == 50


def test_nothing_found_is_zero_and_nothing_to_find_is_nan():
    assert ap([(found([], []), truth([BOX]))]) == 0
    metric = VocAP(classes=["cat", "dog"])
    assert math.isnan(metric.compute()["mAP"])
    metric.update([found([BOX, FAR], [0.9, 0.1])], [truth([BOX])])
    values = metric.compute()
    assert (values["mAP"], values["AP.cat"]) == (100, 100)
    assert math.isnan(values["AP.dog"])
    assert metric.best_by == "mAP"
    metric.reset()
    assert math.isnan(metric.compute()["mAP"])


def test_overlaps_of_empty_and_apart_boxes_are_zero():
    boxes = np.array([BOX, FAR, [5, 5, 5, 5]])
    assert overlaps_of(boxes, boxes).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


# Against a plain reading of VOC's own evaluation, in the pixels of its files


def plain_nearest(box: list, entries: list) -> tuple:
    best, nearest = -1.0, None
    for entry in entries:
        other = entry[0]
        width = min(box[2], other[2]) - max(box[0], other[0]) + 1
        height = min(box[3], other[3]) - max(box[1], other[1]) + 1
        if width > 0 and height > 0:
            areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
            overlap = width * height / (sum(areas) - width * height)
            if overlap > best:
                best, nearest = overlap, entry
    return best, nearest


def plain_evaluation(images: list, label: int, year: int, min_iou: float = 0.5) -> float:
    """One class, as in the development kit: whole pixels from 1, both ends in the box."""
    objects = {}
    for number, image in enumerate(images):
        for box, name, difficult in zip(*image["objects"], strict=True):
            if name == label:
                objects.setdefault(number, []).append([box, difficult, False])
    positives = sum(not entry[1] for entries in objects.values() for entry in entries)
    lines = [
        (score, number, box)
        for number, image in enumerate(images)
        for box, name, score in zip(*image["found"], strict=True)
        if name == label
    ]
    right, wrong, curve = 0, 0, []
    for _, number, box in sorted(lines, key=lambda line: -line[0]):
        best, nearest = plain_nearest(box, objects.get(number, []))
        if best >= min_iou:
            if nearest[1]:
                continue
            right, wrong = right + (not nearest[2]), wrong + nearest[2]
            nearest[2] = True
        else:
            wrong += 1
        curve.append((right, right / (right + wrong)))
    if not positives:
        return math.nan
    if year < 2010:
        tops = [
            max((p for hits, p in curve if 10 * hits >= tenth * positives), default=0.0)
            for tenth in range(11)
        ]
        return 100 * sum(tops) / 11
    steps = [
        max((p for found, p in curve if found >= hits), default=0.0)
        for hits in range(1, positives + 1)
    ]
    return 100 * sum(steps) / positives


def made_images(seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(12):
        count = rng.integers(0, 7)
        low = rng.integers(1, 60, (count, 2))
        boxes = np.concatenate([low, low + rng.integers(6, 40, (count, 2))], 1)
        classes, difficult = rng.integers(0, 3, count), rng.random(count) < 0.2
        often = rng.integers(1, 4, count)
        moved = boxes.repeat(often, 0) + rng.integers(-4, 5, (often.sum(), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2])
        scores = rng.integers(0, 30, len(moved)) / 30
        images.append(
            {
                "objects": (boxes.tolist(), classes.tolist(), difficult.tolist()),
                "found": (moved.tolist(), classes.repeat(often).tolist(), scores.tolist()),
            }
        )
    return images


def edges(boxes: list) -> np.ndarray:
    """Pixels counted from 1, the last one in the box, as edges."""
    return np.array(boxes, float).reshape(-1, 4) - [1, 1, 0, 0]


@pytest.mark.parametrize("year", [2007, 2012])
def test_values_are_those_of_the_plain_evaluation(year):
    for seed in range(15):
        images = made_images(seed)
        metric = VocAP(3, year=year)
        for image in images:
            boxes, classes, difficult = image["objects"]
            target = {"boxes": edges(boxes), "classes": classes, "difficult": difficult}
            boxes, classes, scores = image["found"]
            detection = {"boxes": edges(boxes), "classes": classes, "scores": scores}
            metric.update([detection], [target])
        wanted = [plain_evaluation(images, label, year) for label in range(3)]
        values = metric.compute()
        assert [values[f"AP.{label}"] for label in range(3)] == pytest.approx(wanted, nan_ok=True)
        assert values["mAP"] == pytest.approx(np.nanmean(wanted))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"year": 2013}, "no challenge in 2013"), ({"min_iou": 0}, "min_iou must be above 0")],
)
def test_a_wrong_argument_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        VocAP(1, **settings)
