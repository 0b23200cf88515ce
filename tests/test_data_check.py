import json
import shutil

import numpy as np
import pytest
from made_cityscapes import make_cityscapes, pack_cityscapes
from made_imagenet import make_imagenet, pack_imagenet
from made_voc import file_of, make_voc
from tiny import write_tiny_config

from hatcli.cli import run
from hatcli.data.facts import Rules, Totals, facts_of, look_at
from hatcli.data.packs.reader import open_pack
from hatcli.errors import DataError
from hatcli.events import finish
from hatcli.recipes.data.check import check_sources
from hatcli.recipes.data.source import Source
from hatcli.recipes.packing.pack import pack

HEIGHT, WIDTH = 6, 8
RULES = Rules(num_classes=3)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def mapped(label, seed: int = 0) -> dict:
    return {"image": picture(seed), "label": np.asarray(label, np.uint8), "name": f"map{seed}"}


def boxed(boxes: list, classes: list, seed: int = 0) -> dict:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    known = {"boxes": array, "classes": np.array(classes, int)}
    return {"image": picture(seed), **known, "name": f"boxes{seed}"}


def problems(sample: dict, rules: Rules = RULES) -> dict[str, str]:
    return dict(facts_of(sample, rules).problems)


def check(**sets):
    """Check lists of samples; the name of each is its split."""
    return finish(check_sources([Source(name, name, one, RULES) for name, one in sets.items()], 0))


def found(result) -> dict[tuple[str, str], int]:
    return {(finding.split, finding.kind): finding.count for finding in result.findings}


# One sample


def test_facts_of_a_label_map():
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[0], label[1, :3] = 2, 255
    sample = mapped(label)
    facts = facts_of(sample, RULES)
    assert (facts.size, facts.unit, facts.ignored) == ((8, 6), "pixels", 3)
    assert facts.counts == {0: 37, 2: 8}
    assert facts.sums.tolist() == sample["image"].sum((0, 1)).tolist()
    squares = (sample["image"].astype(int) ** 2).sum((0, 1))
    assert facts.squares.tolist() == squares.tolist()
    assert facts.problems == []


def test_facts_of_boxes_and_of_a_class():
    facts = facts_of(boxed([[0, 0, 8, 6], [1, 1, 2, 2], [3, 3, 4, 4]], [1, 1, 2]), RULES)
    assert (facts.unit, facts.counts, facts.problems) == ("boxes", {1: 2, 2: 1}, [])
    facts = facts_of({"image": picture(), "label": 2, "name": "x"}, RULES)
    assert (facts.unit, facts.counts, facts.problems) == ("images", {2: 1}, [])


@pytest.mark.parametrize(
    ("sample", "kind", "text"),
    [
        (mapped(np.full((HEIGHT, WIDTH), 3)), "illegal label", "ids 3"),
        (mapped(np.zeros((5, 8))), "label of another size", "8x5, its image 8x6"),
        (mapped(np.full((HEIGHT, WIDTH), 255)), "nothing labelled", ""),
        ({"image": picture(), "label": 3, "name": "x"}, "illegal label", "class 3"),
        ({"image": picture(), "label": -1, "name": "x"}, "illegal label", "class -1"),
        ({"image": picture(), "name": "x"}, "no label", ""),
        (boxed([[0, 0, 2, 2]], [3]), "illegal label", "class 3"),
        (boxed([[0, 0, 2, 2]], [1, 2]), "boxes without classes", "boxes (1, 4), classes (2,)"),
        (boxed([[2, 1, 2, 5]], [1]), "box without area", "2, 1, 2, 5 in 8x6"),
        (boxed([[3, 1, 2, 5]], [1]), "box without area", "3, 1, 2, 5 in 8x6"),
        (boxed([[0, 0, 9.5, 2]], [1]), "box outside its image", "0, 0, 9.5, 2 in 8x6"),
        (boxed([[0, -1.5, 2, 2]], [1]), "box outside its image", "0, -1.5, 2, 2 in 8x6"),
        (boxed([[0, np.nan, 2, 2]], [1]), "box that isn't finite", "0, nan, 2, 2 in 8x6"),
    ],
)
def test_what_is_wrong_with_a_sample_is_told(sample, kind, text):
    assert problems(sample) == {kind: text}


def test_what_rounding_does_to_a_box_is_not_wrong():
    assert problems(boxed([[-0.4, 0, 8.6, 6]], [1])) == {}
    assert problems(boxed([], [])) == {}


def test_ids_of_16_bits_are_counted_too():
    label = np.full((HEIGHT, WIDTH), 300, np.uint16)
    assert problems({**mapped(label), "label": label}) == {"illegal label": "ids 300"}
    assert problems({**mapped(label), "label": label}, Rules(None)) == {}


def test_a_sample_that_cannot_be_read_is_a_problem_and_no_error():
    class Damaged:
        def __getitem__(self, index):
            raise DataError("image is truncated: 7.jpg")

    facts = look_at(Damaged(), 7, RULES)
    assert facts.problems == [("unreadable", "image is truncated: 7.jpg")]
    totals = Totals()
    totals.add(facts)
    assert (totals.samples, totals.read) == (1, 0)


# Whole sets


def test_mean_and_deviation_are_those_of_all_pixels():
    samples = [mapped(np.zeros((HEIGHT, WIDTH)), seed) for seed in range(3)]
    mean, std = check(train=samples).sets["train"].totals.mean_and_std()
    pixels = np.concatenate([sample["image"].reshape(-1, 3) for sample in samples])
    assert mean == pytest.approx(pixels.mean(0))
    assert std == pytest.approx(pixels.std(0))


def test_equal_images_are_found_within_a_set_and_across():
    half, zeros = np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
    half[:3] = 1
    train = [mapped(zeros, seed) for seed in (0, 1, 2, 1)]
    val = [mapped(zeros, seed) for seed in (7, 8)]
    assert {key for key in found(check(train=train, val=val)) if key[1] != "absent class"} == {
        ("train", "duplicate")
    }
    result = check(train=[*train, mapped(half, 2)], val=[*val, mapped(zeros, 0)])
    counts = found(result)
    assert counts["train", "duplicate"] == counts["train", "contradiction"] == 1
    assert counts["train, val", "leak"] == 1
    leak = next(finding for finding in result.findings if finding.kind == "leak")
    assert leak.examples == ("train map0, val map0",)
    wrong = [finding.kind for finding in result.findings if finding.is_wrong]
    assert sorted(wrong) == ["contradiction", "leak"]
    assert result.findings[: len(wrong)] == [one for one in result.findings if one.is_wrong]


def test_samples_that_cannot_be_read_are_no_duplicates():
    class Damaged(list):
        def __getitem__(self, index):
            raise DataError("damaged")

    assert found(check(train=Damaged([0, 1, 2])))["train", "unreadable"] == 3
    assert ("train", "duplicate") not in found(check(train=Damaged([0, 1, 2])))


def test_a_set_without_any_label_is_wrong_and_one_image_without_is_not():
    nothing, zeros = np.full((HEIGHT, WIDTH), 255), np.zeros((HEIGHT, WIDTH))
    result = check(train=[mapped(nothing, 0), mapped(zeros, 1)])
    assert result.is_right
    assert found(result)["train", "nothing labelled"] == 1
    result = check(train=[mapped(nothing, 0), mapped(nothing, 1)])
    assert not result.is_right
    assert found(result)["train", "no labels at all"] == 2


def test_classes_that_training_never_sees_are_noted():
    zeros = np.zeros((HEIGHT, WIDTH))
    result = check(train=[mapped(zeros, 0)], val=[mapped(zeros + 1, 1)])
    texts = {finding.kind: str(finding) for finding in result.findings}
    assert result.is_right
    assert texts["class that isn't in train"] == (
        "note: val: 1 classes occur here and not in train: 1"
    )


# The command


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets")
    make_cityscapes(root, train=3, val=2)
    for split in ("train", "val"):
        pack_cityscapes(root, split)
    return root


def read_json(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def test_a_config_is_checked_in_both_splits(streets, tmp_path, capsys):
    config = str(write_tiny_config(tmp_path, streets))
    assert run(["data", "check", config]) == 0
    shown = capsys.readouterr()
    assert "ok: nothing is wrong" in shown.out
    assert "next: hat data show" in shown.err
    assert "\nimages without labels " in shown.out
    assert run(["data", "check", config, "--json"]) == 0
    document = read_json(capsys)
    assert document["ok"] is True
    for split, count in (("train", 3), ("val", 2)):
        entry = document["splits"][split]
        assert (entry["samples"], entry["readable"]) == (count, count)
        assert entry["sizes"] == {"64x32": count}
        with open_pack(streets / f"{split}_lmdb") as packed:
            pixels = [one["pixels"] for one in entry["classes"]]
            assert pixels == packed.meta["class_pixels"]
            assert entry["ignored"] == packed.meta["ignored_pixels"]


def test_workers_find_the_same(streets, tmp_path, capsys):
    documents = []
    for workers in ("0", "2"):
        assert run(["data", "check", str(streets / "train_lmdb"), "-j", workers, "--json"]) == 0
        documents.append(read_json(capsys))
    assert documents[0] == documents[1]


def test_a_model_of_fewer_classes_is_told(streets, tmp_path, capsys):
    config = str(write_tiny_config(tmp_path, streets))
    settings = ["model.num_classes=7", "metric.num_classes=7", "--split", "train", "--json"]
    assert run(["data", "check", config, *settings]) == 3
    shown = capsys.readouterr()
    kinds = {one["kind"]: one for one in json.loads(shown.out)["findings"] if one["wrong"]}
    assert set(kinds) == {"illegal label", "number of classes"}
    assert kinds["illegal label"]["count"] == 3
    assert kinds["number of classes"]["text"] == "the dataset has 19 classes, the model 7"
    assert "2 kinds of faults" in shown.err


def test_a_training_set_in_the_place_of_the_other_is_told(streets, tmp_path, capsys):
    config = str(write_tiny_config(tmp_path, streets))
    assert run(["data", "check", config, "val.dataset.path=train_lmdb"]) == 3
    shown = capsys.readouterr().out
    assert "wrong: train, val: 3 images are shared" in shown
    assert "wrong: val: the pack says that it holds the split 'train'" in shown


def test_raw_twins_and_packs_have_the_same_facts(tmp_path, capsys):
    make_voc(tmp_path)
    for options in ({"task": "detection"}, {"task": "segmentation"}):
        out = tmp_path / options["task"]
        finish(pack("voc", tmp_path, out, "train", num_workers=0, year="2007", **options))
        assert run(["data", "check", str(out / "train_lmdb"), "--json"]) == 0
        packed = read_json(capsys)["splits"]["train"]
        kind = {"detection": "VOCDetectionRaw", "segmentation": "VOCSegmentationRaw"}
        config = write_tiny_config(tmp_path, tmp_path)
        node = {"type": kind[options["task"]], "split": "train", "year": "2007"}
        changes = [f"task={options['task']}", f"train.dataset={node}"]
        classes = len(packed["classes"])
        changes += [f"model.num_classes={classes}", f"metric.num_classes={classes}"]
        assert run(["data", "check", str(config), "--split", "train", "--json", *changes]) == 0
        raw = read_json(capsys)["splits"]["train"]
        assert {**raw, "where": ""} == {**packed, "where": ""}


def test_a_damaged_image_is_counted_and_named(tmp_path, capsys):
    make_voc(tmp_path)
    image = file_of(tmp_path, "JPEGImages")
    image.write_bytes(image.read_bytes()[:-200])
    out = tmp_path / "out"
    options = {"year": "2007", "check": "none", "num_workers": 0}
    finish(pack("voc", tmp_path, out, "train", **options))
    assert run(["data", "check", str(out / "train_lmdb"), "--json"]) == 3
    finding = read_json(capsys)["findings"][0]
    assert (finding["kind"], finding["count"]) == ("unreadable", 1)
    assert "truncated" in finding["examples"][0]
    assert "000001" in finding["examples"][0]


def test_the_rarest_of_many_classes_are_shown(tmp_path, capsys):
    make_imagenet(tmp_path, train=2, val=1, num_classes=120)
    pack_imagenet(tmp_path, "val")
    assert run(["data", "check", str(tmp_path / "val_lmdb")]) == 0
    assert "the 20 rarest of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which data?"),
        (["no_such_config"], "no config 'no_such_config'"),
        (["unet", "vargconvnet"], "one config is enough"),
        (["unet", "--split", "test"], "a config has no split 'test'"),
        (["{train}", "model.num_classes=3"], "a pack has no settings"),
        (["{train}", "--split", "val"], "no pack of split 'val': train"),
        (["{train}", "-j", "-1"], "--num-workers -1"),
        (["{root}"], "{root}"),
        (["{train}", "{train}"], "named twice"),
    ],
)
def test_wrong_usage_is_explained(streets, arguments, message, capsys):
    places = {"train": str(streets / "train_lmdb"), "root": str(streets)}
    assert run(["data", "check", *[word.format(**places) for word in arguments]]) == 2
    assert message.format(**places) in capsys.readouterr().err


def test_two_packs_of_one_split_go_by_their_folders(streets, tmp_path, capsys):
    shutil.copytree(streets / "train_lmdb", tmp_path / "copy")
    packs = [str(streets / "train_lmdb"), str(tmp_path / "copy")]
    assert run(["data", "check", *packs, "--json"]) == 3
    document = read_json(capsys)
    assert list(document["splits"]) == packs
    assert document["findings"][0]["text"] == "3 images are shared"
