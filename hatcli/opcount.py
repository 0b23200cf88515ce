"""Multiply-adds and parameters of a model: in all, of each stage and of each layer."""

import copy
import importlib.metadata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hatcli.errors import HatError, UsageError

OTHER = "(other)"

Counts = dict[str, int]  # module path -> number; "" is the model itself
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class OpRow:
    """One module of the model, its submodules included.

    Attributes:
        name: dotted path, e.g. "encoder.stages.4.0".
        outputs: shape of each tensor it returned, batch size first; of a mere container those
            of its children; empty if nothing of it was called.
        params: number of parameters, shared ones once.
        macs: multiply-adds of one forward pass.
        is_leaf: whether it has no submodules.
        is_uncounted: whether it ran and owns a matrix or a kernel, but the counter knows no
            formula for what it did.
    """

    name: str
    outputs: Shapes
    params: int
    macs: int
    is_leaf: bool
    is_uncounted: bool = False

    @property
    def depth(self) -> int:
        """1 for a stage, i.e. a direct child of the model."""
        return self.name.count(".") + 1


@dataclass(frozen=True)
class OpCount:
    """What one forward pass costs.

    Attributes:
        shape: (N, C, H, W) of the input.
        counter: "flop" or "thop".
        macs: multiply-adds; one is two operations.
        params: number of parameters, shared ones once.
        rows: every module below the model itself, in the model's order.
    """

    shape: tuple[int, ...]
    counter: str
    macs: int
    params: int
    rows: tuple[OpRow, ...]

    @property
    def ops(self) -> int:
        """Operations: a multiply-add counts as two."""
        return 2 * self.macs

    def at_depth(self, depth: int) -> list[OpRow]:
        """The modules at this depth and the leaves above it; their counts add up to the totals.

        What runs outside of them, or is shared between them, is a last row named "(other)".
        """
        shown = [
            row for row in self.rows if row.depth == depth or (row.depth < depth and row.is_leaf)
        ]
        params = self.params - sum(row.params for row in shown)
        macs = self.macs - sum(row.macs for row in shown)
        if params or macs:
            shown.append(OpRow(OTHER, (), params, macs, is_leaf=True))
        return shown


def count(
    model: nn.Module, shape: tuple[int, ...], counter: Literal["flop", "thop"] = "flop"
) -> OpCount:
    """Count a model's multiply-adds and parameters; the model stays as it is.

    A copy of the model runs once, in eval mode and on the meta device, which knows shapes but
    holds no data: the size of the input costs neither memory nor time.

    Args:
        model: takes float32 images of ``shape``.
        shape: (N, C, H, W).
        counter: "flop" counts what convolutions and matrix products really execute
            (`torch.utils.flop_counter`); "thop" gives the totals of the thop package, which
            counts normalisation and interpolation too, and misses attention.

    Raises:
        UsageError: the model can't run on this shape.
        HatError: the installed thop is not the one that may be used.
    """
    twin = copy.deepcopy(model).to("meta").eval()
    outputs, last_entered = _take_notes(twin)
    images = torch.empty(shape, device="meta")
    try:
        with torch.no_grad():
            measure = _count_by_thop if counter == "thop" else _count_flops
            macs, params = measure(twin, images)
    except (RuntimeError, ValueError, AssertionError) as error:  # how layers refuse a shape
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"shape {_sizes(shape)}: the model can't run on it, {last_entered[0]}: {reason}"
        ) from error
    rows = _rows(twin, outputs, macs, params)
    return OpCount(tuple(shape), counter, macs[""], params[""], rows)


def _take_notes(model: nn.Module) -> tuple[dict[str, Shapes], list[str]]:
    """Notes that the next forward pass fills.

    Returns:
        module path -> shapes of what the module returned; and a list of one string, the layer
        that was entered last and what it got.
    """
    outputs: dict[str, Shapes] = {}
    last_entered = [""]

    def enter(name: str, module: nn.Module, inputs: object) -> None:
        if not any(module.children()):
            got = " and ".join(map(_sizes, _shapes(inputs)))
            last_entered[0] = f"near {name or 'its root'}, {module}, which got {got}"

    def leave(name: str, output: object) -> None:
        outputs[name] = tuple(_shapes(output))

    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda m, x, name=name: enter(name, m, x))
        module.register_forward_hook(lambda _m, _x, output, name=name: leave(name, output))
    return outputs, last_entered


def _shapes(output: object) -> Iterator[tuple[int, ...]]:
    if isinstance(output, Tensor):
        yield tuple(output.shape)
    elif isinstance(output, dict):
        for value in output.values():
            yield from _shapes(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _shapes(value)


def _count_flops(model: nn.Module, images: Tensor) -> tuple[Counts, Counts]:
    """Multiply-adds and parameters of every module."""
    with FlopCounterMode(display=False) as counter:
        model(images)
    flops = counter.get_flop_counts()
    root = type(model).__name__
    macs = {"": counter.get_total_flops() // 2}
    for name, _ in model.named_modules():
        if name:
            macs[name] = sum(flops.get(f"{root}.{name}", {}).values()) // 2
    params = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
    }
    return macs, params


def _count_by_thop(model: nn.Module, images: Tensor) -> tuple[Counts, Counts]:
    """The same by the thop package, in its own way of counting."""
    profile = _load_thop()
    total_macs, total_params, layers = profile(
        model, inputs=(images,), verbose=False, ret_layer_info=True
    )
    macs, params = {"": int(total_macs)}, {"": int(total_params)}
    pending = [("", layers)]
    while pending:
        prefix, children = pending.pop()
        for child, (child_macs, child_params, grandchildren) in children.items():
            macs[prefix + child] = int(child_macs)
            params[prefix + child] = int(child_params)
            pending.append((f"{prefix}{child}.", grandchildren))
    return macs, params


def _load_thop() -> Any:
    """The function `thop.profile`.

    Raises:
        HatError: the package "ultralytics-thop", which is AGPL, is what answers to that name.
    """
    try:
        importlib.metadata.distribution("ultralytics-thop")
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        raise HatError(
            "counter thop: the installed 'thop' comes from ultralytics-thop, whose licence is AGPL",
            "pip uninstall ultralytics-thop thop, then pip install thop",
        )
    with warnings.catch_warnings():  # it compares versions with distutils
        warnings.simplefilter("ignore", DeprecationWarning)
        from thop import profile  # noqa: PLC0415 - so that only who asks for thop loads it
    return profile


def _rows(
    model: nn.Module,
    outputs: dict[str, Shapes],
    macs: Counts,
    params: Counts,
) -> tuple[OpRow, ...]:
    macs, outputs = dict(macs), dict(outputs)
    modules = {name: module for name, module in model.named_modules() if name}
    for name, module in reversed(modules.items()):  # children come after their parents
        if name not in outputs:  # a mere container, such as a ModuleDict, is never called
            children = [f"{name}.{child}" for child, _ in module.named_children()]
            macs[name] = sum(macs.get(child, 0) for child in children)
            outputs[name] = tuple(shape for child in children for shape in outputs[child])
    return tuple(
        OpRow(
            name,
            outputs[name],
            params.get(name, 0),
            macs.get(name, 0),
            is_leaf=not any(module.children()),
            is_uncounted=bool(outputs[name]) and not macs.get(name) and _has_matrix(module),
        )
        for name, module in modules.items()
    )


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
