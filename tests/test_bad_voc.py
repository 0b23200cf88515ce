"""Sources of VOC that are damaged, incomplete or not what they seem."""

import shutil
import tarfile

import pytest
from made_voc import DETECTION, DOG, SEGMENTATION, devkit, file_of, make_voc, tar_voc, xml_of
from PIL import Image
from refusals import check_refusal

from hatcli.data.packers.voc import voc
from hatcli.errors import DataError


@pytest.fixture
def source(tmp_path):
    return make_voc(tmp_path / "voc")


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
