"""What stands and moves in a drawn street: vehicles, people, trees, poles, signs and lights.

Everything is made of polygons that a `Brush` draws twice, into the picture and into the labels,
so that the two agree in every pixel. Whoever draws goes from far to near.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from hatcli.data.scenes.parts import Picture
from hatcli.data.scenes.textures import Color

Point = tuple[float, float, float]
Edge = tuple[Point, Point]
STATIC, POLE, LIGHT, SIGN, LEAVES = 4, 17, 19, 20, 21
PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = 24, 25, 26, 27, 28, 31, 32, 33

PAINTS: tuple[Color, ...] = (
    *((206, 208, 210), (34, 36, 40), (122, 126, 130), (150, 28, 30), (30, 62, 122)),
    *((226, 226, 220), (62, 84, 70), (176, 150, 104), (90, 40, 44), (70, 110, 150)),
)
CLOTHES: tuple[Color, ...] = (
    *((36, 40, 54), (160, 40, 44), (206, 200, 190), (52, 88, 140), (98, 104, 92)),
    *((190, 140, 50), (82, 56, 90), (28, 28, 30), (120, 140, 160), (66, 110, 80)),
)
SKINS: tuple[Color, ...] = ((226, 184, 156), (198, 148, 116), (140, 96, 70), (92, 62, 46))
HAIRS: tuple[Color, ...] = ((40, 30, 24), (110, 80, 50), (160, 150, 140))
LEAF_COLORS: tuple[Color, ...] = ((74, 100, 42), (58, 86, 46), (104, 112, 44), (126, 104, 48))
TYRE, GLASS, STEEL, WHITE = (22, 22, 24), (44, 54, 64), (116, 118, 120), (232, 232, 226)


class Brush:
    """Draws shapes of the world onto a picture and its labels.

    Args:
        picture: what is there already; its arrays stay as they are.
        rng: decides on sizes and colours.
    """

    def __init__(self, picture: Picture, rng: np.random.Generator) -> None:
        self.view = picture.view
        self.rng = rng
        self.image = Image.fromarray(np.clip(picture.pixels, 0, 255).astype(np.uint8))
        self.labels = Image.fromarray(picture.labels)
        self._image = ImageDraw.Draw(self.image)
        self._labels = ImageDraw.Draw(self.labels)

    def fill(self, points: Sequence[Point], color: Color, label: int, gain: float = 1.0) -> None:
        """Draw a filled polygon; the first point's distance decides on the haze."""
        corners = [self.view.project(*point) for point in points]
        self._image.polygon(corners, fill=self._ink(color, points[0][2], gain))
        self._labels.polygon(corners, fill=label)

    def ring(self, points: Sequence[Point], color: Color, label: int, thick: float) -> None:
        """Draw an outline; one sees through its middle, which has the label too."""
        corners = [self.view.project(*point) for point in points]
        width = max(1, round(thick * self.view.focal / points[0][2]))
        self._image.polygon(corners, outline=self._ink(color, points[0][2], 1.0), width=width)
        self._labels.polygon(corners, fill=label)

    def bar(self, start: Point, end: Point, thick: float, color: Color, label: int) -> None:
        """Draw a straight line that is ``thick`` metres wide, at least one pixel."""
        ends = [self.view.project(*start), self.view.project(*end)]
        width = max(1, round(thick * self.view.focal / start[2]))
        self._image.line(ends, fill=self._ink(color, start[2], 1.0), width=width)
        self._labels.line(ends, fill=label, width=width)

    def panel(self, lower: Edge, upper: Edge, color: Color, label: int, gain: float = 1.0) -> None:
        """Draw what lies between two edges that point the same way."""
        self.fill([*lower, upper[1], upper[0]], color, label, gain)

    def box(
        self, foot: Point, wide: float, high: float, color: Color, label: int, gain: float = 1.0
    ) -> None:
        """Draw an upright rectangle that stands on ``foot``, the middle of its lower side."""
        (x, y, z), half = foot, wide / 2
        lower, upper = (
            ((x - half, y, z), (x + half, y, z)),
            ((x - half, y + high, z), (x + half, y + high, z)),
        )
        self.panel(lower, upper, color, label, gain)

    def pick(self, colors: Sequence[Color]) -> Color:
        """One of the colours, a little off."""
        red, green, blue = colors[int(self.rng.integers(len(colors)))]
        gain = float(self.rng.uniform(0.8, 1.15))
        return red * gain, green * gain, blue * gain

    def _ink(self, color: Color, z: float, gain: float) -> tuple[int, int, int]:
        """The same as `View.lit`, 8 times faster for one colour."""
        light = self.view.light
        clear = math.exp(-z / light.haze_m)
        red, green, blue = (
            max(0, min(255, int(part * gain * tint * clear + haze * (1 - clear))))
            for part, tint, haze in zip(color, light.gain, light.haze, strict=True)
        )
        return red, green, blue


def disc(center: Point, radius: float, corners: int = 12, heading: float = 0.0) -> list[Point]:
    """A regular polygon; ``heading`` turns it about the vertical axis, 0 = facing the camera."""
    x, y, z = center
    across, ahead = math.cos(heading) * radius, math.sin(heading) * radius
    turns = [2 * math.pi * (k + 0.5) / corners for k in range(corners)]
    return [
        (x + math.sin(t) * across, y - math.cos(t) * radius, z + math.sin(t) * ahead) for t in turns
    ]


class Body(NamedTuple):
    """Sizes of a vehicle in metres; places along it are shares of its length.

    Attributes:
        floor: height of the lower edge.
        belt: height of the windows' lower edge.
        rim: what is left between windows and roof.
        cabin: where the windows' foot begins, the roof begins and ends, the foot ends.
        panes: begin and end of each side window.
    """

    long: float
    half: float
    floor: float
    belt: float
    high: float
    rim: float
    cabin: tuple[float, float, float, float]
    panes: tuple[tuple[float, float], ...]


def _body(rng: np.random.Generator, label: int, oncoming: bool) -> Body:
    if label == TRUCK:
        long = rng.uniform(6, 9)
        if not oncoming:
            return Body(long, 1.22, 0.9, 3.2, 3.2, 0, (0, 0, 1, 1), ())
        return Body(long, 1.22, 0.5, 1.5, 3.0, 0.3, (0, 0.02, 1, 1), ((0.03, 0.14),))
    if label in (BUS, TRAIN):
        count, long, floor = (7, 11.5, 0.32) if label == BUS else (14, 24.0, 0.2)
        panes = tuple(((k + 0.1) / count, (k + 0.9) / count) for k in range(count))
        return Body(long, 1.22, floor, 1.2, rng.uniform(2.9, 3.3), 0.5, (0, 0.01, 0.99, 1), panes)
    cabin = (0.25, 0.44, 0.74, 0.9) if oncoming else (0.02, 0.1, 0.55, 0.75)
    if not oncoming and rng.random() < 0.5:
        cabin = (0.15, 0.28, 0.58, 0.76)
    panes = ((cabin[0] + 0.04, 0.46), (0.49, cabin[3] - 0.05))
    high = rng.uniform(1.4, 1.6) + 0.45 * (rng.random() < 0.2)
    half = rng.uniform(0.84, 0.95)
    return Body(rng.uniform(3.9, 4.7), half, 0.26, 0.92, high, 0.1, cabin, panes)


def draw_vehicle(
    brush: Brush, x: float, z: float, *, label: int = CAR, oncoming: bool = False
) -> None:
    """A car, truck, bus or tram whose near end is at ``z``."""
    body = _body(brush.rng, label, oncoming)
    paint = brush.pick(PAINTS if label in (CAR, TRUCK) else PAINTS[3:])
    left, right, lean = x - body.half, x + body.half, 0.13 if label == CAR else 0.02
    for wheel in (left + 0.16, right - 0.16):
        brush.box((wheel, 0, z + 0.3), 0.25, body.floor + 0.3, TYRE, label)
    brush.box((x, 0.18, z + 0.2), 2 * body.half - 0.25, body.floor, (20, 20, 22), label)
    if left > 0:
        _draw_flank(brush, (left, left + lean), z, label, body, paint)
    if right < 0:
        _draw_flank(brush, (right, right - lean), z, label, body, paint)

    def edge(inset: float, y: float, share: float) -> Edge:
        ahead = z + share * body.long
        return (left + inset, y, ahead), (right - inset, y, ahead)

    foot, roof = body.cabin[:2]
    belt = edge(0, body.belt, 0)
    brush.panel(belt, edge(0.02, body.belt, foot), paint, label, 1.2)
    if body.high > body.belt:
        lower, upper = edge(0.02, body.belt, foot), edge(0.02 + lean, body.high, roof)
        brush.panel(lower, upper, paint, label, 1.05)
        lower = edge(0.14, body.belt + 0.04, foot)
        upper = edge(0.12 + lean, body.high - body.rim, roof)
        brush.panel(lower, upper, GLASS, label, 1.3)
    brush.panel(edge(0, body.floor, 0), belt, paint, label)
    brush.panel(edge(0, body.floor, 0), edge(0, body.floor + 0.2, 0), paint, label, 0.6)
    lamp: Color = (250, 246, 226) if oncoming else (190, 22, 24)
    for place in (left + 0.2, right - 0.2):
        brush.box((place, body.floor + 0.34, z), 0.3, 0.2, lamp, label, 1.25)
    brush.box((x, body.floor + 0.24, z), 0.52, 0.12, WHITE, label)


def _draw_flank(
    brush: Brush, sides: tuple[float, float], z: float, label: int, body: Body, paint: Color
) -> None:
    """The side that one sees; ``sides`` are its x at the belt line and at the roof."""
    low, top = sides
    shine = 0.76 if (low > 0) == (brush.view.light.sun > 0) else 0.92

    def edge(start: float, end: float, y: float, x: float = low) -> Edge:
        return (x, y, z + start * body.long), (x, y, z + end * body.long)

    sill = edge(0, 1, body.floor)
    brush.panel(sill, edge(0, 1, body.belt), paint, label, shine)
    brush.panel(sill, edge(0, 1, body.floor + 0.16), paint, label, shine * 0.7)
    if body.high > body.belt:
        foot0, roof0, roof1, foot1 = body.cabin
        upper = edge(roof0, roof1, body.high, top)
        brush.panel(edge(foot0, foot1, body.belt), upper, paint, label, shine)
        for start, end in body.panes:
            upper = edge(
                max(start, roof0 + 0.02), min(end, roof1 - 0.02), body.high - body.rim, top
            )
            brush.panel(edge(start, end, body.belt + 0.03), upper, GLASS, label, shine)
    radius = 0.33 if label == CAR else 0.46
    for place in (z + 2.4 * radius, z + body.long - 2.4 * radius):
        brush.fill(disc((low, radius, place), radius, 12, math.pi / 2), TYRE, label)
        brush.fill(disc((low, radius, place), radius / 2, 8, math.pi / 2), STEEL, label)


def draw_person(
    brush: Brush, x: float, z: float, *, label: int = PERSON, lift: float = 0.0
) -> None:
    """Someone on foot; a rider sits ``lift`` metres higher."""
    rng = brush.rng
    tall, stride = rng.uniform(1.5, 1.9), rng.uniform(-0.22, 0.22)
    coat, legs, skin = brush.pick(CLOTHES), brush.pick(CLOTHES), brush.pick(SKINS)
    hip, shoulder, head = lift + 0.48 * tall, lift + 0.82 * tall, lift + 0.91 * tall
    feet = 0.3 if lift else 0.0
    for sign, gain in ((-1, 0.8), (1, 1.0)):
        foot = x + sign * (0.08 + stride)
        leg = ((foot - 0.08, feet, z), (foot + 0.08, feet, z))
        waist = ((x - 0.07 + sign * 0.08, hip, z), (x + 0.07 + sign * 0.08, hip, z))
        brush.panel(leg, waist, legs, label, gain)
    waist = ((x - 0.17, hip, z), (x + 0.17, hip, z))
    brush.panel(waist, ((x - 0.23, shoulder, z), (x + 0.23, shoulder, z)), coat, label)
    for sign in (-1, 1):
        hand = (x + sign * 0.27 - stride * 0.5, hip, z)
        brush.bar((x + sign * 0.21, shoulder - 0.03, z), hand, 0.09, coat, label)
    brush.box((x, shoulder - 0.02, z), 0.12, 0.1, skin, label, 0.8)
    brush.fill(disc((x, head + 0.02, z), 0.13, 10), brush.pick(HAIRS), label)
    brush.fill(disc((x + stride * 0.1, head - 0.02, z), 0.1, 10), skin, label)


def draw_two_wheeler(
    brush: Brush, x: float, z: float, *, label: int = BICYCLE, ridden: bool = False
) -> None:
    """A bicycle or motorcycle, parked or with a rider on it."""
    rng, paint = brush.rng, brush.pick(PAINTS)
    along = ridden and rng.random() < 0.6
    heading = float(rng.uniform(0.9, 1.3) if along else rng.uniform(0, 0.7))
    across, ahead = math.cos(heading), math.sin(heading)

    def at(place: float, y: float) -> Point:
        return x + place * across, y, z + place * ahead

    for hub in (at(0.56, 0.34), at(-0.56, 0.34)):
        if label == MOTORCYCLE:
            brush.fill(disc(hub, 0.34, 12, heading), TYRE, label)
            brush.fill(disc(hub, 0.16, 8, heading), STEEL, label)
        else:
            brush.ring(disc(hub, 0.34, 14, heading), TYRE, label, 0.06)
    if label == MOTORCYCLE:
        body = [
            at(-0.75, 0.75),
            at(-0.3, 0.3),
            at(0.35, 0.3),
            at(0.5, 0.85),
            at(0.3, 1.0),
            at(0, 0.8),
        ]
        brush.fill(body, paint, label)
        brush.bar(at(-0.75, 0.8), at(0, 0.8), 0.12, TYRE, label)
    else:
        joints = [at(-0.56, 0.34), at(-0.05, 0.3), at(0.4, 0.85), at(-0.2, 0.82)]
        for start, end in ((0, 1), (1, 2), (2, 3), (3, 0), (1, 3)):
            brush.bar(joints[start], joints[end], 0.05, paint, label)
        brush.bar(at(-0.3, 0.92), at(-0.1, 0.92), 0.08, TYRE, label)
    brush.bar(at(0.56, 0.34), at(0.4, 1.0), 0.06, STEEL, label)
    brush.box(at(0.4, 0.98), 0.6 * ahead + 0.1, 0.06, TYRE, label)
    if ridden:
        draw_person(brush, x - 0.1 * across, z, label=RIDER, lift=0.16)


def draw_tree(brush: Brush, x: float, z: float) -> None:
    """A broad-leaved tree, a conifer or a bush."""
    rng = brush.rng
    leaf, kind = brush.pick(LEAF_COLORS), rng.random()
    if kind > 0.85:
        high = rng.uniform(4, 8)
        brush.box((x, 0, z), 0.3, 1.5, (88, 72, 56), LEAVES)
        for k in range(5):
            low, half = high * (0.12 + 0.16 * k), high * (0.26 - 0.045 * k)
            skirt = [(x - half, low, z), (x + half, low, z), (x, low + high * 0.3, z)]
            brush.fill(skirt, (48, 74, 48), LEAVES, 0.75 + 0.1 * k)
        return
    bush = kind < 0.2
    high = rng.uniform(0.8, 1.6) if bush else rng.uniform(4.5, 9)
    wide = high * (rng.uniform(0.5, 0.7) if bush else rng.uniform(0.22, 0.36))
    trunk = 0 if bush else high * 0.35
    if not bush:
        brush.box((x, 0, z), 0.12 + high * 0.025, trunk + 0.8, (88, 72, 56), LEAVES)
    middle, reach = (high + trunk) / 2, (high - trunk) / 2
    for k in range(26):
        angle, radius = rng.uniform(0, 2 * math.pi), math.sqrt(rng.random())
        right, up = math.cos(angle) * radius, math.sin(angle) * radius
        gain = 0.7 + 0.22 * up + 0.16 * right * brush.view.light.sun + 0.012 * k
        center = (x + right * wide * 0.75, middle + up * reach * 0.75, z)
        blob = disc(center, wide * rng.uniform(0.22, 0.42), 7)
        brush.fill(blob, leaf, LEAVES, gain + rng.uniform(-0.08, 0.08))


def draw_lamp(brush: Brush, x: float, z: float) -> None:
    """A street lamp that leans over the road."""
    high, arm = brush.rng.uniform(5, 8), math.copysign(1.6, -x)
    gray = brush.pick((STEEL, (70, 76, 74)))
    brush.box((x, 0, z), 0.17, high, gray, POLE)
    brush.bar((x, high, z), (x + arm, high + 0.3, z), 0.1, gray, POLE)
    brush.box((x + arm, high + 0.2, z), 0.6, 0.14, WHITE, POLE)


def draw_traffic_light(brush: Brush, x: float, z: float) -> None:
    """A traffic light on its pole, at times with a second one on an arm over the road."""
    heads, gray = [(x, 2.4)], (84, 86, 86)
    if brush.rng.random() < 0.4:
        over = x + math.copysign(3.4, -x)
        brush.box((x, 0, z), 0.15, 5.3, gray, POLE)
        brush.bar((x, 5.2, z), (over, 5.3, z), 0.13, gray, POLE)
        heads.append((over, 4.5))
    brush.box((x, 0, z), 0.15, 2.5, gray, POLE)
    lit = brush.rng.integers(3)
    for place, low in heads:
        brush.box((place, low, z), 0.36, 1.0, (30, 32, 30), LIGHT)
        for k, color in enumerate(((60, 220, 110), (250, 180, 40), (240, 40, 36))):
            lens = disc((place, low + 0.2 + 0.3 * k, z), 0.12, 8)
            brush.fill(lens, color, LIGHT, 1.5 if k == lit else 0.22)


def draw_sign(brush: Brush, x: float, z: float) -> None:
    """A traffic sign on its pole: round, triangular, square, eight-cornered or a board."""
    rng, red, blue = brush.rng, (196, 30, 34), (30, 80, 170)
    brush.box((x, 0, z), 0.08, 2.6, STEEL, POLE)
    kind = rng.integers(5)
    if kind == 4:
        brush.box((x, 1.9, z), 1.5, 1.0, brush.pick((blue, (236, 196, 40), (30, 110, 70))), SIGN)
        for row in (2.15, 2.5):
            brush.box((x - 0.1, row, z), 1.0, 0.12, WHITE, SIGN)
        return
    corners = (16, 3, 4, 8)[kind]
    outer, inner = ((red, WHITE), (red, WHITE), (WHITE, blue), (WHITE, red))[kind]
    for y in (2.5, 1.75) if rng.random() < 0.3 else (2.5,):
        brush.fill(disc((x, y, z), 0.42, corners), outer, SIGN)
        brush.fill(disc((x, y, z), 0.31, corners), inner, SIGN)
        brush.box((x, y - 0.1, z), 0.14, 0.2, (40, 40, 44) if inner == WHITE else WHITE, SIGN)


def draw_bin(brush: Brush, x: float, z: float) -> None:
    """A bin or cabinet: a still thing that belongs to no class in training."""
    high = brush.rng.uniform(0.8, 1.4)
    paint = brush.pick(((70, 90, 76), (110, 112, 114), (90, 66, 48)))
    brush.box((x, 0, z), 0.7, high, paint, STATIC)
    brush.box((x, high, z), 0.76, 0.1, paint, STATIC, 0.7)
