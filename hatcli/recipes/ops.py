"""hat ops: what one forward pass of a config's model costs."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from hatcli.config import Config
from hatcli.errors import ConfigError, UsageError
from hatcli.events import Job, Note, Warned
from hatcli.opcount import OpCount, count
from hatcli.recipes.build import build_model, deployed

MAX_NAMED = 5  # modules that a warning lists


def count_ops(
    config: Config,
    *,
    shape: Sequence[int] | None = None,
    heads: Literal["deploy", "all"] = "deploy",
    counter: Literal["flop", "thop"] = "flop",
) -> Job[OpCount]:
    """Count the multiply-adds and parameters of a config's model.

    Args:
        config: complete and checked.
        shape: (N, C, H, W) of the input; None takes ``deploy.shape`` of the config.
        heads: "deploy" counts what is deployed, "all" the model as it is trained.
        counter: see `hatcli.opcount.count`.

    Raises:
        UsageError: the model can't run on this shape, or none is given.
    """
    sizes = _require_shape(shape if shape is not None else config["deploy"].get("shape"))
    model = build_model(config)
    name = config["model"]["type"]
    _require_fit(model, name, sizes)
    head = config["deploy"].get("head")
    head_alone = heads == "deploy" and head is not None
    result = count(deployed(model, config) if head_alone else model, sizes, counter)
    if head_alone:
        yield Note(f"head {head} alone, as deployed; --heads all counts every head")
    uncounted = [row.name for row in result.rows if row.is_uncounted]
    if uncounted:
        more = f" and {len(uncounted) - MAX_NAMED} more" if len(uncounted) > MAX_NAMED else ""
        yield Warned(
            f"counter {counter} knows no formula for {', '.join(uncounted[:MAX_NAMED])}{more}: "
            "counted as 0"
        )
    return result


def _require_shape(shape: object) -> tuple[int, ...]:
    if shape is None:
        raise UsageError(
            "which input shape? the config has no deploy.shape", "give --shape N,C,H,W"
        )
    sizes = tuple(shape) if isinstance(shape, list | tuple) else ()
    if len(sizes) != 4 or not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError(f"deploy.shape: give four sizes [N, C, H, W], got {shape!r}")
    return sizes


def _require_fit(model: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Refuse a height or width that the model's strides don't divide."""
    divisor = getattr(model, "size_divisor", 1)
    height, width = shape[2:]
    if height % divisor or width % divisor:
        larger = (*shape[:2], *(-(-side // divisor) * divisor for side in (height, width)))
        raise UsageError(
            f"shape {'x'.join(map(str, shape))}: model {name!r} takes heights and widths that "
            f"are multiples of {divisor}",
            f"the next larger shape is {','.join(map(str, larger))}",
        )
