"""A config: a Python file that assigns plain dicts, numbers and strings.

Reading one runs it, as any script: read only configs that you trust. What a checkpoint or an
ONNX file carries is the resulting data, which is never run.
"""

import ast
import contextlib
import json
import os
import pprint
import runpy
import sys
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatcli.errors import ConfigError, did_you_mean

SHIPPED = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Key:
    """One top-level name of a config."""

    kinds: tuple[type, ...]
    default: Any
    meaning: str


REQUIRED = object()

KEYS: dict[str, Key] = {
    "task": Key((str,), REQUIRED, "'segmentation', 'classification' or 'detection'"),
    "model": Key((dict,), REQUIRED, "the network; trained and deployed from this one node"),
    "data_rootdir": Key((str,), "data", "folder that all dataset paths are joined to"),
    "train": Key((dict,), REQUIRED, "dataset, transforms, batch_size, num_workers"),
    "val": Key((dict,), REQUIRED, "the same, for evaluation"),
    "batch_transforms": Key((list,), [], "uint8 images to float input, on the device"),
    "loss": Key((dict,), REQUIRED, "from raw scores and targets to one number"),
    "teacher": Key((dict,), {}, "ckpt, weight, temperature of a trained model to learn from"),
    "metric": Key((dict,), REQUIRED, "what evaluation reports and the best checkpoint is by"),
    "optim": Key((dict,), {"type": "sgd", "lr": 0.01}, "the optimiser"),
    "schedule": Key((dict,), {"type": "cosine"}, "learning rate over the steps"),
    "epochs": Key((int,), REQUIRED, "passes over the training set"),
    "seed": Key((int,), 0, "of initial weights, order and augmentation"),
    "fit": Key((dict,), {}, "precision, channels_last, clip_grad_norm, ema_decay, val_every"),
    "deploy": Key((dict,), {}, "head, argmax, shape of the exported model"),
    "quantize": Key((dict,), {}, "target and exceptions of the integer model"),
    "steps": Key((dict,), {}, "what calibration and qat override of the above"),
    "imports": Key((list,), [], "the user's own modules: dotted names or files"),
}


@dataclass(frozen=True)
class Config:
    """A complete config.

    Attributes:
        name: file name without suffix; names the run folder.
        values: top-level name -> value, all of `KEYS`, in that order.
    """

    name: str
    values: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def with_overrides(self, overrides: Iterable[str]) -> "Config":
        """A copy in which each "key.sub=value" is set; see `override`."""
        values = deepcopy(dict(self.values))
        for text in overrides:
            override(values, text)
        return from_values(self.name, values)


def load_config(target: str, overrides: Iterable[str] = ()) -> Config:
    """Read a config by its shipped name or its file, then apply overrides.

    Args:
        target: a shipped name ("unet"), or a file: anything that ends in .py or holds a path
            separator. A shipped path such as configs/segmentation/unet.py is found in the
            package where no such local file exists.
        overrides: "key.sub=value" strings, applied in order.

    Raises:
        ConfigError: not found, doesn't run, or isn't a complete config.
    """
    path = find_config(target)
    config = from_values(path.stem, _run_file(path), where=str(path))
    imports = [_absolute_import(name, path.parent) for name in config["imports"]]
    config = Config(config.name, {**config.values, "imports": imports})
    return config.with_overrides(overrides)


def from_values(name: str, values: Mapping[str, Any], where: str | None = None) -> Config:
    """A config from plain data, e.g. that of a checkpoint; missing names get their defaults.

    Raises:
        ConfigError: a name is unknown or missing, or a value isn't plain data.
    """
    where = where or f"config {name}"
    for key, value in values.items():
        if key not in KEYS:
            raise ConfigError(f"{where}: unknown name {key!r}", did_you_mean(key, KEYS))
        kinds = KEYS[key].kinds
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ConfigError(f"{where}: {key} must be of type {kinds[0].__name__}, got {value!r}")
        _require_plain(value, key, where)
    missing = [k for k, entry in KEYS.items() if entry.default is REQUIRED and k not in values]
    if missing:
        raise ConfigError(
            f"{where}: lacks {', '.join(map(repr, missing))}; it defines: {sorted(values)}"
        )
    complete = {k: deepcopy(values.get(k, entry.default)) for k, entry in KEYS.items()}
    return Config(name, complete)


def show_config(config: Config) -> str:
    """The config as Python source that loads back equal."""
    lines = []
    for key, value in config.values.items():
        text = pprint.pformat(value, width=96 - len(key), sort_dicts=False, compact=False)
        indented = text.replace("\n", "\n" + " " * (len(key) + 3))
        lines.append(f"{key} = {indented}")
    return "\n".join(lines) + "\n"


def shipped_configs() -> dict[str, Path]:
    """Name -> file of every shipped config.

    Raises:
        ConfigError: two of them share a name.
    """
    found: dict[str, Path] = {}
    for path in sorted(SHIPPED.rglob("*.py")):
        if path.stem in found:
            raise ConfigError(f"two shipped configs are called {path.stem}")
        found[path.stem] = path
    return found


def find_config(target: str) -> Path:
    """The file that a TARGET means."""
    if target.endswith(".py") or "/" in target or os.sep in target:
        path = Path(target)
        if path.is_file():
            if path.suffix != ".py":
                raise ConfigError(f"{path}: a config is a .py file")
            return path
        parts = path.parts
        if "configs" in parts:
            shipped = SHIPPED.joinpath(*parts[parts.index("configs") + 1 :])
            if shipped.is_file():
                return shipped
        what = "is a folder" if path.is_dir() else "no such config file"
        raise ConfigError(f"{target}: {what}", "'hat config list' names the shipped ones")
    shipped_by_name = shipped_configs()
    if target not in shipped_by_name:
        raise ConfigError(f"no config {target!r}", did_you_mean(target, shipped_by_name))
    return shipped_by_name[target]


def override(values: dict[str, Any], text: str) -> None:
    """Set one entry of nested dicts and lists in place from "key.sub=value".

    The value is read as a Python literal; true, false and none are accepted in any case, and
    what is no literal is a string, so that no nested quotes are needed.

    Raises:
        ConfigError: the path leads through something that has no entries.
    """
    path, equals, literal = text.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{text!r}: an override looks like key.sub=value")
    if keys[0] not in KEYS:
        raise ConfigError(f"{text!r}: unknown name {keys[0]!r}", did_you_mean(keys[0], KEYS))
    node: Any = values
    for depth, key in enumerate(keys[:-1]):
        node = _entry(node, key, text)
        if not isinstance(node, dict | list):
            raise ConfigError(f"{text!r}: {'.'.join(keys[: depth + 1])} has no entries")
    if isinstance(node, list):
        node[_index(node, keys[-1], text)] = _literal(literal)
    else:
        node[keys[-1]] = _literal(literal)


def _entry(node: Any, key: str, text: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, text)]
    return node.setdefault(key, {})


def _index(node: list[Any], key: str, text: str) -> int:
    if not key.lstrip("-").isdigit() or not -len(node) <= int(key) < len(node):
        raise ConfigError(f"{text!r}: {key!r} is no position in a list of {len(node)}")
    return int(key)


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for read in (ast.literal_eval, json.loads):  # JSON spells true, false and null otherwise
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def _require_plain(value: Any, path: str, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where}: {path} has the key {key!r}, which is no string")
            _require_plain(item, f"{path}.{key}", where)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _require_plain(item, f"{path}.{position}", where)
    elif not isinstance(value, str | int | float | bool | None):
        raise ConfigError(
            f"{where}: {path} is a {type(value).__name__}; a config holds plain data only"
        )


def _run_file(path: Path) -> dict[str, Any]:
    """The public top-level names that a config file leaves behind."""
    search_path = list(sys.path)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            names = runpy.run_path(str(path), run_name="hat_config")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        place = f" line {line}" if line else _line_in(error, path)
        raise ConfigError(f"config {path}{place}: {error}") from error
    except SystemExit as error:
        raise ConfigError(f"config {path}{_line_in(error, path)}: called sys.exit") from error
    except OSError as error:
        raise ConfigError(f"config {path}: {error.strerror or error}") from error
    except Exception as error:
        name = type(error).__name__
        raise ConfigError(f"config {path}{_line_in(error, path)}: {name}: {error}") from error
    finally:
        sys.path[:] = search_path
    plain_types = (str, int, float, bool, dict, list, tuple)
    return {
        key: value
        for key, value in names.items()
        if not key.startswith("_") and (key in KEYS or isinstance(value, plain_types))
    }


def _line_in(error: BaseException, path: Path) -> str:
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" line {line}" if line else ""


def _absolute_import(name: Any, folder: Path) -> Any:
    """Files named in ``imports`` are found beside the config that names them."""
    if isinstance(name, str) and name.endswith(".py"):
        return str((folder / name).resolve())
    return name
