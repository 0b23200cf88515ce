"""Packing COCO: what goes in, what stands in the pack, and the annotation file that comes back."""

import contextlib
import copy
import io
import json
import pickle
import shutil

import numpy as np
import pytest
from made_coco import (
    CATEGORIES,
    add_annotation,
    json_file,
    make_coco,
    read_document,
    write_document,
    zip_coco,
)
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from hatcli.cli import run
from hatcli.data.datasets.mscoco import annotation_document
from hatcli.data.packers._coco_boxes import decode_counts
from hatcli.data.packers.mscoco import mscoco
from hatcli.data.packs.reader import open_pack
from hatcli.errors import UsageError


@pytest.fixture
def source(tmp_path):
    return make_coco(tmp_path / "coco")


def pack_coco(source, *words, split="train"):
    assert run(["pack", "mscoco", "--src", str(source), "--split", split, "-j", "0", *words]) == 0
    with open_pack(source / f"{split}_lmdb") as pack:
        return pack.meta, [pack[index] for index in range(len(pack))], annotation_document(pack)


def coco_of(document):
    coco = COCO()
    coco.dataset = document
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def assert_same_objects(ours, theirs):
    for name in ("anns", "imgs", "cats", "imgToAnns", "catToImgs"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert one == other
        assert list(one) == list(other)


def test_the_annotation_file_comes_back_to_the_last_digit(source):
    document = read_document(source)
    document["annotations"][0]["area"] = 0.1 + 0.2
    document["annotations"][0]["bbox"][0] = 7
    document["annotations"][0]["comment"] = {"ünïcode": [None, True, 1e-300, -0.0, 2**53]}
    write_document(source, document)
    _, _, back = pack_coco(source)
    assert back == document
    assert json.dumps(back["annotations"]) == json.dumps(document["annotations"])
    assert json.dumps(back["images"]) == json.dumps(document["images"])
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(json_file(source))
    assert_same_objects(coco_of(back), theirs)


def test_a_sample_holds_a_box_for_each_annotation(source):
    meta, samples, document = pack_coco(source)
    ids = sorted(row["id"] for row in CATEGORIES)
    for sample, image in zip(samples, document["images"], strict=True):
        own = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        assert (sample["image_id"], sample["name"]) == (image["id"], image["file_name"][:-4])
        assert sample["image"] == (source / "train2017" / image["file_name"]).read_bytes()
        boxes = np.array([a["bbox"] for a in own], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.array_equal(sample["boxes"], boxes.astype(np.float32))
        assert sample["classes"].tolist() == [ids.index(a["category_id"]) for a in own]
        assert sample["crowd"].tolist() == [a["iscrowd"] for a in own]
        assert sample["areas"].tolist() == [a["area"] for a in own]
        assert sample["annotation_ids"].tolist() == [a["id"] for a in own]
    assert (meta["classes"], meta["class_ids"]) == (["person", "dog", "toothbrush"], [1, 18, 90])
    assert meta["boxes"]["total"] == sum(meta["class_boxes"]) == len(document["annotations"])
    assert meta["boxes"]["crowd"] == sum(a["iscrowd"] for a in document["annotations"]) > 0
    assert (meta["images_without_boxes"], meta["task"]) == (1, "detection")
    assert meta["document"] == {key: document[key] for key in ("info", "licenses")}


def test_images_without_annotations_are_dropped_on_request(source):
    meta, samples, document = pack_coco(source, "--empty", "drop")
    whole = read_document(source)
    assert [image["id"] for image in document["images"]] == [1000, 986, 979, 972]
    assert document["annotations"] == whole["annotations"]
    assert (len(samples), meta["images_without_boxes"]) == (4, 0)
    found = mscoco(source, "train", empty="drop")
    assert "1 images without annotations were left out" in found.remarks


def test_archives_and_folders_in_any_mix_give_the_same_content(source, tmp_path):
    zips = zip_coco(source, tmp_path / "zips")
    mix = tmp_path / "mix"
    shutil.copytree(source / "annotations", mix / "annotations")
    shutil.copy(zips / "train2017.zip", mix)
    digests = {pack_coco(place)[0]["content_sha256"] for place in (source, zips, mix)}
    assert len(digests) == 1
    copied = pickle.loads(pickle.dumps(mscoco(zips, "val")))  # noqa: S301 - as workers get it
    assert copied.make(0).sample["image_id"] == 1000


def test_the_order_of_the_file_and_its_spaces_do_not_matter(source):
    document = read_document(source)
    first = dict(reversed(document.items()))
    json_file(source).write_text("\n " + json.dumps(first, indent=3) + "\n\n")
    assert pack_coco(source)[2] == document


def test_an_annotation_may_lack_what_scores_do_not_need(source):
    document = read_document(source)
    bare = {"id": 7, "image_id": 1000, "category_id": 18, "bbox": [1, 2, 3, 4]}
    document["annotations"] = [bare, {**bare, "id": 8, "segmentation": []}]
    write_document(source, document)
    _, samples, back = pack_coco(source)
    assert back == document
    assert samples[0]["areas"].tolist() == [12, 12]
    assert samples[0]["crowd"].tolist() == [0, 0]


def test_flat_boxes_are_kept_and_told(source, capsys):
    document = read_document(source)
    flat = {"id": 7, "image_id": 1000, "category_id": 18, "bbox": [9.5, 2, 0, 4], "area": 0}
    document["annotations"].append(flat)
    write_document(source, document)
    meta, samples, _ = pack_coco(source)
    assert samples[0]["boxes"][-1].tolist() == [9.5, 2, 9.5, 6]
    assert meta["boxes"]["flat"] == 1
    assert "1 boxes have no width or no height; they are kept" in capsys.readouterr().err


def test_boxes_are_cut_off_at_the_border_and_annotations_are_not(source, capsys):
    document = read_document(source)
    over = {"id": 7, "image_id": 1000, "category_id": 18, "bbox": [40, 2, 12, 4], "area": 48}
    rounded = {**over, "id": 8, "bbox": [40, 2, 8.01, 4]}
    document["annotations"] += [over, rounded]
    write_document(source, document)
    meta, samples, back = pack_coco(source, "--boxes", "clip")
    assert samples[0]["boxes"][-2:].tolist() == [[40, 2, 48, 6], [40, 2, 48, 6]]
    assert back == document
    assert meta["boxes"]["clipped"] == 1
    assert "1 boxes were cut off" in capsys.readouterr().err


def test_a_compressed_rle_is_checked_and_kept(source):
    document = read_document(source)
    mask = np.zeros((32, 48), np.uint8, order="F")
    mask[3:9, 5:30] = mask[20:25, 40:48] = 1
    rle = coco_mask.encode(mask)
    assert decode_counts(rle["counts"].decode()) == uncompressed(mask)
    crowd = {"size": [32, 48], "counts": rle["counts"].decode()}
    add_annotation(document, 1000, 1, [5, 3, 43, 22], crowd, area=int(mask.sum()), crowd=1)
    document["annotations"][-1]["id"] = 1
    write_document(source, document)
    meta, _, back = pack_coco(source)
    assert back == document
    assert meta["boxes"]["compressed_rle"] == 1


def uncompressed(mask):
    """Runs of 0 and 1, column by column, 0 first."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges])).tolist()


def test_long_runs_and_random_masks_are_decoded_as_pycocotools_encodes_them():
    rng = np.random.default_rng(0)
    for density in (0.0001, 0.01, 0.5, 0.99, 0.0, 1.0):
        mask = np.asfortranarray((rng.random((300, 400)) < density).astype(np.uint8))
        counts = coco_mask.encode(mask)["counts"].decode()
        runs = uncompressed(mask)
        assert decode_counts(counts) == runs


def test_an_image_that_viewers_would_turn_is_told_and_can_be_turned(source, capsys):
    document = read_document(source)
    path = source / "train2017" / document["images"][1]["file_name"]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 48)).save(path, exif=exif)
    document["images"][1].update(width=32, height=48)
    write_document(source, document)
    pack_coco(source)
    assert "1 images have an EXIF orientation, which is ignored" in capsys.readouterr().err
    shutil.rmtree(source / "train_lmdb")
    document["images"][1].update(width=48, height=32)
    write_document(source, document)
    _, samples, _ = pack_coco(source, "--apply-exif")
    assert (samples[1]["width"], samples[1]["height"]) == (48, 32)
    assert "EXIF" not in capsys.readouterr().err


def test_files_that_the_annotations_do_not_name_are_passed_over(source):
    (source / "train2017" / "more.jpg").write_bytes(b"x")
    remarks = mscoco(source, "train").remarks
    assert remarks[0] == "5 images; the published train split has 118287"
    assert remarks[1].startswith("1 other files were passed over, first: ")


def test_a_pack_of_another_set_has_no_annotation_file(tmp_path):
    from made_cityscapes import make_cityscapes, pack_cityscapes

    pack = open_pack(pack_cityscapes(make_cityscapes(tmp_path, val=0)).path)
    with pytest.raises(UsageError, match="not a pack of COCO"):
        annotation_document(pack)


def test_another_annotation_changes_the_stamp_of_its_image_only(source):
    before = list(mscoco(source, "train").stamps)
    document = copy.deepcopy(read_document(source))
    document["annotations"][0]["area"] += 1
    write_document(source, document)
    after = list(mscoco(source, "train").stamps)
    changed = [one != other for one, other in zip(before, after, strict=True)]
    ids = [image["id"] for image in document["images"]]
    assert changed == [number == document["annotations"][0]["image_id"] for number in ids]


def test_help_names_the_options(capsys):
    assert run(["pack", "mscoco", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("hat pack mscoco --split train", "--empty", "--boxes", "--year", "--apply-exif"):
        assert word in text
