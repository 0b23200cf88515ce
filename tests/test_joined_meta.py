"""The metadata of a joined pack: what the sums, unions and equalities of its shards are."""

from collections import Counter

import pytest
from made_cityscapes import make_cityscapes
from made_coco import make_coco
from made_imagenet import make_imagenet
from made_voc import make_voc

from hatcli.data.packers import PACKERS
from hatcli.data.packs.joined import join_content
from hatcli.errors import PackError


def test_metadata_is_summed_by_the_rule_of_each_entry():
    def meta(index, **entries):
        totals = entries.pop("totals")
        return {"task": "any", "shard": {"index": index, "totals": totals}, **entries}

    first = meta(
        1,
        class_pixels=[1, 2],
        ignored_pixels=5,
        counts={"png": 2},
        label_ids_seen=[1, 3],
        sizes={"width": {"min": 2, "median": 2, "max": 2}},
        boxes=[[1], [2]],
        join={"boxes": "add"},
        totals={"width.2": 2},
    )
    second = meta(
        2,
        class_pixels=[10, 20],
        ignored_pixels=6,
        counts={"jpeg": 1, "png": 1},
        label_ids_seen=[2, 3],
        sizes={"width": {"min": 3, "median": 4, "max": 9}},
        boxes=[[10], [20]],
        join={"boxes": "add"},
        totals={"width.3": 1, "width.4": 1, "width.9": 1},
    )
    assert join_content([first, second]) == {
        "task": "any",
        "class_pixels": [11, 22],
        "ignored_pixels": 11,
        "counts": {"jpeg": 1, "png": 3},
        "label_ids_seen": [1, 2, 3],
        "sizes": {"width": {"min": 2, "median": 3, "max": 9}},
        "boxes": [[11], [22]],
        "join": {"boxes": "add"},
    }


SOURCES = {
    "cityscapes": (make_cityscapes, {}),
    "imagenet": (make_imagenet, {}),
    "voc": (make_voc, {"year": "2007", "task": "detection"}),
    "voc maps": (make_voc, {"year": "2007", "task": "segmentation"}),
    "mscoco": (make_coco, {}),
}


def test_every_packer_has_a_source_here():
    assert {name.split()[0] for name in SOURCES} == set(PACKERS.names())


@pytest.mark.filterwarnings("ignore:.*EXIF.*")
@pytest.mark.parametrize("name", SOURCES)
def test_the_metadata_of_two_parts_is_that_of_the_whole(name, tmp_path):
    make, options = SOURCES[name]
    make(tmp_path)
    node = {"type": name.split()[0], **options}
    packer = PACKERS.build(node, source_dir=tmp_path, split="train")
    made = [packer.make(index).totals for index in range(len(packer.stamps))]
    parts = [sum(made[:2], Counter()), sum(made[2:], Counter())]
    metas = [{**packer.describe(part), "shard": {"totals": dict(part)}} for part in parts]
    assert join_content(metas) == packer.describe(sum(made, Counter()))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (({"task": "a"}, {"task": "b"}), "shards differ in 'task': 'a' and 'b'"),
        (({"task": "a"}, {}), "shards differ in 'task': some lack it"),
        (({"class_pixels": [1]}, {"class_pixels": [1, 2]}), "shards differ in 'class_pixels'"),
        (({"join": {"task": "guess"}, "task": 1},) * 2, "'task' has the unknown rule 'guess'"),
    ],
)
def test_metadata_that_cant_be_summed_is_refused(entries, message):
    metas = [{"shard": {"totals": {}}, **one} for one in entries]
    with pytest.raises(PackError, match=message):
        join_content(metas)
