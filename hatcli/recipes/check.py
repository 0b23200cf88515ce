"""Checks of a config before anything heavy is loaded: every name, argument and plain type."""

import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hatcli.config import Config
from hatcli.data.datasets import DATASETS
from hatcli.data.transforms import BATCH_TRANSFORMS, MIXES, TRANSFORMS
from hatcli.engine import OPTIMIZERS, SCHEDULES
from hatcli.errors import ConfigError, did_you_mean
from hatcli.losses import LOSSES
from hatcli.metrics import METRICS
from hatcli.models import MODELS
from hatcli.quantize.spec import read_spec
from hatcli.recipes.steps import WITH_SETTINGS, config_of_step
from hatcli.registry import Registry, fits, import_file

PLUGINS = "hatcli.plugins"

PARTS: dict[str, Registry] = {
    "model": MODELS,
    "loss": LOSSES,
    "metric": METRICS,
    "optim": OPTIMIZERS,
    "schedule": SCHEDULES,
}

SETTINGS: dict[str, dict[str, str]] = {
    "train": {
        "dataset": "dict",
        "transforms": "list",
        "mix": "dict | None",
        "repeats": "int",
        "batch_size": "int",
        "num_workers": "int",
        "workers": "Literal['process', 'thread']",
    },
    "val": {
        "dataset": "dict",
        "transforms": "list",
        "batch_size": "int",
        "num_workers": "int",
        "workers": "Literal['process', 'thread']",
    },
    "fit": {
        "precision": "Literal['auto', 'float32', 'bf16', 'fp16']",
        "channels_last": "bool",
        "compile": "bool",
        "accumulate": "int",
        "clip_grad_norm": "float | None",
        "on_nonfinite": "Literal['stop', 'skip']",
        "ema_decay": "float | None",
        "sync_batch_norm": "bool | None",
        "find_unused": "bool",
        "val_every": "int",
        "log_every": "int",
        "save_every": "int | None",
        "keep": "int",
    },
    "deploy": {"head": "str | int", "argmax": "bool", "shape": "list"},
    "teacher": {"ckpt": "str", "weight": "float", "temperature": "float"},
}

TASKS = ("segmentation", "classification", "detection")
"""No shipped network detects: a config for that brings its own."""

POSITIVE = (
    "epochs", "train.batch_size", "train.repeats", "val.batch_size", "fit.accumulate",
    "fit.val_every", "fit.log_every", "fit.save_every", "fit.keep",
)  # fmt: skip


def check_config(config: Config) -> None:
    """Refuse a config that names something that doesn't exist.

    Loads no torch unless the config (or an installed plugin) brings modules of its own.

    Raises:
        ConfigError: with the place in the config and the nearest name.
    """
    import_user_modules(config)
    _check_values(config)
    read_spec(config["quantize"])
    for step in config["steps"]:
        if step not in WITH_SETTINGS:
            raise ConfigError(f"steps: no step {step!r}", did_you_mean(step, WITH_SETTINGS))
    for step in WITH_SETTINGS:
        merged = config_of_step(config, step)
        try:
            _check_values(merged)
        except ConfigError as error:
            raise ConfigError(f"steps.{step}: {error.message}", error.hint) from error


def _check_values(config: Config) -> None:
    if config["task"] not in TASKS:
        raise ConfigError(f"task: unknown {config['task']!r}", did_you_mean(config["task"], TASKS))
    for key, settings in SETTINGS.items():
        _check_settings(key, config[key], settings)
    for where, registry, node in _parts(config):
        registry.check_node(where, node)
    for path in POSITIVE:
        value = _look_up(config, path)
        if value is not None and value < 1:
            raise ConfigError(f"{path}: must be at least 1, got {value}")


def import_user_modules(config: Config) -> None:
    """Import the modules that a config names, and the installed plugins.

    Raises:
        ConfigError: a module can't be found or fails.
    """
    for plugin in importlib.metadata.entry_points(group=PLUGINS):
        plugin.load()
    for name in config["imports"]:
        try:
            if str(name).endswith(".py"):
                import_file(Path(name), "imports")
            else:
                importlib.import_module(name)
        except ConfigError:
            raise
        except Exception as error:
            is_missing = isinstance(error, ModuleNotFoundError) and error.name == name
            raise ConfigError(
                f"imports: {name!r} fails: {type(error).__name__}: {error}",
                f"a file beside the config is named with its ending: '{name}.py'"
                if is_missing
                else None,
            ) from error


def _parts(config: Config) -> Iterator[tuple[str, Registry, Any]]:
    """Every node that a registry builds, and where it stands."""
    for key, registry in PARTS.items():
        yield key, registry, config[key]
    for split in ("train", "val"):
        yield f"{split}.dataset", DATASETS, config[split].get("dataset")
        for position, node in enumerate(config[split].get("transforms", [])):
            yield f"{split}.transforms.{position}", TRANSFORMS, node
    if config["train"].get("mix") is not None:
        yield "train.mix", MIXES, config["train"]["mix"]
    for position, node in enumerate(config["batch_transforms"]):
        yield f"batch_transforms.{position}", BATCH_TRANSFORMS, node


def _check_settings(key: str, node: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    for name, value in node.items():
        if name not in settings:
            raise ConfigError(f"{key}: no setting {name!r}", did_you_mean(name, settings))
        if not fits(value, settings[name]):
            raise ConfigError(f"{key}.{name}: must be {settings[name]}, got {value!r}")


def _look_up(config: Config, path: str) -> Any:
    value: Any = config.values
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
