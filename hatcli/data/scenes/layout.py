"""What a drawn street consists of: strips of ground, walls, and all that stands or moves on it.

Metres as in `parts`; the camera's own lane is centred on x = 0, and traffic keeps right.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from hatcli.data.scenes import things
from hatcli.data.scenes.parts import Light, Mark, View, Walls, Zone
from hatcli.data.scenes.textures import Color, floats

ROAD, SIDEWALK, PARKING, TERRAIN = GROUND = 7, 8, 9, 22
BUILDING, WALL, FENCE, VEGETATION = 11, 12, 13, 21
BOUNDARIES = ((FENCE, "railing"), (WALL, "masonry"), (VEGETATION, "foliage"))
PARKED = 2.1  # width in metres of a row of parked cars


class Thing(NamedTuple):
    """Something on the ground.

    Attributes:
        x: of its middle.
        z: of its near end.
        size: width and length on the ground in metres.
    """

    x: float
    z: float
    size: tuple[float, float]
    draw: Callable[[things.Brush], None]


class Plan(NamedTuple):
    """A street, ready to be painted.

    Attributes:
        backdrops: across the far end of the street; in the order of painting.
        walls: along the road; in the order of painting, those on the left first.
        things: from far to near.
    """

    zones: list[Zone]
    marks: list[Mark]
    backdrops: list[Walls]
    walls: list[Walls]
    things: list[Thing]


def look_ahead(rng: np.random.Generator, size: tuple[int, int]) -> View:
    """A camera for a (width, height) in pixels, at some hour in some weather."""
    width, height = size
    sun = 1 if rng.random() < 0.5 else -1
    clouds = float(rng.uniform(0.1, 0.8))
    light = (
        Light((1.1, 1.06, 1.0), (74, 128, 196), (200, 212, 222), 160, 0.52, sun, 0.45, clouds, 0.0),
        Light((1.2, 1.04, 0.82), (92, 132, 182), (238, 214, 178), 120, 0.5, sun, 1.1, clouds, 0.03),
        Light((0.84, 0.87, 0.9), (168, 176, 184), (206, 208, 210), 90, 1.0, sun, 0.0, 0.9, 0.08),
        Light((0.62, 0.56, 0.62), (62, 76, 122), (222, 158, 116), 110, 0.8, sun, 0.3, clouds, 0.4),
    )[int(rng.choice(4, p=(0.35, 0.2, 0.27, 0.18)))]
    return View(
        width,
        height,
        focal=float(width * rng.uniform(0.78, 0.95)),
        center=float(width * rng.uniform(0.4, 0.6)),
        horizon=float(height * rng.uniform(0.4, 0.5)),
        eye=float(rng.uniform(1.25, 1.65)),
        light=light,
    )


def plan_street(rng: np.random.Generator) -> Plan:
    """A street in a town, between gardens or through a park, and who is on it."""
    street = _street(rng)
    crowd = _traffic(rng, street)
    walls = []
    for side in (0, 1):
        walls += _roadside_walls(rng, street, side)
        crowd += _roadside(rng, street, side) + _greenery(rng, street, side)
    houses = _walls(rng, 120.0, (8, 20), (0, 12), (6, 22), (0, BUILDING, "facade"), start=-110)
    trees = _walls(rng, 105.0, (5, 25), (0, 20), (3, 9), (0, VEGETATION, "foliage"), start=-100)
    crowd.sort(key=lambda thing: -thing.z)
    return Plan(_zones(rng, street), _marks(rng, street), [houses, trees], walls, crowd)


class Street(NamedTuple):
    """Where the strips of a street end, and what lies at its sides; each is (left, right).

    Attributes:
        road: x of the road's edges in metres.
        walk: x of the outer edges of the sidewalks in metres.
        kinds: "town", "garden" or "park".
        parked: whether cars are parked along the edge of the road.
    """

    road: tuple[float, float]
    walk: tuple[float, float]
    kinds: tuple[str, str]
    parked: tuple[bool, bool]

    @property
    def lanes(self) -> tuple[float, float]:
        """Edges of what is driven on, beside parked cars."""
        left, right = self.road
        return left + PARKED * self.parked[0], right - PARKED * self.parked[1]


def _street(rng: np.random.Generator) -> Street:
    lane = rng.uniform(2.9, 3.5)
    parked = (bool(rng.random() < 0.55), bool(rng.random() < 0.55))
    left = -lane * (1.5 + int(rng.random() < 0.2)) - PARKED * parked[0]
    right = lane * 0.5 + PARKED * parked[1] + 0.3
    kinds = [str(rng.choice(("town", "garden", "park"), p=(0.44, 0.34, 0.22))) for _ in range(2)]
    walks = rng.uniform(1.8, 4, 2)
    return Street(
        (float(left), float(right)),
        (float(left - walks[0]), float(right + walks[1])),
        (kinds[0], kinds[1]),
        parked,
    )


def _zones(rng: np.random.Generator, street: Street) -> list[Zone]:
    """The five strips of ground from left to right."""
    walk = (SIDEWALK, _gray(rng, 132, 168, float(rng.uniform(0, 10))))
    strips = []
    for kind in street.kinds:
        outer = (SIDEWALK if rng.random() < 0.7 else PARKING, _gray(rng, 104, 140, 5))
        if kind != "town":
            level = rng.uniform((84, 106, 48), (140, 136, 76)).tolist()
            outer = (TERRAIN, (level[0], level[1], level[2]))
        verge = outer if kind != "town" and rng.random() < 0.4 else walk
        strips.append((outer, verge))
    (left, left_verge), (right, right_verge) = strips
    return [
        Zone(-1e9, *left),
        Zone(street.walk[0], *left_verge),
        Zone(street.road[0], ROAD, _gray(rng, 82, 116, float(rng.uniform(-3, 3)))),
        Zone(street.road[1], *right_verge),
        Zone(street.walk[1], *right),
    ]


def _gray(rng: np.random.Generator, low: float, high: float, warm: float) -> Color:
    level = float(rng.uniform(low, high))
    return level + warm, level, level - warm


def _marks(rng: np.random.Generator, street: Street) -> list[Mark]:
    """Lines along the road, and at times a zebra crossing."""
    left, right = street.lanes
    lane = 2 * (right - 0.3)  # the camera's lane is centred on x = 0
    marks = [Mark(-lane / 2, 0.07, float(rng.choice((0, 6, 9))))]
    if left < -2 * lane:
        marks.append(Mark(-1.5 * lane, 0.06, 9.0))
    if rng.random() < 0.6:
        marks += [Mark(left + 0.25, 0.06), Mark(right - 0.25, 0.06)]
    if rng.random() < 0.35:
        near = float(rng.uniform(7, 25))
        stripes = np.arange(left + 0.5, right, 1.0).tolist()
        marks += [Mark(stripe, 0.25, 0.0, near, near + 3) for stripe in stripes]
    return marks


def _roadside_walls(rng: np.random.Generator, street: Street, side: int) -> list[Walls]:
    """Houses on one side and what fences them off, in the order of painting."""
    sign, edge, kind = (-1, 1)[side], street.walk[side], street.kinds[side]
    back = {"town": (0, 3), "garden": (5, 9), "park": (14, 26)}[kind]
    tops = {"town": (7, 21), "garden": (4.5, 9), "park": (6, 18)}[kind]
    gap = {"town": (0, 4), "garden": (3, 8), "park": (5, 30)}[kind]
    x = edge + sign * float(rng.uniform(*back))
    rows = [_walls(rng, x, (9, 19), gap, tops, (12, BUILDING, "facade"))]
    if kind != "town" and rng.random() < 0.9:
        label, style = BOUNDARIES[int(rng.choice(len(BOUNDARIES), p=(0.45, 0.33, 0.22)))]
        x = edge + sign * float(rng.choice((0.0, rng.uniform(1, 5))))
        high = float(rng.uniform(0.8, 1.9))
        rows.append(_walls(rng, x, (10, 30), (4, 20), (high, high), (0, label, style)))
    return rows


def _walls(
    rng: np.random.Generator,
    x: float,
    long: tuple[float, float],
    gap: tuple[float, float],
    tops: tuple[float, float],
    kind: tuple[float, int, str],
    start: float = 0.0,
) -> Walls:
    """A row of walls from ``start`` on that adjoin or, one in three, leave a gap."""
    count = 24
    gaps = rng.uniform(*gap, count) * (rng.random(count) < 0.35)
    lengths = rng.uniform(*long, count)
    ends = start + np.cumsum(gaps + lengths) - rng.uniform(0, long[1])
    heights, look = rng.uniform(*tops, count), rng.random((count, 8), dtype=np.float32)
    return Walls(x, floats(ends - lengths), floats(ends), floats(heights), look, *kind)


def _thing(
    draw: Callable[..., None], x: float, z: float, size: tuple[float, float], **more: int | bool
) -> Thing:
    return Thing(x, z, size, partial(draw, x=x, z=z, **more))


def _traffic(rng: np.random.Generator, street: Street) -> list[Thing]:
    """Vehicles, riders and people on the road."""
    left, right = street.lanes
    lane = 2 * (right - 0.3)
    kinds = (things.CAR, things.TRUCK, things.BUS, things.TRAIN)
    crowd = []
    for x, oncoming, chance in ((0.0, False, 0.6), (-lane, True, 0.5), (-lane, True, 0.4)):
        label = int(rng.choice(kinds, p=(0.4, 0.2, 0.2, 0.2)))
        z = float(rng.uniform(*((11, 48) if label == things.CAR else (14, 40))))
        size = (1.8, 4.3) if label == things.CAR else (2.4, 9)
        if rng.random() < chance:
            crowd.append(_thing(things.draw_vehicle, x, z, size, label=label, oncoming=oncoming))
    for label, chance in ((things.BICYCLE, 0.5), (things.MOTORCYCLE, 0.3)):
        x, z = float(rng.choice((left + 0.7, right - 0.6))), float(rng.uniform(7, 24))
        if rng.random() < chance:
            crowd.append(
                _thing(things.draw_two_wheeler, x, z, (0.8, 1.2), label=label, ridden=True)
            )
    if rng.random() < 0.3:
        x, z = float(rng.uniform(left, right)), float(rng.uniform(12, 32))
        crowd.append(_thing(things.draw_person, x, z, (0.6, 0.4)))
    return crowd


def _roadside(rng: np.random.Generator, street: Street, side: int) -> list[Thing]:
    """Parked vehicles, people on the sidewalk, poles, signs, lights and bins."""
    sign, curb = (-1, 1)[side], street.road[side]
    wide = abs(street.walk[side] - curb)
    crowd = []
    for z in _spots(rng, 6, 62, 6.0) if street.parked[side] else ():
        if rng.random() < 0.7:
            x = curb - sign * PARKED / 2
            crowd.append(_thing(things.draw_vehicle, x, z, (1.8, 4.3), oncoming=side == 0))
    for z in _spots(rng, 9, 80, 24):
        crowd.append(_thing(things.draw_lamp, curb + sign * 0.4, z, (0.3, 0.3)))
    for draw, most in ((things.draw_sign, 3), (things.draw_traffic_light, 2), (things.draw_bin, 2)):
        for z in rng.uniform(8, 34, int(rng.integers(most))).tolist():
            crowd.append(_thing(draw, curb + sign * float(rng.uniform(0.3, 0.6)), z, (0.4, 0.4)))
    for z in rng.uniform(7, 42, int(rng.poisson(2.4))).tolist():
        x = curb + sign * float(rng.uniform(0.5, wide - 0.2))
        crowd.append(_thing(things.draw_person, x, z, (0.6, 0.4)))
    for label, chance in ((things.BICYCLE, 0.35), (things.MOTORCYCLE, 0.2)):
        z = float(rng.uniform(7, 22))
        if rng.random() < chance:
            crowd.append(
                _thing(things.draw_two_wheeler, curb + sign * 0.8, z, (1.6, 0.5), label=label)
            )
    return crowd


def _greenery(rng: np.random.Generator, street: Street, side: int) -> list[Thing]:
    """Trees and bushes, in a row along the curb or loose behind the sidewalk."""
    sign, kind = (-1, 1)[side], street.kinds[side]
    if kind == "town" and rng.random() < 0.55:
        return []
    gap = {"town": 12.0, "garden": 8.0, "park": 4.5}[kind]
    start = street.road[side] if kind == "town" else street.walk[side]
    farthest = {"town": 0.9, "garden": 4.5, "park": 13.0}[kind]
    return [
        _thing(things.draw_tree, start + sign * float(rng.uniform(0.9, farthest)), z, (1.2, 1.0))
        for z in _spots(rng, 9, 80, gap)
    ]


def _spots(rng: np.random.Generator, near: float, far: float, gap: float) -> list[float]:
    """Distances from ``near`` to ``far``, each at least ``gap`` behind the one before."""
    spots = near + np.cumsum(gap * rng.uniform(1, 1.5, int((far - near) / gap))) - gap
    return spots[spots < far].tolist()
