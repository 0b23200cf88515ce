"""Random integer graphs of several layers, as a model could be lowered to."""

import torch
from integer_graphs import graph_of, pick, random_conv, random_grid, random_linear

from hatcli.quantize.grid import Grid
from hatcli.quantize.integer.arithmetic import IntAdd, IntConcat, IntMultiply, Requantize
from hatcli.quantize.integer.floats import Dequantize, Quantize
from hatcli.quantize.integer.maps import (
    IntClamp,
    IntFlatten,
    IntGlobalAvgPool,
    IntMaxPool2d,
    IntPad,
    IntUpsampleNearest,
)


class _Map:
    """A tensor of the graph: where it comes from, its grid and its shape."""

    def __init__(self, name, grid, channels, height, width):
        self.name, self.grid, self.channels = name, grid, channels
        self.height, self.width = height, width

    @property
    def shape(self):
        return self.channels, self.height, self.width


def random_graph(rng, *, layers=8, channels=3, size=(9, 12), flat=None):
    """A graph of integers alone, and the grid of its images.

    Args:
        flat: whether it ends in a pooling and a linear layer; None leaves it to chance.
    """
    grid = random_grid(rng)
    steps = [("input", Quantize(out=grid), "images")]
    maps = [_Map("input", grid, channels, *size)]
    for number in range(layers):
        take = _LAYERS[int(rng.integers(len(_LAYERS)))]
        made = take(maps, rng)
        if made is None or made[2][1] * made[2][2] > 1500 or made[2][0] > 90:
            continue
        op, inputs, shape = made
        name = f"{pick(rng, ['a', 'b', 'a.c'])}.l{number}"
        name += "_pad" if isinstance(op, IntPad) else ""
        steps.append((name, op, *inputs))
        maps.append(_Map(name, op.out, *shape))
    last = maps[-1]
    if flat if flat is not None else rng.random() < 0.4:
        pooled, out = random_grid(rng, last.grid), random_grid(rng)
        steps += [
            ("pool", IntGlobalAvgPool(x=last.grid, out=pooled), last.name),
            ("flat", IntFlatten(out=pooled)),
            ("fc", random_linear(last.channels, 7, x=pooled, out=out, rng=rng)),
        ]
        last = _Map("fc", out, 7, 1, 1)
    return graph_of(*steps, ("scores.dequantize", Dequantize(x=last.grid), last.name)), grid


def _conv(maps, rng):
    x, out, kernel = pick(rng, maps), random_grid(rng), int(rng.integers(1, 4))
    groups = pick(rng, [1, 1, 1, x.channels])
    outputs = groups if groups > 1 else int(rng.integers(1, 40))
    stride = pick(rng, [1, 1, 2])
    settings = {"stride": (stride, stride), "padding": (kernel // 2,) * 4, "groups": groups}
    op = random_conv(x.channels, outputs, kernel, x=x.grid, out=out, rng=rng, **settings)
    sides = [(side + 2 * (kernel // 2) - kernel) // stride + 1 for side in (x.height, x.width)]
    return (op, [x.name], (outputs, *sides)) if min(sides) > 0 else None


def _pair(maps, rng):
    a = pick(rng, maps)
    near = [other for other in maps if 2**-14 < other.grid.scale / a.grid.scale < 2**14]
    b = pick(rng, [other for other in near if other.shape == a.shape])
    tiny = a.grid.scale * b.grid.scale < 1e-12
    op = IntAdd if tiny else pick(rng, [IntAdd, IntAdd, IntMultiply])
    unit = a.grid if op is IntAdd else Grid(float(torch.tensor(a.grid.scale * b.grid.scale)), 0)
    return op(a=a.grid, b=b.grid, out=random_grid(rng, unit)), [a.name, b.name], a.shape


def _gate(maps, rng):
    x = pick(rng, maps)
    gates = [other for other in maps if other.shape == (x.channels, 1, 1)]
    gates = [other for other in gates if other.grid.scale * x.grid.scale > 1e-12]
    if not gates:
        return (
            IntGlobalAvgPool(x=x.grid, out=random_grid(rng, x.grid)),
            [x.name],
            (x.channels, 1, 1),
        )
    gate = pick(rng, gates)
    unit = Grid(float(torch.tensor(x.grid.scale * gate.grid.scale)), 0)
    op = IntMultiply(a=x.grid, b=gate.grid, out=random_grid(rng, unit))
    return op, [x.name, gate.name], x.shape


def _concat(maps, rng):
    first = pick(rng, maps)
    fitting = [other for other in maps if other.shape[1:] == first.shape[1:]]
    chosen = [first, *(pick(rng, fitting) for _ in range(int(rng.integers(1, 3))))]
    out = pick(rng, [first.grid, random_grid(rng, first.grid)])
    op = IntConcat(inputs=[tensor.grid for tensor in chosen], out=out)
    channels = sum(tensor.channels for tensor in chosen)
    return op, [tensor.name for tensor in chosen], (channels, *first.shape[1:])


def _moving(maps, rng):
    x = pick(rng, maps)
    channels, height, width = x.shape
    kind = int(rng.integers(5))
    if kind == 0 and x.name.endswith("_pad"):
        return None  # onnxruntime makes one pooling of both, and refuses a wide border there
    if kind == 0:
        settings = {"kernel": (2, 3), "stride": (1, 2), "padding": (1, 1), "dilation": (1, 1)}
        op = IntMaxPool2d(out=x.grid, ceil=False, **settings)
        return op, [x.name], (channels, height + 1, (width - 1) // 2 + 1)
    if kind == 1:
        factor = pick(rng, [(2, 2), (2, 1), (3, 3)])
        op = IntUpsampleNearest(out=x.grid, factor=factor)
        return op, [x.name], (channels, height * factor[0], width * factor[1])
    if kind == 2:
        op = IntPad(out=x.grid, padding=(1, 0, 2, 1), edge=bool(rng.random() < 0.5))
        return op, [x.name], (channels, height + 3, width + 1)
    if kind == 3:
        op = IntClamp(out=x.grid, top=int(rng.integers(0, x.grid.high + 1)))
        return op, [x.name], x.shape
    op = Requantize(x=x.grid, out=random_grid(rng, x.grid), relu=bool(rng.random() < 0.5))
    return op, [x.name], x.shape


_LAYERS = [_conv, _conv, _conv, _pair, _pair, _gate, _concat, _moving, _moving]
