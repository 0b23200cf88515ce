import contextlib
import copy
import io
import json
import math
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hatcli.data.datasets.mscoco import CocoDetection, CocoDetectionRaw, annotation_document
from hatcli.data.loader import Loader
from hatcli.data.packs.reader import open_pack
from hatcli.errors import ConfigError, DataError
from hatcli.metrics import METRICS
from hatcli.metrics.coco_ap import NAMES, CocoAP
from hatcli.recipes.packing.pack import pack

pytest.importorskip("faster_coco_eval")
pycocotools = pytest.importorskip("pycocotools")


def made_document(images: int, seed: int, categories: int = 5) -> dict:
    """Objects of all sizes, crowds, and images without any; ids that aren't in order."""
    rng = np.random.default_rng(seed)
    document: dict = {
        "images": [{"id": int(number) * 3 + 5} for number in rng.permutation(images)],
        "categories": [{"id": 2 * k + 1, "name": f"class {k}"} for k in range(categories)],
        "annotations": [],
    }
    for image in document["images"][: -images // 5]:
        for _ in range(rng.integers(1, 9)):
            width, height = np.exp(rng.uniform(1.5, 5.5, 2)).round(2)
            box = [*rng.uniform(0, 300, 2).round(2), width, height]
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.integers(categories)) * 2 + 1,
                    "bbox": [float(edge) for edge in box],
                    "area": float(width * height * rng.uniform(0.4, 1)),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    return document


def made_results(document: dict, seed: int) -> list[dict]:
    """Detections of most objects, some twice or of a wrong class; many scores are equal."""
    rng = np.random.default_rng(seed)
    ids = [category["id"] for category in document["categories"]]
    results = []
    for annotation in document["annotations"]:
        sides = np.array(annotation["bbox"])[[2, 3, 2, 3]]
        for _ in range(rng.integers(0, 4)):
            box = np.array(annotation["bbox"]) + rng.normal(0, 0.1, 4) * sides
            box[2:] = np.maximum(box[2:], 0.5)
            right = rng.random() < 0.85
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"] if right else int(rng.choice(ids)),
                    "bbox": box.tolist(),
                    "score": float(rng.integers(0, 40)) / 40,
                }
            )
    return results


def official(document: dict, results: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """The twelve numbers of pycocotools and the AP of each class, as shares."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    masked = np.ma.masked_less(precision, 0)
    return evaluation.stats, masked.mean(axis=(0, 1)).filled(-1)


def corners(entries: list[dict]) -> np.ndarray:
    boxes = np.array([entry["bbox"] for entry in entries], float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def classes_of(entries: list[dict], document: dict) -> np.ndarray:
    ids = sorted(category["id"] for category in document["categories"])
    return np.array([ids.index(entry["category_id"]) for entry in entries], int)


def in_image(entries: list[dict], image_id: int) -> list[dict]:
    return [entry for entry in entries if entry["image_id"] == image_id]


def detection_of(results: list[dict], image_id: int, document: dict) -> dict:
    found = in_image(results, image_id)
    return {
        "boxes": torch.tensor(corners(found)),
        "scores": torch.tensor([one["score"] for one in found], dtype=torch.float64),
        "classes": torch.tensor(classes_of(found, document)),
    }


def target_of(document: dict, image_id: int) -> dict:
    found = in_image(document["annotations"], image_id)
    return {
        "boxes": corners(found),
        "classes": classes_of(found, document),
        "crowd": np.array([one["iscrowd"] for one in found], np.uint8),
        "areas": np.array([one["area"] for one in found]),
        "image_id": image_id,
    }


def assert_equal(values: dict[str, float], numbers: np.ndarray) -> None:
    """To the last digit but for the multiplication by 100; nan for what is unknown."""
    wanted = {name: 100 * x if x >= 0 else math.nan for name, x in zip(NAMES, numbers, strict=True)}
    assert {name: values[name] for name in NAMES} == pytest.approx(wanted, abs=1e-11, nan_ok=True)


@pytest.mark.parametrize("seed", range(4))
def test_the_twelve_numbers_are_those_of_pycocotools(seed):
    document = made_document(30, seed)
    results = made_results(document, seed + 100)
    numbers, of_classes = official(document, results)
    metric = CocoAP(classes=[category["name"] for category in document["categories"]])
    ids = [image["id"] for image in document["images"]]
    for start in range(0, len(ids), 7):
        batch = ids[start : start + 7]
        metric.update(
            [detection_of(results, number, document) for number in batch],
            [target_of(document, number) for number in batch],
        )
    values = metric.compute()
    assert (numbers > 0.02).all()  # every size, and crowds, take part
    assert any(annotation["iscrowd"] for annotation in document["annotations"])
    assert_equal(values, numbers)
    own = [values[f"AP.class {k}"] for k in range(5)]
    assert own == pytest.approx((100 * of_classes).tolist(), abs=1e-11)


@pytest.mark.skipif("HAT_TEST_DATA" not in os.environ, reason="real COCO images")
def test_the_twelve_numbers_of_real_annotations_through_a_pack(tmp_path):
    with tarfile.open(Path(os.environ["HAT_TEST_DATA"]) / "coco.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    for _ in pack("mscoco", tmp_path / "coco", tmp_path, "val", num_workers=0):
        pass
    document = json.loads((tmp_path / "coco/annotations/instances_val2017.json").read_text())
    results = made_results(document, 5)
    numbers, _ = official(document, results)
    with open_pack(tmp_path / "val_lmdb") as packed:
        assert_equal(
            scores_of(CocoDetection("val_lmdb", root=tmp_path), results, document), numbers
        )
        again, _ = official(annotation_document(packed), results)
        assert again.tolist() == numbers.tolist()
    raw = CocoDetectionRaw("val", "coco", root=tmp_path)
    assert_equal(scores_of(raw, results, document), numbers)


def scores_of(dataset, results: list[dict], document: dict) -> dict[str, float]:
    metric = METRICS.build({"type": "CocoAP"}, classes=dataset.classes)
    for batch in Loader(dataset, [], batch_size=4).epoch(0):
        ids = [int(target["image_id"]) for target in batch.targets]
        found = [detection_of(results, number, document) for number in ids]
        metric.update(found, batch.targets)
    return metric.compute()


def test_perfect_detections_have_all_of_it():
    target = {"boxes": [[10.0, 10, 60, 60], [0, 0, 9, 9]], "classes": [1, 0]}
    metric = CocoAP(3)
    metric.update([{**target, "scores": [0.5, 0.4]}], [target])
    values = metric.compute()
    assert values["mAP"] == values["AP_small"] == values["AP_medium"] == 100
    assert math.isnan(values["AP_large"])
    assert math.isnan(values["AP.2"])
    assert metric.best_by in values
    metric.reset()
    assert all(math.isnan(value) for value in metric.compute().values())


def test_images_without_detections_or_objects_count():
    metric = CocoAP(1)
    nothing = {"boxes": np.zeros((0, 4)), "classes": [], "scores": []}
    one = {"boxes": [[0.0, 0, 9, 9]], "classes": [0]}
    metric.update([nothing], [one])
    assert metric.compute()["mAP"] == 0
    metric.update([{**one, "scores": [0.9]}], [{"boxes": [], "classes": []}])
    metric.update([{**one, "scores": [0.8]}], [one])
    assert metric.compute()["AP50"] == pytest.approx(100 * 51 / 101 / 2)  # recall 0.5 at 1/2


ONE = {"boxes": [[0.0, 0, 9, 9]], "classes": [0]}


@pytest.mark.parametrize(
    ("detection", "target", "message"),
    [
        ({"scores": [0.5, 0.5]}, {}, r"scores of shape \(2,\) for 1 boxes"),
        ({"scores": [math.nan]}, {}, "a score is NaN"),
        ({"boxes": [[0, 0, 9]]}, {}, r"boxes of shape \(1, 3\), not \(M, 4\)"),
        ({"boxes": [[0, 0, math.inf, 9]]}, {}, "a detection box is NaN or infinite"),
        ({"classes": [3]}, {}, "classes from 3 to 3; they must be 0 to 2"),
        ({}, {"classes": [-1]}, "target classes from -1 to -1"),
        ({}, {"crowd": [0, 1]}, r"target crowd of shape \(2,\) for 1 boxes"),
    ],
)
@pytest.mark.parametrize("name", ["CocoAP", "VocAP"])
def test_what_does_not_fit_is_refused(name, detection, target, message):
    metric = METRICS.build({"type": name, "num_classes": 3})
    with pytest.raises(DataError, match=f"metric '{name}': .*{message}"):
        metric.update([{**ONE, "scores": [0.5], **detection}], [{**ONE, **target}])


@pytest.mark.parametrize("name", ["CocoAP", "VocAP"])
def test_what_is_missing_is_named(name):
    metric = METRICS.build({"type": name, "num_classes": 3})
    with pytest.raises(DataError, match="a detection has no 'scores'; it has"):
        metric.update([ONE], [ONE])
    with pytest.raises(DataError, match="detections of 1 images for 2 images"):
        metric.update([ONE], [ONE, ONE])
    with pytest.raises(ConfigError, match="how many classes"):
        METRICS.build({"type": name})
    with pytest.raises(ConfigError, match="num_classes is 3, the dataset has 2 classes"):
        METRICS.build({"type": name, "num_classes": 3}, classes=["a", "b"])


def test_an_image_that_comes_twice_is_refused():
    metric = CocoAP(1)
    target = {**ONE, "image_id": 139}
    metric.update([{**ONE, "scores": [0.5]}], [target])
    with pytest.raises(DataError, match="image 139 comes twice"):
        metric.update([{**ONE, "scores": [0.5]}], [target])


def test_without_the_library_the_install_line_is_the_hint(monkeypatch):
    monkeypatch.setattr("hatcli.metrics.coco_ap.LIBRARY", "no_such_library")
    with pytest.raises(ConfigError, match="'CocoAP' needs faster-coco-eval") as caught:
        CocoAP(2)
    assert caught.value.hint == "pip install 'hatcli[det]'"
