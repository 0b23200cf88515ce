"""Class names, ids and colours of the datasets."""

from collections.abc import Sequence
from typing import NamedTuple

IGNORE = 255


class Label(NamedTuple):
    """One row of a label table.

    Attributes:
        id: value in the published label images.
        train_id: class index in training; 255 = ignored in training and in scores.
        color: RGB, 0 to 255, of the published colour images.
    """

    name: str
    id: int
    train_id: int
    color: tuple[int, int, int]


# The table of the Cityscapes dataset paper (Cordts et al., CVPR 2016) and its public tools.
CITYSCAPES = (
    Label("unlabeled", 0, 255, (0, 0, 0)),
    Label("ego vehicle", 1, 255, (0, 0, 0)),
    Label("rectification border", 2, 255, (0, 0, 0)),
    Label("out of roi", 3, 255, (0, 0, 0)),
    Label("static", 4, 255, (0, 0, 0)),
    Label("dynamic", 5, 255, (111, 74, 0)),
    Label("ground", 6, 255, (81, 0, 81)),
    Label("road", 7, 0, (128, 64, 128)),
    Label("sidewalk", 8, 1, (244, 35, 232)),
    Label("parking", 9, 255, (250, 170, 160)),
    Label("rail track", 10, 255, (230, 150, 140)),
    Label("building", 11, 2, (70, 70, 70)),
    Label("wall", 12, 3, (102, 102, 156)),
    Label("fence", 13, 4, (190, 153, 153)),
    Label("guard rail", 14, 255, (180, 165, 180)),
    Label("bridge", 15, 255, (150, 100, 100)),
    Label("tunnel", 16, 255, (150, 120, 90)),
    Label("pole", 17, 5, (153, 153, 153)),
    Label("polegroup", 18, 255, (153, 153, 153)),
    Label("traffic light", 19, 6, (250, 170, 30)),
    Label("traffic sign", 20, 7, (220, 220, 0)),
    Label("vegetation", 21, 8, (107, 142, 35)),
    Label("terrain", 22, 9, (152, 251, 152)),
    Label("sky", 23, 10, (70, 130, 180)),
    Label("person", 24, 11, (220, 20, 60)),
    Label("rider", 25, 12, (255, 0, 0)),
    Label("car", 26, 13, (0, 0, 142)),
    Label("truck", 27, 14, (0, 0, 70)),
    Label("bus", 28, 15, (0, 60, 100)),
    Label("caravan", 29, 255, (0, 0, 90)),
    Label("trailer", 30, 255, (0, 0, 110)),
    Label("train", 31, 16, (0, 80, 100)),
    Label("motorcycle", 32, 17, (0, 0, 230)),
    Label("bicycle", 33, 18, (119, 11, 32)),
    Label("license plate", -1, 255, (0, 0, 142)),
)

CITYSCAPES_CLASSES = tuple(
    row.name for row in sorted(CITYSCAPES, key=lambda row: row.train_id) if row.train_id != IGNORE
)
CITYSCAPES_PALETTE = tuple(
    row.color for row in sorted(CITYSCAPES, key=lambda row: row.train_id) if row.train_id != IGNORE
)

# The classes of PASCAL VOC (Everingham et al., IJCV 2010), in the order of its development kit;
# in its segmentation 0 is the background and these are 1 to 20.
VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
VOC_SEGMENTATION_CLASSES = ("background", *VOC_CLASSES)


def voc_color(index: int) -> tuple[int, int, int]:
    """RGB of a value in the label images of VOC, 0 to 255.

    The development kit's rule: bits 0, 3 and 6 of the index are the upper bits of red, highest
    first, 1, 4 and 7 those of green, 2 and 5 those of blue.
    """
    red, green, blue = (
        sum((index >> (3 * place + channel) & 1) << (7 - place) for place in range(3))
        for channel in range(3)
    )
    return red, green, blue


VOC_PALETTE = tuple(voc_color(index) for index in range(len(VOC_SEGMENTATION_CLASSES)))

_PALETTES = {CITYSCAPES_CLASSES: CITYSCAPES_PALETTE, VOC_SEGMENTATION_CLASSES: VOC_PALETTE}


def palette_of(classes: Sequence[str]) -> tuple[tuple[int, int, int], ...] | None:
    """The colours, RGB 0 to 255, that a dataset of these classes gives them; None if none."""
    return _PALETTES.get(tuple(classes))
