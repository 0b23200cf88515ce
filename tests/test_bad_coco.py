"""COCO that can't be packed: each with its path in the file and its id."""

import json
import shutil
import zipfile

import pytest
from made_coco import json_file, make_coco, read_document, write_document, zip_coco
from PIL import Image
from refusals import check_refusal

from hatcli.data.packers._coco_boxes import decode_counts
from hatcli.data.packers._coco_document import read_coco
from hatcli.errors import DataError

COMMAND = ["mscoco"]


@pytest.fixture
def source(tmp_path):
    return make_coco(tmp_path / "coco", train=3, val=0)


def text(change):
    """Change the text of the file."""

    def spoil(source):
        path = json_file(source)
        path.write_text(change(path.read_text()))

    return spoil


def entry(change):
    """Change what the file says; annotations[0] is one of image 1000 with a polygon."""

    def spoil(source):
        document = read_document(source)
        document["annotations"].sort(key=lambda one: (one["iscrowd"], one["id"]))
        change(document)
        write_document(source, document)

    return spoil


def first(**values):
    """Change the first annotation."""
    return entry(lambda document: document["annotations"][0].update(values))


def lacking(name, key):
    return entry(lambda document: document[name][0].pop(key))


def image(**values):
    return entry(lambda document: document["images"][2].update(values))


def rle(**values):
    whole = {"size": [32, 48], "counts": [0, 32 * 48]}
    return first(segmentation={**whole, **values})


def twice(name):
    return entry(lambda document: document[name].append(document[name][0]))


def put(old, new):
    return text(lambda whole: whole.replace(old, new, 1))


A0 = "instances_train2017.json: annotations[0] (id 100)"
BAD_JSON = {
    "empty file": (text(lambda _: ""), "not JSON (empty file)"),
    "HTML": (text(lambda _: "<html>"), "not JSON ('{' is missing before '<html>'"),
    "cut": (text(lambda whole: whole[:700]), "not JSON"),
    "more behind": (text(lambda whole: whole + "x"), "not JSON (more behind the end"),
    "a list": (text(lambda _: "[]"), "not JSON ('{' is missing"),
    "an empty object": (text(lambda _: "{}"), "holds no 'images'"),
    "no comma": (put('"licenses"', '5 "licenses"'), "not JSON"),
    "key without quotes": (put('"licenses"', "licenses"), "a key: not JSON"),
    "key is a number": (put('"licenses"', "5"), "not JSON (a key that is no text"),
    "NaN in info": (put("1.5", "NaN"), "info.version is nan"),
    "infinity by size": (put("1.5", "1e999"), "info.version is inf"),
    "integer of 5000 digits": (put("1.5", "9" * 5000), "info: not JSON (Exceeds the limit"),
    "integer beyond 64 bits": (put("1.5", "9" * 30), "integer beyond 64 bits"),
    "100k nesting": (
        put("1.5", "[" * 100_000 + "]" * 100_000),
        "instances_train2017.json: info: nested too deeply",
    ),
    "100k nesting of objects": (put("1.5", '{"a":' * 100_000), "info: nested too deeply"),
    "100 nesting": (put("1.5", "[" * 100 + "]" * 100), "nested deeper than 30 levels"),
    "key twice": (put('"licenses"', '"info": 1, "licenses"'), "holds the key 'info' twice"),
    "key of an annotation twice": (
        put('"iscrowd": 0', '"iscrowd": 0, "area": 5, "area": 6'),
        "holds the key 'area' twice",
    ),
    "images no list": (entry(lambda document: document.update(images={})), "images is no list"),
    "no images": (entry(lambda document: document.update(images=[])), "holds no images"),
    "no annotations": (entry(lambda d: d.pop("annotations")), "holds no 'annotations'; is it"),
    "no categories": (entry(lambda d: d.pop("categories")), "holds no list of categories"),
    "image no object": (
        entry(lambda document: document["images"].insert(0, 5)),
        "images[0] is no object",
    ),
    "image id twice": (image(id=1000), "images[0] and images[2] have one id, 1000"),
    "image id missing": (lacking("images", "id"), "images[0].id is missing"),
    "image id a word": (image(id="7"), "images[2].id is '7', not an integer"),
    "image id true": (image(id=True), "images[2].id is True, not an integer"),
    "image id huge": (image(id=2**70), "not an integer"),
    "image width 0": (image(width=0), "images[2] (id 986).width is 0"),
    "image width negative": (image(width=-48), "images[2] (id 986).width is -48"),
    "image height a fraction": (image(height=32.0), "images[2] (id 986).height is 32.0, not"),
    "image of other size": (
        image(width=47),
        "images[2] (id 986) is 47x32, but the image has 48x32",
    ),
    "file name missing": (lacking("images", "file_name"), "(id 1000).file_name is None"),
    "file name leads out": (image(file_name="../x.jpg"), "file_name is '../x.jpg'"),
    "file name absolute": (image(file_name="/etc/passwd"), "file_name is '/etc/passwd'"),
    "file name a list": (image(file_name=[[[]]]), "file_name is a list"),
    "file name twice": (
        image(file_name="000000001000.jpg"),
        "duplicate sample name: images[0] and images[2] have one file_name",
    ),
    "file missing": (image(file_name="x.jpg"), "1 of 3 images of"),
    "NaN in an image": (image(date=float("nan")), "images[2].date is nan"),
    "category id twice": (twice("categories"), "categories[0] and categories[3] have one id, 18"),
    "category name twice": (
        entry(lambda document: document["categories"][1].update(name="dog")),
        "categories[0] and categories[1] have one name, 'dog'",
    ),
    "category without name": (lacking("categories", "name"), "categories[0] (id 18).name is None"),
    "annotation id twice": (twice("annotations"), "(id 100): another annotation has this id"),
    "annotation id missing": (lacking("annotations", "id"), "annotations[0].id is missing"),
    "unknown image": (first(image_id=5), f"{A0}.image_id is 5, which no image has"),
    "image id a float": (first(image_id=1000.0), f"{A0}.image_id is 1000.0, not an integer"),
    "unknown category": (first(category_id=2), f"{A0}.category_id is 2, which no category has"),
    "bbox missing": (lacking("annotations", "bbox"), f"{A0}.bbox is missing"),
    "bbox NaN": (first(bbox=[1, float("nan"), 2, 3]), f"{A0}.bbox[1] is nan"),
    "bbox infinite": (first(bbox=[1, 1, float("inf"), 3]), f"{A0}.bbox[2] is inf"),
    "bbox of three": (first(bbox=[1, 2, 3]), f"{A0}.bbox is not a list of four numbers"),
    "bbox of words": (first(bbox=list("1234")), f"{A0}.bbox is not a list of four numbers"),
    "bbox of truth": (first(bbox=[True, 1, 2, 3]), f"{A0}.bbox is not a list of four numbers"),
    "width negative": (first(bbox=[9, 2, -3, 4]), f"{A0}.bbox[2]: width is -3"),
    "height negative": (first(bbox=[9, 2, 3, -4.5]), f"{A0}.bbox[3]: height is -4.5"),
    "box over the border": (
        first(bbox=[40, 2, 12, 4]),
        f"{A0}.bbox [40, 2, 12, 4] is outside the image, 48x32",
    ),
    "box outside": (first(bbox=[50, 2, 12, 4]), "is outside the image, 48x32"),
    "area negative": (first(area=-1), f"{A0}.area is -1"),
    "area a word": (first(area="big"), f"{A0}.area is 'big'"),
    "iscrowd 2": (first(iscrowd=2), f"{A0}.iscrowd is 2, not 0 or 1"),
    "segmentation a number": (
        first(segmentation=5),
        f"{A0}.segmentation is neither polygons nor an RLE",
    ),
    "polygon of two points": (
        first(segmentation=[[1, 2, 3, 4]]),
        f"{A0}.segmentation[0] has 4 numbers, not x and y of 3 points or more",
    ),
    "polygon of half a point": (first(segmentation=[[1] * 7]), "segmentation[0] has 7 numbers"),
    "polygon of words": (
        first(segmentation=[[1] * 6, ["x"] * 6]),
        f"{A0}.segmentation[1] is no list of numbers",
    ),
    "polygon NaN": (
        first(segmentation=[[1, 2, 3, 4, 5, float("nan")]]),
        f"{A0}.segmentation[0][5] is nan",
    ),
    "RLE size": (
        rle(size=[48, 32]),
        f"{A0}.segmentation.size is [48, 32], but the image has [32, 48] (height, width)",
    ),
    "RLE too long": (
        rle(counts=[0, 32 * 48, 1]),
        f"{A0}.segmentation.counts: the runs have 1537 pixels, but the image has 1536",
    ),
    "RLE too short": (rle(counts=[1535]), "the runs have 1535 pixels"),
    "RLE negative": (rle(counts=[1546, -10]), "counts is no list of runs"),
    "RLE of words": (rle(counts=["x"]), "counts is no list of runs"),
    "RLE compressed, damaged": (rle(counts="\u00ff"), "counts is no compressed RLE"),
    "RLE compressed, cut": (rle(counts="o"), "counts is no compressed RLE"),
    "RLE compressed, too short": (rle(counts="5"), "the runs have 5 pixels"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_a_bad_annotation_file_is_explained_and_leaves_no_pack(name, source, capsys):
    spoil, message = BAD_JSON[name]
    spoil(source)
    check_refusal(COMMAND, source, 1, message, capsys)


def folder_gone(name):
    return lambda source: shutil.rmtree(source / name)


def zipped(spoil):
    def make(source):
        zips = zip_coco(source, source / "zips")
        for name in ("annotations", "train2017"):
            shutil.rmtree(source / name)
        for path in zips.iterdir():
            shutil.move(path, source)
        spoil(source)

    return make


def bit_of_json(source):
    path = source / "annotations_trainval2017.zip"
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)


def json_bomb(source):
    with zipfile.ZipFile(
        source / "annotations_trainval2017.zip", "w", zipfile.ZIP_DEFLATED
    ) as packed:
        packed.writestr("annotations/instances_train2017.json", b" " * 2**25)


def other_json(source):
    with zipfile.ZipFile(source / "annotations_trainval2017.zip", "w") as packed:
        packed.writestr("annotations/captions_train2017.json", b"{}")


def cut(name):
    def spoil(source):
        path = source / name
        path.write_bytes(path.read_bytes()[:-50])

    return spoil


BAD_SOURCES = {
    "source missing": (shutil.rmtree, COMMAND, 2, "source directory not found"),
    "no images": (folder_gone("train2017"), COMMAND, 2, "no train2017/ and no train2017.zip"),
    "no annotations": (
        folder_gone("annotations"),
        COMMAND,
        2,
        "no annotations/instances_train2017.json and no annotations_trainval2017.zip",
    ),
    "split unknown": (
        lambda source: None,
        [*COMMAND, "--split", "training"],
        2,
        "split 'training' unknown; choose train, val",
    ),
    "split test": (
        lambda source: None,
        [*COMMAND, "--split", "test"],
        2,
        "the annotations of COCO's test aren't published",
    ),
    "empty unknown": (lambda source: None, [*COMMAND, "--empty", "maybe"], 2, "'maybe' is not one"),
    "other year": (lambda source: None, [*COMMAND, "--year", "2014"], 2, "no train2014/"),
    "other annotations": (
        zipped(other_json),
        COMMAND,
        2,
        "no annotations/instances_train2017.json in annotations_trainval2017.zip",
    ),
    "zip cut": (zipped(cut("train2017.zip")), COMMAND, 1, "zip archive is cut or damaged"),
    "zip of annotations damaged": (zipped(bit_of_json), COMMAND, 1, "damaged archive member"),
    "zip bomb": (zipped(json_bomb), COMMAND, 1, "possible bomb"),
    "nothing left": (
        entry(lambda document: document.update(annotations=[])),
        [*COMMAND, "--empty", "drop"],
        1,
        "no image has annotations",
    ),
    "image damaged": (
        cut("train2017/000000000986.jpg"),
        COMMAND,
        1,
        "image is truncated",
    ),
    "image animated": (
        lambda source: Image.new("RGB", (48, 32)).save(
            source / "train2017" / "000000000986.jpg",
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (48, 32), "red")],
        ),
        COMMAND,
        1,
        "more than one frame",
    ),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_source_is_explained_and_leaves_no_pack(name, source, capsys):
    spoil, arguments, code, message = BAD_SOURCES[name]
    spoil(source)
    check_refusal(arguments, source, code, message, capsys)


def test_names_that_differ_in_their_endings_only_are_refused(source, capsys):
    document = read_document(source)
    shutil.copy(
        source / "train2017" / "000000001000.jpg", source / "train2017" / "000000001000.png"
    )
    document["images"].append({**document["images"][0], "id": 5, "file_name": "000000001000.png"})
    write_document(source, document)
    check_refusal(COMMAND, source, 1, "duplicate sample name: 000000001000.jpg and", capsys)


def test_no_damage_of_a_byte_comes_out_as_another_error():
    whole = json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 4}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}],
            "categories": [{"id": 1, "name": "a"}],
        }
    ).encode()
    outcomes = set()
    for place in range(len(whole)):
        for byte in b'\0"{}[]:,\\9-e\xff ':
            data = whole[:place] + bytes([byte]) + whole[place + 1 :]
            try:
                outcomes.add(len(read_coco(data, "x").images))
            except DataError:
                outcomes.add("refused")
    assert outcomes == {1, "refused"}


def test_no_text_of_counts_comes_out_as_an_error():
    for first_sign in range(256):
        for second in ("", "\0", "0", "o", "\uffff", "o" * 100):
            runs = decode_counts(chr(first_sign) + second)
            assert runs is None or all(isinstance(run, int) for run in runs)
