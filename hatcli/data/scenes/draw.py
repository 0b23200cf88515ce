"""Street scenes with labels, drawn by rule: data for the demo and the tests, with no download.

They lie on disk as the Cityscapes dataset does, with its ids, and hold all its 19 classes and a
few ignored ones. They prove that a pipeline works and learns; a score on them says nothing about
real streets.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from hatcli.data.scenes.layout import GROUND, Thing, look_ahead, plan_street
from hatcli.data.scenes.parts import Picture, paint_backdrop, paint_ground, paint_sky, paint_walls
from hatcli.data.scenes.textures import Floats, floats
from hatcli.data.scenes.things import PAINTS, Brush
from hatcli.errors import UsageError

CITIES = {"train": "ostmark", "val": "westhaven"}
SMALLEST = (64, 32)
EGO, OUT_OF_ROI, SKY = 1, 3, 23


def write_scenes(
    root: Path, *, train: int, val: int, size: tuple[int, int] = (512, 256), seed: int = 0
) -> Iterator[Path]:
    """Write ``leftImg8bit`` and ``gtFine`` folders below ``root``, one scene at each step.

    The same seed and size give the same pictures; scene k of a split doesn't depend on how many
    are asked for.

    Args:
        train: number of scenes in the train split.
        val: number of scenes in the val split.
        size: (width, height) in pixels, at least 64 by 32.

    Yields:
        The path of each image, once the image and its labels are written.

    Raises:
        UsageError: a count is negative or the size too small; before anything is written.
    """
    if min(train, val) < 0:
        raise UsageError(f"scenes: can't draw {min(train, val)} of them", "ask for 0 or more")
    _check_size(size)
    for part, (split, count) in enumerate((("train", train), ("val", val))):
        city = CITIES[split]
        for kind in ("leftImg8bit", "gtFine") if count else ():
            (root / kind / split / city).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, labels = draw_scene(np.random.default_rng([seed, part, index]), size)
            name = f"{city}_{index:06d}_000019"
            label_path = root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png"
            image_path = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
            Image.fromarray(labels).save(label_path, compress_level=1)
            Image.fromarray(image).save(image_path, compress_level=1)  # 10 times faster than 6
            yield image_path


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int] = (512, 256)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One street, seen from a car.

    Args:
        size: (width, height) in pixels, at least 64 by 32.

    Returns:
        (height, width, 3) uint8 RGB, and (height, width) uint8 ids of the published label table.
    """
    _check_size(size)
    view = look_ahead(rng, size)
    plan = plan_street(rng)
    shape = (size[1], size[0])
    picture = Picture(np.zeros((*shape, 3), np.float32), np.zeros(shape, np.uint8), view)
    paint_sky(picture, SKY, int(rng.integers(2**31)))
    for backdrop in plan.backdrops:
        paint_backdrop(picture, backdrop)
    casting = next(walls for walls in plan.walls if (walls.x > 0) == (view.light.sun > 0))
    paint_ground(picture, plan.zones, plan.marks, casting)
    for walls in plan.walls:
        paint_walls(picture, walls)
    _shade_ground(picture, plan.things)
    brush = Brush(picture, rng)
    for thing in plan.things:
        thing.draw(brush)
    return _photograph(brush)


def _check_size(size: tuple[int, int]) -> None:
    if size[0] < SMALLEST[0] or size[1] < SMALLEST[1]:
        raise UsageError(
            f"scenes: size {size[0]}x{size[1]} is too small",
            f"ask for at least {SMALLEST[0]}x{SMALLEST[1]}",
        )


def _shade_ground(picture: Picture, things: list[Thing]) -> None:
    """Darken the ground under things, and beside them where the sun casts shadows."""
    view = picture.view
    mask = Image.new("L", (view.width, view.height))
    draw = ImageDraw.Draw(mask)
    for thing in things:
        wide, long = thing.size
        cast = -view.light.sun * view.light.reach * (view.light.shadow < 0.9)
        left, right = thing.x - wide / 2 + min(cast, 0), thing.x + wide / 2 + max(cast, 0)
        near, far = max(thing.z - 0.2, 1), thing.z + long
        corners = ((left, near), (right, near), (right, far), (left, far))
        draw.polygon([view.project(x, 0, z) for x, z in corners], fill=150)
    shade = np.asarray(mask.filter(ImageFilter.BoxBlur(max(1, view.height / 170))))
    first = int(view.horizon)
    ground = np.isin(picture.labels[first:], GROUND)
    picture.pixels[first:] *= 1 - (shade[first:] * ground / np.float32(255))[..., None]


def _photograph(brush: Brush) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Add the bonnet, then what a lens and a sensor do: soft edges, dark corners, noise."""
    rng, view = brush.rng, brush.view
    bonnet = float(rng.uniform(0.03, 0.09)) * view.height
    shape = (view.width * 0.08, view.height - bonnet, view.width * 0.92, view.height + 5 * bonnet)
    paint = tuple(int(part * 0.5) for part in brush.pick(PAINTS))
    ImageDraw.Draw(brush.image).ellipse(shape, fill=paint)
    ImageDraw.Draw(brush.labels).ellipse(shape, fill=EGO)
    soft = brush.image.filter(ImageFilter.BoxBlur(view.width / 1280))
    x, y = np.linspace(-1, 1, view.width), np.linspace(-1, 1, view.height)[:, None]
    gain = floats((1 - 0.16 * (x * x + y * y)) * rng.uniform(0.9, 1.1))
    noise = rng.standard_normal((view.height, view.width), np.float32) * rng.uniform(1.5, 4)
    pixels: Floats = np.asarray(soft) * gain[..., None] + floats(noise + 0.5)[..., None]
    labels = np.array(brush.labels)
    border = max(1, view.width // 400)
    labels[:, :border] = labels[:, -border:] = OUT_OF_ROI
    labels[:border] = labels[-border:] = OUT_OF_ROI
    return np.clip(pixels, 0, 255).astype(np.uint8), labels
