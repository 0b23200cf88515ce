"""The still parts of a drawn street: camera, light, sky, ground and the walls along the road.

World coordinates are in metres: x to the right of the camera, y above the ground, z ahead.
Each pixel's colour is computed from the place in the world that it shows, so lanes, slabs and
windows shrink with distance as in a photograph, and its label is set in the same stroke.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hatcli.data.scenes.textures import PAINTERS, Color, Face, Floats, clouds, floats, grain


class Light(NamedTuple):
    """What the hour and the weather do to colours.

    Attributes:
        gain: factor on each of red, green and blue.
        sky: colour overhead, 0 to 255.
        haze: colour at the horizon, into which distance fades, 0 to 255.
        haze_m: distance in metres at which 63 % of a colour is haze.
        shadow: factor on what the sun doesn't reach; 1 = no sun.
        sun: side of the road where the sun stands, -1 left or 1 right.
        reach: length of a shadow across the road for each metre of height.
        clouds: share of the sky that they cover.
        lamps: share of the windows that are lit.
    """

    gain: Color
    sky: Color
    haze: Color
    haze_m: float
    shadow: float
    sun: int
    reach: float
    clouds: float
    lamps: float


class View(NamedTuple):
    """A pinhole camera above the road, and the light; sizes in pixels, ``eye`` in metres."""

    width: int
    height: int
    focal: float
    center: float
    horizon: float
    eye: float
    light: Light

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Column and row of a point in front of the camera."""
        return self.center + x * self.focal / z, self.horizon + (self.eye - y) * self.focal / z

    def lit(self, color: Floats, z: Floats, gain: Floats | float = 1.0) -> Floats:
        """Colours (..., 3), 0 to 255, as they reach the camera from a distance z (...)."""
        clear = np.exp(z * (-1 / self.light.haze_m))[..., None]
        bright = floats(gain)[..., None] * floats(self.light.gain) * clear
        return color * bright + floats(self.light.haze) * (1 - clear)


class Picture(NamedTuple):
    """Pixels (height, width, 3) float32, 0 to 255 and beyond, and labels (height, width) uint8."""

    pixels: Floats
    labels: NDArray[np.uint8]
    view: View


class Walls(NamedTuple):
    """A row of upright surfaces along one side of the road.

    Attributes:
        x: where they stand; negative = left of the camera.
        starts: z of the near end of each, ascending.
        ends: z of the far end of each.
        tops: height of each in metres.
        look: (number of walls, 8) random numbers in [0, 1) that decide on colours and windows.
        depth: how far they reach away from the road in metres; 0 = thin.
        label: id of all.
        style: a name in `PAINTERS`.
    """

    x: float
    starts: Floats
    ends: Floats
    tops: Floats
    look: Floats
    depth: float
    label: int
    style: str

    def at(self, place: Floats) -> tuple[Floats, Floats]:
        """Height (0 between walls) and look at each place along the row."""
        index = np.searchsorted(self.starts, place, side="right") - 1
        index = np.clip(index, 0, len(self.starts) - 1)
        there = (place >= self.starts[index]) & (place < self.ends[index])
        return self.tops[index] * there, self.look[index]


class Zone(NamedTuple):
    """A strip of ground along the road, from ``left`` in metres to where the next one begins."""

    left: float
    label: int
    color: Color


class Mark(NamedTuple):
    """A painted line along the road, all in metres; ``period`` > 0 makes dashes of it."""

    x: float
    half_width: float
    period: float = 0.0
    near: float = 0.0
    far: float = 1e9


def paint_sky(picture: Picture, label: int, seed: int) -> None:
    """Fill everything with a graded sky and clouds."""
    view, light = picture.view, picture.view.light
    rows = np.arange(view.height, dtype=np.float32)
    height = np.clip(1 - rows / view.horizon, 0, 1)[:, None, None]  # 1 at the top
    shape = (view.width, view.height)
    cloud = 0.65 * clouds(shape, seed, 4) + 0.35 * clouds(shape, seed + 1, 11)
    cover = np.clip((cloud - 0.75 + 0.5 * light.clouds) * 5, 0, 1)[..., None]
    haze = floats(light.haze)
    pixels = haze + (floats(light.sky) - haze) * height**0.7
    bright = 0.75 * haze + 64 * floats(light.gain)
    picture.pixels[:] = pixels + (bright - pixels) * (cover * (0.25 + 0.55 * height))
    picture.labels[:] = label


def paint_ground(picture: Picture, zones: list[Zone], marks: list[Mark], shade: Walls) -> None:
    """Fill what lies under the horizon with strips of ground, road markings and shadows.

    Args:
        zones: five, from left to right: side, sidewalk, road, sidewalk, side.
        marks: only what falls on the road is painted.
        shade: the walls that stand between the sun and the road.
    """
    view = picture.view
    first = int(view.horizon) + 1
    rows = np.arange(first, view.height, dtype=np.float32)[:, None]
    z = floats(view.focal * view.eye / (rows - view.horizon))  # (rows, 1)
    x = floats((np.arange(view.width, dtype=np.float32) - view.center) * (z / view.focal))
    zone = np.digitize(x, [zone.left for zone in zones[1:]])
    color = floats([zone.color for zone in zones])[zone]
    near = 0.2 + np.clip(1.2 - z / 25, 0, 1)
    rough = floats([0.24, 0.05, 0.1, 0.05, 0.24])[zone] * near * grain(x * 22, z * 9)
    repaired = (zone == 2) & (grain(x * 0.4 + 50, z * 0.15) > 0.7)
    color *= (1 + rough + 0.04 * grain(x * 2, z) - np.float32(0.09) * repaired)[..., None]
    walk = (zone == 1) | (zone == 3)
    joints = (np.mod(x, 0.9) < 0.05) | (np.mod(z, 1.2) < 0.05)
    color[walk & joints & (z < 20)] *= 0.86
    curb = np.minimum(np.abs(x - zones[2].left + 0.1), np.abs(x - zones[3].left - 0.1)) < 0.1
    color[walk & curb] = (178, 176, 172)
    paint = _markings(x, z, view.focal, marks) * (zone == 2)
    paint *= 0.7 + 0.2 * grain(x * 9, z * 5)
    color += (floats((228, 226, 218)) - color) * paint[..., None]
    tops, _ = shade.at(z)
    dark = (shade.x - x) * view.light.sun < tops * view.light.reach
    gain = np.where(dark, floats(view.light.shadow), floats(1))
    picture.pixels[first:] = view.lit(color, z, gain)
    picture.labels[first:] = np.array([zone.label for zone in zones], np.uint8)[zone]


def paint_walls(picture: Picture, walls: Walls) -> None:
    """Stand a row of walls along the road: first the ends that face the camera, then the sides."""
    view = picture.view
    side = 1 if walls.x > 0 else -1
    columns = np.arange(view.width, dtype=np.float32) - view.center
    for index in range(len(walls.starts) - 1, -1, -1) if walls.depth else ():
        start, near = walls.starts[index], max(index - 1, 0)
        if start - walls.ends[near] < 0.1 and walls.tops[near] >= walls.tops[index]:
            continue  # hidden by the wall that adjoins it, or behind the camera
        along = columns * (max(start, 1.0) / view.focal)
        beyond = (along - walls.x) * side
        tops = walls.tops[index] * ((beyond >= 0) & (beyond < walls.depth))
        look = np.broadcast_to(walls.look[index], (view.width, 8))
        _paint_face(picture, walls, along, np.full_like(along, max(start, 1.0)), tops, look, 0.9)
    ahead = columns * side > 1
    z = floats(np.where(ahead, view.focal * walls.x / np.where(ahead, columns, 1), 1e6))
    gain = view.light.shadow if side == view.light.sun else 1.0
    _paint_face(picture, walls, z, z, *walls.at(z), gain)


def paint_backdrop(picture: Picture, walls: Walls) -> None:
    """Close the street at its far end: the walls stand across it at z = ``walls.x``."""
    view = picture.view
    x = (np.arange(view.width, dtype=np.float32) - view.center) * (walls.x / view.focal)
    tops, look = walls.at(x)
    if walls.style == "foliage":
        tops = tops * (1 + 0.25 * grain(x * 0.7, np.zeros_like(x)))
    _paint_face(picture, walls, x, np.full_like(x, walls.x), tops, look, 1.0)


def _paint_face(
    picture: Picture, walls: Walls, u: Floats, z: Floats, tops: Floats, look: Floats, gain: float
) -> None:
    """Paint the surface that stands at distance z (width,) where tops (width,) are above 0."""
    view = picture.view
    used = np.flatnonzero(tops > 0)
    if not len(used):
        return
    span = slice(used[0], used[-1] + 1)
    u, z, tops, look = u[span], z[span], tops[span], look[span]
    highest = view.horizon - float(((tops - view.eye) / z).max()) * view.focal
    lowest = view.horizon + float((view.eye / z[tops > 0]).max()) * view.focal
    band = slice(max(int(highest), 0), min(int(lowest) + 2, view.height))
    rows = np.arange(band.start, band.stop, dtype=np.float32)[:, None] - view.horizon
    up = floats(view.eye - rows * (z / view.focal))
    step = np.abs(np.gradient(u)) if len(u) > 1 else np.ones_like(u)
    color = PAINTERS[walls.style](Face(u, up, tops, look, floats(step), view.light.lamps))
    color = view.lit(color, z, gain)
    inside = (up > 0) & (up < tops)
    picture.labels[band, span][inside] = walls.label
    if walls.style == "railing":
        inside &= ~np.isnan(color[..., 0])
    np.copyto(picture.pixels[band, span], color, where=inside[..., None])


def _markings(x: Floats, z: Floats, focal: float, marks: list[Mark]) -> Floats:
    """Share of each pixel that is painted, so that far lines get faint instead of broken."""
    paint = np.zeros_like(x)
    for mark in marks:
        rows = np.flatnonzero((z[:, 0] > mark.near) & (z[:, 0] < mark.far))
        band = slice(rows[0], rows[-1] + 1) if len(rows) else slice(0)
        pixel = z[band] / focal
        cover = np.clip((mark.half_width - np.abs(x[band] - mark.x)) / pixel + 0.5, 0, 1)
        cover *= np.minimum(1, 2 * mark.half_width / pixel)
        if mark.period:
            cover *= np.mod(z[band], mark.period) < 0.45 * mark.period
        paint[band] = np.maximum(paint[band], cover)
    return paint
