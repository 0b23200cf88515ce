"""Every registered part with its arguments, from the registries themselves."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from hat_docs.markdown import code, one_line, read_docstring, table
from hatcli.data.datasets import DATASETS
from hatcli.data.packers import PACKERS
from hatcli.data.transforms import BATCH_TRANSFORMS, MIXES, TRANSFORMS
from hatcli.engine import OPTIMIZERS, SCHEDULES
from hatcli.losses import LOSSES
from hatcli.metrics import METRICS
from hatcli.models import MODELS
from hatcli.quantize import OBSERVERS, TARGETS
from hatcli.registry import Part, Registry


class Kind(NamedTuple):
    """The parts of one registry.

    Attributes:
        place: where a config or a command line names one, as Markdown.
    """

    title: str
    registry: Registry
    place: str


KINDS = (
    Kind("Models", MODELS, "`model` of a config."),
    Kind("Losses", LOSSES, "`loss` of a config."),
    Kind("Metrics", METRICS, "`metric` of a config."),
    Kind("Datasets", DATASETS, "`train.dataset` and `val.dataset` of a config."),
    Kind("Transforms", TRANSFORMS, "In the lists `train.transforms` and `val.transforms`."),
    Kind("Batch transforms", BATCH_TRANSFORMS, "In the list `batch_transforms` of a config."),
    Kind("Mixes", MIXES, "`train.mix` of a config."),
    Kind("Optimizers", OPTIMIZERS, "`optim` of a config."),
    Kind("Schedules", SCHEDULES, "`schedule` of a config."),
    Kind("Observers", OBSERVERS, "`quantize.observer` and `quantize.weight_observer`."),
    Kind("Targets", TARGETS, "`quantize.target`, its arguments in `quantize.target_options`."),
    Kind("Packers", PACKERS, "`hat pack NAME`; arguments are options: `--image-format`."),
)


def parts_page() -> str:
    """All kinds of parts as Markdown: a table of each kind, then each part."""
    return "\n".join(_kind(kind) for kind in KINDS)


def _kind(kind: Kind) -> str:
    parts = [kind.registry.part(name) for name in kind.registry.names()]
    rows = [[f"[{code(part.name)}](#{_anchor(kind, part)})", part.summary] for part in parts]
    head = f"## {kind.title}\n\n{kind.place}\n\n{table(['name', 'what it is'], rows)}"
    return "\n".join([head, *(_section(kind, part) for part in parts)])


def _anchor(kind: Kind, part: Part) -> str:
    """Names of different kinds may be equal (a packer and a dataset), so both are in it."""
    return f"{kind.title}-{part.name}".lower().replace(" ", "-").replace("_", "-")


def _section(kind: Kind, part: Part) -> str:
    target: Callable[..., Any] = getattr(importlib.import_module(part.module), part.name)
    docstring = read_docstring(inspect.getdoc(target) or "")
    described = docstring.entries.get("Args", {})
    defaults = _defaults(target)
    rows = [
        [
            code(parameter.name),
            code(parameter.annotation) if parameter.annotation else "",
            _meaning(described.get(parameter.name, ""), defaults.get(parameter.name)),
        ]
        for parameter in part.parameters
        if parameter.name not in kind.registry.given
    ]
    return "\n".join(
        [
            f"({_anchor(kind, part)})=\n### {part.name}\n",
            f"{docstring.text}\n",
            table(["argument", "type", "is"], rows) or "It has no arguments.\n",
            _raises(docstring.entries.get("Raises", {})),
            f"Defined in `{part.module}`.\n",
        ]
    )


def _meaning(text: str, default: str | None) -> str:
    """A description as a sentence, then the default, or that there is none."""
    sentence = f"{text[:1].upper()}{text[1:].rstrip('.')}. " if text else ""
    return f"{sentence}{'Needed.' if default is None else f'Default: {code(default)}.'}"


def _defaults(target: Callable[..., Any]) -> dict[str, str]:
    parameters = inspect.signature(target).parameters.values()
    return {p.name: _shown(p.default) for p in parameters if p.default is not p.empty}


def _shown(value: object) -> str:
    return value.__name__ if callable(value) and hasattr(value, "__name__") else repr(value)


def _raises(entries: dict[str, str]) -> str:
    return "\n".join(f"Raises `{name}`: {one_line(text)}\n" for name, text in entries.items())
