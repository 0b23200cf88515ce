"""From a config's nodes to living parts."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from hatcli.config import Config, from_values
from hatcli.data.datasets import DATASETS
from hatcli.data.loader import Loader, SampleSource
from hatcli.data.transforms import BATCH_TRANSFORMS, MIXES, TRANSFORMS
from hatcli.engine.checkpoint import load_checkpoint, load_weights
from hatcli.engine.distributed import processes, rank
from hatcli.engine.evaluation import Metric
from hatcli.engine.weights import fingerprint, load_foreign_weights
from hatcli.errors import ConfigError
from hatcli.losses import LOSSES
from hatcli.metrics import METRICS
from hatcli.models import MODELS
from hatcli.quantize.integer_graph import from_data
from hatcli.quantize.prepare import prepare
from hatcli.quantize.quantizers import set_mode
from hatcli.quantize.spec import read_spec
from hatcli.recipes.check import import_user_modules
from hatcli.recipes.label_checks import label_checks


def build_model(config: Config) -> nn.Module:
    """The network as it is trained, with all its heads; weights depend on the config's seed."""
    torch.manual_seed(config["seed"])
    return MODELS.build(config["model"])


SEVERAL_HEADS = "the network has several heads, and deploy.head names none"
HEAD_HINT = "calibration, qat and export take one alone: set deploy.head before the training"


def lacks_head(model: nn.Module, config: Config) -> bool:
    """Whether a network has several heads of which none is chosen: float alone can do with that."""
    return config["deploy"].get("head") is None and hasattr(model, "keep_head")


def deployed(model: nn.Module, config: Config) -> nn.Module:
    """The part of a network that is deployed; shares its parameters."""
    head = config["deploy"].get("head")
    if head is None:
        return model
    keep_head: Any = getattr(model, "keep_head", None)
    if keep_head is None:
        raise ConfigError(f"deploy.head: model {config['model']['type']!r} has one head only")
    return keep_head(str(head))


def model_from_checkpoint(checkpoint: dict[str, Any]) -> tuple[Config, nn.Module]:
    """The deployed model of a checkpoint of any step, in evaluation mode, and its config.

    A float checkpoint gives the network; one of calibration or qat the graph that fake-quantizes;
    one of int_infer the graph of integers. Each maps float32 images (N, 3, H, W) to raw scores.
    """
    saved = checkpoint["config"]
    config = from_values(saved["name"], saved["values"], where="the checkpoint's config")
    import_user_modules(config)
    step = checkpoint["step"]
    if step == "int_infer":
        return config, from_data(checkpoint["integer_graph"])
    model = build_model(config)
    if step != "float":
        model = prepare_deployed(model, config, batch_norm=checkpoint["batch_norm"])
    weights = checkpoint["ema_state_dict"] or checkpoint["state_dict"]
    load_weights(model, weights, "checkpoint")
    if step != "float":
        set_mode(model, "quantize")
        return config, model.eval()
    return config, deployed(model, config).eval()


def prepare_deployed(model: nn.Module, config: Config, *, batch_norm: str) -> GraphModule:
    """The graph of the part of a network that is deployed, with quantizers, as a copy.

    Args:
        batch_norm: "folded" into the layers before it, or "kept".
    """
    spec = read_spec(config["quantize"])
    network = deployed(model, config).eval()
    return prepare(network, spec, fold_batch_norm=batch_norm == "folded")


def open_checkpoint(file: Path, weights_of: Config | None = None) -> dict[str, Any]:
    """A checkpoint; plain weights as if they were one.

    Args:
        weights_of: the file holds the plain weights of this config's network, and no config.

    Raises:
        CheckpointError: the file can't be used, or doesn't fit the network.
    """
    if weights_of is None:
        return load_checkpoint(file)
    config, model = weights_of, build_model(weights_of)
    load_foreign_weights(model, file)
    return {
        "hat_version": f"weights {fingerprint(file)}",
        "step": "float",
        "epoch": 0,
        "config": {"name": config.name, "values": dict(config.values)},
        "classes": [],
        "metrics": {},
        "lineage": [],
        "state_dict": model.state_dict(),
        "ema_state_dict": None,
    }


def build_dataset(config: Config, split: str) -> SampleSource:
    """The dataset of "train" or "val"; relative paths are below the config's data_rootdir."""
    return DATASETS.build(config[split]["dataset"], root=Path(config["data_rootdir"]))


def build_loader(
    config: Config, split: str, dataset: SampleSource, *, is_shared: bool = True
) -> Loader:
    """Batches of a dataset as "train" or "val" says; only training shuffles.

    Args:
        is_shared: of several processes each gets its part; else each gets all.
    """
    node = config[split]
    transforms = [TRANSFORMS.build(transform) for transform in node.get("transforms", [])]
    if split == "train":
        transforms += label_checks(config)
    mix = node.get("mix")
    return Loader(
        dataset,
        transforms,
        mix=None if mix is None else MIXES.build(mix),
        batch_size=node.get("batch_size", 1),
        shuffle=split == "train",
        repeats=node.get("repeats", 1),
        num_workers=node.get("num_workers", 0),
        workers=node.get("workers", "process"),
        seed=config["seed"],
        process=rank() if is_shared else 0,
        processes=processes() if is_shared else 1,
    )


def build_batch_transforms(config: Config) -> nn.Module:
    """uint8 images (N, 3, H, W) to the model's float32 input, in one module."""
    return nn.Sequential(*[BATCH_TRANSFORMS.build(node) for node in config["batch_transforms"]])


def build_loss(config: Config, dataset: SampleSource) -> nn.Module:
    """The loss; it may weigh classes by how many pixels the training set has of each."""
    return LOSSES.build(config["loss"], class_pixels=getattr(dataset, "class_pixels", None))


def build_metric(config: Config, dataset: SampleSource) -> Metric:
    """The metric, with the dataset's class names where it has them.

    Raises:
        ConfigError: it doesn't say by which of its values a checkpoint is best.
    """
    metric: Metric = METRICS.build(config["metric"], classes=getattr(dataset, "classes", None))
    if not isinstance(getattr(metric, "best_by", None), str):
        raise ConfigError(
            f"metric {config['metric']['type']!r}: has no best_by, by which a checkpoint is best",
            "give it the name of one of the values of compute()",
        )
    return metric
