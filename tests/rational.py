"""Integer graphs by plain integers and fractions: slow, and written without the code it checks.

It reads the document that a graph is stored as. Every sum is one of Python's or numpy's 64-bit
integers, every ratio of scales a `Fraction`, and every rounding that of a `Fraction`.
"""

from fractions import Fraction

import numpy as np


def codes_of(document, images):
    """Layer -> centred codes (int64), and what the last operation gives as float64.

    Args:
        document: of `to_data`, of operations with a rule.
        images: (N, 3, H, W) float32 array.
    """
    values = {document["input"]: images}
    for node in document["nodes"]:
        inputs = [values[name] for name in node["inputs"]]
        tensors = {key: tensor.numpy() for key, tensor in node["tensors"].items()}
        values[node["name"]] = _OPS[node["op"]](node["settings"], tensors, *inputs)
    return values


def multipliers(rule, ratios, bits):
    """The nearest multiples of 1 / 2**shift that fit the width, and that shift."""
    width = rule["multiplier_bits"] if bits == 8 else 16
    for shift in range(62, 0, -1):
        found = [round(Fraction(ratio) * 2**shift) for ratio in ratios]
        if max(found) < 2**width:
            return found, shift
    return [min(value, 2**width - 1) for value in found], 1


def nearest(rounding, value):
    """The integer next to a fraction."""
    return _nearest(rounding, value.numerator, value.denominator)


def _nearest(rounding, over, under):
    """The same of a fraction that isn't in lowest terms."""
    whole, rest = divmod(over, under)
    if 2 * rest != under:
        return whole + (2 * rest > under)
    if rounding == "half_even":
        return whole + whole % 2
    return whole + (rounding == "half_up" or over > 0)


def _rounded(settings, totals, shift):
    """Each integer over 2**shift, rounded and cut; equal ones are computed once."""
    different, where = np.unique(totals, return_inverse=True)
    low, high = settings["clip"]
    rounding = settings["rule"]["rounding"]
    found = [
        min(max(_nearest(rounding, total, 2**shift), low), high) for total in different.tolist()
    ]
    return np.array(found, np.int64)[where].reshape(totals.shape)


def _combined(settings, sums, ratios, grids):
    bits = max(grid["bits"] for grid in grids)
    found, shift = multipliers(settings["rule"], ratios, bits)
    reach = sum(max(abs(int(x.min())), int(x.max())) * m for x, m in zip(sums, found, strict=True))
    assert reach < 2**63
    total = sum(x * m for x, m in zip(sums, found, strict=True))
    return _rounded(settings, total, shift)


def _scale(grid):
    return Fraction(grid["scale"])


def _quantize(settings, _tensors, x):
    low, high = settings["clip"]
    scale, rounding = _scale(settings["out"]), settings["rule"]["rounding"]
    found = [
        min(max(nearest(rounding, Fraction(value) / scale), low), high)
        for value in x.reshape(-1).tolist()
    ]
    return np.array(found, np.int64).reshape(x.shape)


def _dequantize(settings, _tensors, x):
    return np.float64(np.float32(x) * np.float32(settings["x"]["scale"]))


def _weighted(settings, tensors, sums):
    """The sums (N, O, ...) without the bias, with it and requantized by channel."""
    out = np.empty(sums.shape, np.int64)
    for channel in range(sums.shape[1]):
        total = sums[:, channel] + int(tensors["bias"][channel])
        scale = Fraction(float(tensors["weight_scale"][channel]))
        ratio = _scale(settings["x"]) * scale / _scale(settings["out"])
        out[:, channel] = _combined(settings, [total], [ratio], [settings["x"]])
    return out


def _conv(settings, tensors, x):
    left, right, top, bottom = settings["padding"]
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    weight, groups = tensors["weight"].astype(np.int64), settings["groups"]
    down, along = settings["stride"]
    outputs, per_group, rows, columns = weight.shape
    reach = [(n - 1) * d + 1 for n, d in zip((rows, columns), settings["dilation"], strict=True)]
    height, width = (x.shape[2] - reach[0]) // down + 1, (x.shape[3] - reach[1]) // along + 1
    x = x.reshape(len(x), groups, per_group, *x.shape[2:])
    weight = weight.reshape(groups, outputs // groups, per_group, rows, columns)
    sums = np.zeros((len(x), groups, outputs // groups, height, width), np.int64)
    for row in range(rows):
        for column in range(columns):
            above, before = row * settings["dilation"][0], column * settings["dilation"][1]
            seen = x[..., above : above + down * height : down, :][..., :height, :]
            seen = seen[..., before : before + along * width : along][..., :width]
            sums += np.einsum("ngihw,goi->ngohw", seen, weight[..., row, column])
    return _weighted(settings, tensors, sums.reshape(len(x), outputs, height, width))


def _linear(settings, tensors, x):
    return _weighted(settings, tensors, x @ tensors["weight"].astype(np.int64).T)


def _add(settings, _tensors, a, b):
    grids = [settings["a"], settings["b"]]
    ratios = [_scale(grid) / _scale(settings["out"]) for grid in grids]
    return _combined(settings, [a, b], ratios, grids)


def _multiply(settings, _tensors, a, b):
    grids = [settings["a"], settings["b"]]
    ratio = _scale(grids[0]) * _scale(grids[1]) / _scale(settings["out"])
    return _combined(settings, [a * b], [ratio], grids)


def _moved(settings, x, grid):
    return _combined(settings, [x], [_scale(grid) / _scale(settings["out"])], [grid])


def _concat(settings, _tensors, *maps):
    moved = [_moved(settings, *each) for each in zip(maps, settings["inputs"], strict=True)]
    return np.concatenate(moved, axis=1)


def _requantize(settings, _tensors, x):
    return _moved(settings, np.maximum(x, 0) if settings["relu"] else x, settings["x"])


def _mean(settings, _tensors, x):
    ratio = _scale(settings["x"]) / _scale(settings["out"]) / (x.shape[2] * x.shape[3])
    total = x.sum((2, 3), keepdims=True)
    return _combined(settings, [total], [ratio], [settings["x"]])


def _max_pool(settings, _tensors, x):
    lowest = np.iinfo(np.int64).min
    kernel, stride, dilation = (settings[key] for key in ("kernel", "stride", "dilation"))
    around = [
        (n, n + (s - 1) * settings["ceil"])
        for n, s in zip(settings["padding"], stride, strict=True)
    ]
    padded = np.pad(x, ((0, 0), (0, 0), *around), constant_values=lowest)
    sides = []
    for axis in range(2):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        sides.append((padded.shape[2 + axis] - reach) // stride[axis] + 1)
        if settings["ceil"] and (sides[-1] - 1) * stride[axis] >= (
            x.shape[2 + axis] + settings["padding"][axis]
        ):
            sides[-1] -= 1  # a window may not begin behind the map
    found = np.full((*x.shape[:2], *sides), lowest)
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            seen = padded[..., row * dilation[0] :: stride[0], column * dilation[1] :: stride[1]]
            found = np.maximum(found, seen[..., : sides[0], : sides[1]])
    return found


def _pad(settings, _tensors, x):
    left, right, top, bottom = settings["padding"]
    mode = "edge" if settings["edge"] else "constant"
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), mode)


_OPS = {
    "Quantize": _quantize,
    "Dequantize": _dequantize,
    "IntConv2d": _conv,
    "IntLinear": _linear,
    "IntAdd": _add,
    "IntMultiply": _multiply,
    "IntConcat": _concat,
    "Requantize": _requantize,
    "IntGlobalAvgPool": _mean,
    "IntMaxPool2d": _max_pool,
    "IntPad": _pad,
    "IntPadChannels": lambda s, _, x: np.pad(x, ((0, 0), (0, s["count"]), (0, 0), (0, 0))),
    "IntUpsampleNearest": lambda s, _, x: x.repeat(s["factor"][0], 2).repeat(s["factor"][1], 3),
    "IntFlatten": lambda _s, _t, x: x.reshape(len(x), -1),
    "IntClamp": lambda s, _, x: x.clip(0, s["top"]),
}
