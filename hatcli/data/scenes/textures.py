"""What the surfaces of a drawn street look like from close up: facades, bricks, bars, leaves."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Color = tuple[float, float, float]


class Face(NamedTuple):
    """A surface to paint, column by column.

    Attributes:
        u: (columns,) place along the surface in metres.
        up: (rows, columns) height above the ground in metres.
        tops: (columns,) height of the surface.
        look: (columns, 8) as in `Walls`.
        step: (columns,) metres from a column to the next.
        lamps: share of the windows that are lit.
    """

    u: Floats
    up: Floats
    tops: Floats
    look: Floats
    step: Floats
    lamps: float


def floats(values: Any) -> Floats:
    """The values as a float32 array."""
    return np.asarray(values, np.float32)


def clouds(shape: tuple[int, int], seed: int, cells: int) -> Floats:
    """Smooth noise for a (width, height): (height, width) float32 in about [0, 1]."""
    coarse = np.random.default_rng(seed).random((cells, cells), dtype=np.float32)
    whole = Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC)
    return np.asarray(whole)


def grain(u: Floats, v: Floats) -> Floats:
    """A fixed rough texture in [-1, 1] that repeats every 256 units."""
    return _grain_tile()[np.floor(v).astype(np.int32) & 255, np.floor(u).astype(np.int32) & 255]


@lru_cache(maxsize=1)
def _grain_tile() -> Floats:
    return floats(np.random.default_rng(20).uniform(-1, 1, (256, 256)))


FACADES = floats(
    [
        *((186, 152, 118), (150, 84, 66), (196, 188, 172), (128, 132, 138), (204, 180, 128)),
        *((120, 96, 84), (172, 186, 176), (150, 164, 184), (212, 206, 198), (166, 116, 96)),
    ]
)


def _facade(face: Face) -> Floats:
    """Plaster or brick with rows of windows, a ground floor of shops or doors, and a roof edge."""
    look, up = face.look, face.up
    base = FACADES[(look[:, 0] * 10).astype(int)] * (0.75 + 0.4 * look[:, 1:2])
    spacing = 1.9 + 2.2 * look[:, 2]
    column, level = face.u / spacing, (up - 0.7) / (2.9 + 0.8 * look[:, 3])
    shop = (up < 3.4) & (look[:, 7] > 0.35)
    a = np.abs(np.mod(np.where(shop, column / 2, column), 1) - 0.5)
    rise = np.mod(level, 1)
    b = np.abs(rise - 0.5)
    wide = np.where(shop, floats(0.42), 0.18 + 0.22 * look[:, 5])
    tall = np.where(shop, floats(0.36), 0.26 + 0.14 * look[:, 6])
    frame = (a < wide + 0.06) & (b < tall + 0.05) & (up < face.tops - 0.9)
    glass = (a < wide) & (b < tall) & frame
    chance = np.mod(np.floor(column) * 0.618 + np.floor(level) * 0.377 + look[:, 4] * 9, 1)
    material = np.where(glass, np.where(chance < face.lamps, 3, 2), frame)
    material = np.where(shop & (up > 2.9), 4, material)
    roof = up > face.tops - np.where(look[:, 4] > 0.5, floats(0.35), floats(2.2))
    bright = np.where(material == 2, 0.5 + 0.9 * chance + 0.3 * b, 1)
    bright += 0.05 * grain(face.u * 5, up * 12) - np.float32(0.12) * ((rise < 0.05) & ~glass)
    pane, lamp = floats((66, 78, 92)), floats((300, 236, 150))
    awning = FACADES[(look[:, 7] * 10).astype(int)] * floats((0.9, 0.6, 0.6))
    trim, top = np.minimum(base * 1.25 + 12, 235), base * 0.3 + floats((42, 34, 34))
    materials = np.stack(np.broadcast_arrays(base, trim, pane, lamp, awning, top))
    fine = np.clip(0.4 * spacing / face.step, 0, 1)[:, None]  # what is under a pixel fades away
    materials[1:5] = base + (materials[1:5] - base) * fine
    places = np.where(roof, 5, material) * len(base) + np.arange(len(base))
    color = materials.reshape(-1, 3).take(places, axis=0)
    return floats(color * (1 + (bright - 1) * fine[:, 0])[..., None])


def _masonry(face: Face) -> Floats:
    """Brick or concrete with a coping."""
    u, up, look = face.u, face.up, face.look
    brick = look[:, 0] > 0.5
    base = np.where(brick[:, None], floats((140, 88, 72)), floats((150, 148, 142)))
    base = base * (0.7 + 0.5 * look[:, 1:2])
    seams = (np.mod(up, 0.22) < 0.04) | (np.mod(u + 0.25 * np.floor(up / 0.22), 0.5) < 0.05)
    dark = np.where(brick, seams, np.mod(u, 2.4) < 0.08) * floats(0.22)
    rough = (0.08 * grain(u * 7, up * 9) - dark) * np.clip(0.3 / face.step, 0, 1)
    return np.where((up > face.tops - 0.14)[..., None], base * 1.25, base * (1 + rough[..., None]))


def _railing(face: Face) -> Floats:
    """Bars or boards between posts; NaN where one sees through."""
    u, up, look = face.u, face.up, face.look
    boards = look[:, 0] > 0.55
    metal, wood = floats((74, 82, 80)), floats((146, 112, 80))
    base = np.where(boards[:, None], wood, metal) * (0.7 + 0.6 * look[:, 1:2])
    bars = (np.mod(u, 0.2) < np.where(boards, 0.16, 0.08)) | (face.step > 0.14)
    rails = (np.abs(up - face.tops + 0.12) < 0.06) | (np.abs(up - 0.2) < 0.05)
    posts = np.mod(u, 2.5) < 0.14
    color = base * (0.9 + 0.1 * grain(u * 6, up * 3))[..., None]
    return np.where((bars | rails | posts)[..., None], color, floats(np.nan))


def _foliage(face: Face) -> Floats:
    """Leaves, darker towards the ground."""
    base = floats((66, 92, 40)) + floats((52, 36, 22)) * face.look[:, 0:1]
    leaves = 0.22 * grain(face.u * 9, face.up * 9) + 0.16 * grain(face.u * 2.5, face.up * 2.5)
    return floats(base * (0.65 + 0.4 * face.up / np.maximum(face.tops, 0.1) + leaves)[..., None])


PAINTERS: dict[str, Callable[[Face], Floats]] = {
    "facade": _facade,
    "masonry": _masonry,
    "railing": _railing,
    "foliage": _foliage,
}
