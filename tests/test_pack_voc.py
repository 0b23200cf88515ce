"""Packing PASCAL VOC: what goes in, what stands in the pack, what can't be packed."""

import shutil
import tarfile

import numpy as np
import pytest
from made_voc import devkit, file_of, make_voc, tar_voc, write_list, xml_of
from PIL import Image
from refusals import check_refusal

from hatcli.cli import run
from hatcli.data.classes import VOC_CLASSES, VOC_PALETTE
from hatcli.data.packers._voc_xml import read_objects
from hatcli.data.packers.voc import voc
from hatcli.data.packs.reader import open_pack
from hatcli.errors import DataError

DETECTION = ["voc", "--year", "2007"]
SEGMENTATION = [*DETECTION, "--task", "segmentation"]
DOG = {"name": "dog", "box": (2, 3, 20, 30), "difficult": 0, "truncated": 1, "pose": "Left"}


@pytest.fixture
def source(tmp_path):
    return make_voc(tmp_path / "voc")


def packed(source, arguments=DETECTION, split="train"):
    assert run(["pack", *arguments, "--src", str(source), "--split", split, "-j", "0"]) == 0
    with open_pack(source / f"{split}_lmdb") as pack:
        return pack.meta, [pack[index] for index in range(len(pack))]


def test_a_box_ends_where_the_pixels_of_its_object_end(source):
    _, with_boxes = packed(source)
    shutil.rmtree(source / "train_lmdb")
    _, with_maps = packed(source, SEGMENTATION)
    for boxes, maps in zip(with_boxes, with_maps, strict=True):
        assert boxes["name"] == maps["name"]
        for number, (box, index) in enumerate(
            zip(boxes["boxes"], boxes["classes"], strict=True), 1
        ):
            rows, columns = np.nonzero(maps["instance"] == number)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == edges
            assert set(maps["label"][rows, columns]) == {index + 1}


def test_one_is_taken_from_the_first_corner_only():
    whole = {**DOG, "box": (1, 1, 48, 32)}
    found = read_objects(xml_of("1", (48, 32), [whole]).encode(), "1.xml", clip=False)
    assert found.boxes.tolist() == [[0, 0, 48, 32]]
    assert found.boxes.dtype == np.float32


def test_a_sample_holds_what_the_annotation_says(source):
    objects = [DOG, {**DOG, "name": "person", "box": (30, 1, 30, 1), "difficult": 1}]
    file_of(source, "Annotations").write_text(xml_of("000001", (48, 32), objects))
    meta, samples = packed(source)
    first = samples[0]
    assert first["image"] == file_of(source, "JPEGImages").read_bytes()
    assert (first["image_format"], first["height"], first["width"]) == ("jpeg", 32, 48)
    assert first["boxes"].tolist() == [[1, 2, 20, 30], [29, 0, 30, 1]]
    assert [VOC_CLASSES[index] for index in first["classes"]] == ["dog", "person"]
    assert first["difficult"].tolist() == [0, 1]
    assert first["truncated"].tolist() == [1, 1]
    assert first["poses"] == ["Left", "Left"]
    assert [sample["name"] for sample in samples] == ["000001", "000002", "000003", "000004"]
    boxes = sum(len(sample["boxes"]) for sample in samples)
    assert (meta["boxes"]["total"], sum(meta["class_boxes"])) == (boxes, boxes)
    assert meta["boxes"]["difficult"] == sum(int(s["difficult"].sum()) for s in samples)
    assert (meta["task"], meta["classes"], meta["num_classes"]) == (
        "detection",
        list(VOC_CLASSES),
        20,
    )
    assert meta["sizes"]["width"] == {"min": 48, "median": 48, "max": 48}


def test_maps_are_the_indices_whatever_their_colours(source):
    path = file_of(source, "SegmentationClass")
    image = Image.open(path)
    values = np.asarray(image)
    image.putpalette([7] * 768)
    image.save(path)
    Image.fromarray(np.asarray(Image.open(file_of(source, "SegmentationObject")))).save(
        file_of(source, "SegmentationObject")
    )  # grey, as others write them
    meta, samples = packed(source, SEGMENTATION)
    assert np.array_equal(samples[0]["label"], values)
    assert samples[0]["instance"].dtype == samples[0]["label"].dtype == np.uint8
    counts = np.bincount(np.stack([s["label"] for s in samples]).ravel(), minlength=256)
    assert meta["class_pixels"] == counts[:21].tolist()
    assert meta["ignored_pixels"] == counts[255] == 4
    assert (meta["classes"][0], meta["num_classes"], meta["ignore_index"]) == (
        "background",
        21,
        255,
    )
    assert meta["palette"] == [list(color) for color in VOC_PALETTE]


def test_maps_of_few_colours_have_few_bits_and_the_same_indices(source):
    path = file_of(source, "SegmentationClass")
    values = np.zeros((32, 48), np.uint8)
    values[:, 20:] = 3
    image = Image.fromarray(values)
    image.putpalette([0, 0, 0] * 4)
    image.save(path, bits=2)
    assert path.read_bytes()[24] == 2
    assert np.array_equal(packed(source, SEGMENTATION)[1][0]["label"], values)


def test_instances_can_be_left_out(source):
    shutil.rmtree(devkit(source) / "SegmentationObject")
    meta, samples = packed(source, [*SEGMENTATION, "--instances", "drop"])
    assert "instance" not in samples[0]
    assert "instance" not in meta["fields"]


@pytest.mark.parametrize("place", ["VOC2007", "VOCdevkit", "itself"])
def test_the_devkit_may_stand_anywhere_near(source, place):
    folder = {"VOC2007": source / "VOCdevkit", "VOCdevkit": source, "itself": devkit(source)}
    names = [voc(folder[place], "val", year="2007").name(index) for index in range(2)]
    assert names == ["000005", "000006"]


@pytest.mark.parametrize(
    ("archive", "prefix"),
    [("VOCtrainval_06-Nov-2007.tar", ""), ("VOCtrainval_06-Nov-2007.tar", "./"), ("voc.tar", "x/")],
)
def test_archives_give_what_the_folder_gives(source, tmp_path, archive, prefix):
    tar = tar_voc(source, tmp_path / "tars" / archive, prefix=prefix)
    digests = {packed(place)[0]["content_sha256"] for place in (source, tar.parent)}
    assert len(digests) == 1
    meta, _ = packed(tar.parent, SEGMENTATION, split="val")
    assert meta["source"]["files"] == {"kind": "tar", "name": archive, "bytes": tar.stat().st_size}


def test_another_number_than_the_published_one_is_a_remark(source):
    assert voc(source, "train", year="2007").remarks == [
        "4 images; the published train split has 2501"
    ]
    write_list(source, "mine", ["000002"])
    mine = voc(source, "mine", year="2007")
    assert (mine.remarks, mine.official_length, mine.name(0)) == ([], None, "000002")


def test_boxes_over_the_border_are_cut_off_on_request(source, capsys):
    path = file_of(source, "Annotations")
    path.write_text(xml_of("000001", (48, 32), [{**DOG, "box": (0, 3, 50, 30)}]))
    meta, samples = packed(source, [*DETECTION, "--boxes", "clip"])
    assert samples[0]["boxes"].tolist() == [[0, 2, 48, 30]]
    assert meta["boxes"]["clipped"] == 1
    assert "1 boxes were cut off" in capsys.readouterr().err


def test_what_older_and_newer_annotations_lack_or_add_is_fine():
    text = xml_of("1", (48, 32), [{**DOG, "box": (2.5, 3, 20.25, 30)}])
    text = text.replace("<truncated>1</truncated>", "").replace("<difficult>0</difficult>", "")
    text = text.replace("<pose>Left</pose>", "")
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    found = read_objects(text.replace("</object>", part).encode(), "1.xml", clip=False)
    assert found.boxes.tolist() == [[1.5, 2, 20.25, 30]]
    assert (found.difficult.tolist(), found.truncated.tolist()) == ([0], [0])
    assert found.poses == ["Unspecified"]


def test_an_image_without_objects_has_no_boxes(source):
    file_of(source, "Annotations").write_text(xml_of("000001", (48, 32), []))
    first = packed(source)[1][0]
    assert (first["boxes"].shape, first["classes"].shape, first["poses"]) == ((0, 4), (0,), [])


def test_help_names_the_options(capsys):
    assert run(["pack", "voc", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("hat pack voc --split train", "--year", "--task", "--instances", "--boxes"):
        assert word in text


def xml(change):
    """Change the text of one annotation file."""

    def spoil(source):
        path = file_of(source, "Annotations")
        path.write_text(xml_of("000001", (48, 32), [DOG, DOG]))
        text = change(path.read_text())
        assert text != path.read_text()
        path.write_text(text)

    return spoil


def swap(old, new):
    return xml(lambda text: text.replace(old, new, 1))


def deep(text):
    return text.replace("<folder>", "<a>" * 40 + "</a>" * 40 + "<folder>")


def a_billion_laughs(text):
    entities = '<!DOCTYPE a [<!ENTITY l "ha"><!ENTITY m "&l;&l;&l;">]>'
    return entities + text.replace("dog", "&m;")


BAD_XML = {
    "malformed": (swap("</object>", ""), "not XML (mismatched tag"),
    "cut": (xml(lambda text: text[:200]), "not XML (no element found"),
    "empty": (xml(lambda text: ""), "not XML (no element found"),
    "binary": (xml(lambda text: "\0\1\2" + text), "not XML"),
    "encoding": (xml(lambda text: '<?xml version="1.0" encoding="x"?>' + text), "not XML"),
    "DOCTYPE": (xml(a_billion_laughs), "000001.xml: refused, it has a DOCTYPE"),
    "too large": (xml(lambda text: text + " " * 2**23), "8.39 MB; limit 4.19 MB"),
    "nested": (xml(deep), "nested deeper than 32 levels"),
    "other file": (xml(lambda text: "<html></html>"), "outermost element is <html>"),
    "class unknown": (
        swap("<name>dog", "<name>unicorn"),
        "000001.xml: object[1]/name is 'unicorn', which is no class of VOC",
    ),
    "class missing": (swap("<name>dog</name>", ""), "object[1]: no <name> in <object>"),
    "xmin > xmax": (
        swap("<xmin>2", "<xmin>21"),
        "object[1]/bndbox: xmin 21 is above xmax 20",
    ),
    "ymin > ymax": (swap("<ymax>30", "<ymax>2"), "object[1]/bndbox: ymin 3 is above ymax 2"),
    "box outside": (
        swap("<xmax>20", "<xmax>49"),
        "object[1]/bndbox: box (2, 3, 49, 30) is outside the image, 1 to 48 and 1 to 32",
    ),
    "box counted from 0": (swap("<xmin>2", "<xmin>0"), "--boxes clip cuts off"),
    "corner missing": (swap("<ymin>3</ymin>", ""), "object[1]/bndbox: no <ymin> in <bndbox>"),
    "corner twice": (
        swap("<xmin>2</xmin>", "<xmin>2</xmin><xmin>2</xmin>"),
        "object[1]/bndbox: 2 <xmin> in <bndbox>",
    ),
    "corner a word": (swap("<xmin>2", "<xmin>two"), "bndbox/xmin is 'two', not a number"),
    "corner NaN": (swap("<xmin>2", "<xmin>nan"), "bndbox/xmin is 'nan', not a number"),
    "corner endless": (swap("<xmin>2", "<xmin>" + "9" * 5000), "not a number"),
    "box missing": (
        xml(lambda text: text.replace("bndbox>", "box>")),
        "object[1]: no <bndbox> in <object>",
    ),
    "no size": (
        swap("<size><width>48</width><height>32</height><depth>3</depth></size>", ""),
        "000001.xml: no <size> in <annotation>",
    ),
    "size 0": (swap("<width>48", "<width>0"), "size/width is '0', not a number of pixels"),
    "other size": (
        swap("<width>48", "<width>49"),
        "size says 49x32 but the image is 48x32",
    ),
    "difficult": (swap("<difficult>0", "<difficult>maybe"), "/difficult is 'maybe', not 0 or 1"),
}


@pytest.mark.parametrize("name", BAD_XML)
def test_a_bad_annotation_is_named_with_its_element(name, source, capsys):
    spoil, message = BAD_XML[name]
    spoil(source)
    check_refusal(DETECTION, source, 1, message, capsys)


def test_a_box_wholly_outside_can_not_be_clipped(source, capsys):
    path = file_of(source, "Annotations")
    path.write_text(xml_of("000001", (48, 32), [{**DOG, "box": (-5, 3, 0, 30)}]))
    check_refusal([*DETECTION, "--boxes", "clip"], source, 1, "is outside the image", capsys)


def remove(kind):
    return lambda source: file_of(source, kind).unlink()


def save_map(kind, image):
    return lambda source: image.save(file_of(source, kind), "PNG")


def listed(text, folder="Main"):
    return lambda source: (devkit(source) / "ImageSets" / folder / "train.txt").write_text(text)


def replace_tree(name):
    return lambda source: shutil.rmtree(devkit(source) / name)


def damaged_tar(change):
    def spoil(source):
        tar = tar_voc(source, source / "VOCtrainval_06-Nov-2007.tar")
        tar.write_bytes(change(tar.read_bytes()))
        shutil.rmtree(source / "VOCdevkit")

    return spoil


def two_devkits(source):
    shutil.copytree(source / "VOCdevkit", source / "copy" / "VOCdevkit")
    tar_voc(source, source / "voc.tar")
    with tarfile.open(source / "voc.tar", "a") as archive:
        archive.add(source / "copy" / "VOCdevkit", "copy/VOCdevkit")
    shutil.rmtree(source / "VOCdevkit")


BAD_SOURCES = {
    "nothing": (
        lambda source: shutil.rmtree(source / "VOCdevkit"),
        DETECTION,
        2,
        "no VOCdevkit/VOC2007/ and no archive of it",
    ),
    "other year": (lambda source: None, ["voc"], 2, "needed is VOCtrainval_11-May-2012.tar"),
    "split unknown": (
        lambda source: None,
        [*DETECTION, "--split", "training"],
        2,
        "split 'training' unknown; choose train, trainval, val",
    ),
    "test of 2012": (
        lambda source: make_voc(source, year="2012"),
        ["voc", "--split", "test"],
        2,
        "the labels of VOC2012's test split aren't published",
    ),
    "task unknown": (lambda source: None, ["voc", "--task", "action"], 2, "'action' is not one of"),
    "image missing": (
        remove("JPEGImages"),
        DETECTION,
        1,
        "1 of 4 samples have no JPEGImages/*.jpg, first: ",
    ),
    "annotation missing": (
        remove("Annotations"),
        DETECTION,
        1,
        "1 of 4 samples have no Annotations/*.xml, first: ",
    ),
    "map missing": (
        remove("SegmentationObject"),
        SEGMENTATION,
        1,
        "1 of 4 samples have no SegmentationObject/*.png, first: ",
    ),
    "images missing": (
        replace_tree("JPEGImages"),
        DETECTION,
        1,
        "4 of 4 samples have no JPEGImages/*.jpg",
    ),
    "list empty": (listed("\n"), DETECTION, 2, "no names of images in"),
    "list of a class": (
        listed("000001  1\n000002 -1\n"),
        DETECTION,
        1,
        "line 1 is no name of an image: '000001 1'",
    ),
    "list leaves the folder": (listed("../../x\n"), DETECTION, 1, "line 1 is no name of an image"),
    "name twice": (
        listed("000001\n000002\n000001\n"),
        DETECTION,
        1,
        "duplicate sample name: 000001 on lines 1 and 3",
    ),
    "map of other size": (
        save_map("SegmentationClass", Image.new("P", (32, 32))),
        SEGMENTATION,
        1,
        "label 32x32 but image 48x32",
    ),
    "map of unknown classes": (
        save_map("SegmentationClass", Image.new("L", (48, 32), 21)),
        SEGMENTATION,
        1,
        "ids outside 0..20 and 255: {21}",
    ),
    "map in colour": (
        save_map("SegmentationClass", Image.new("RGB", (48, 32))),
        SEGMENTATION,
        1,
        "label must be palette or 8-bit or 16-bit single channel PNG, got PNG RGB",
    ),
    "tar cut": (damaged_tar(lambda data: data[:-9000]), DETECTION, 1, "archive"),
    "tar is HTML": (damaged_tar(lambda _: b"<html>sorry"), DETECTION, 1, "not a tar archive"),
    "two devkits": (two_devkits, DETECTION, 1, "holds VOC2007 twice"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_source_is_explained_and_leaves_no_pack(name, source, capsys):
    spoil, arguments, code, message = BAD_SOURCES[name]
    spoil(source)
    check_refusal(arguments, source, code, message, capsys)


def test_a_file_as_source_is_no_folder(tmp_path):
    (tmp_path / "voc.tar").write_bytes(b"")
    with pytest.raises(Exception, match="is a file; give the directory"):
        voc(tmp_path / "voc.tar", "train")


def test_a_member_that_stands_twice_in_the_archive_is_refused(source, tmp_path):
    tar = tar_voc(source, tmp_path / "voc.tar")
    with tarfile.open(tar, "a") as archive:
        archive.add(file_of(source, "JPEGImages"), "VOCdevkit/VOC2007/JPEGImages/000001.jpg")
    with pytest.raises(DataError, match="archive has two members of this name"):
        voc(tmp_path, "train", year="2007")
