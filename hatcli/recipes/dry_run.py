"""All of a training short of training: data opened, one batch through the model and the loss."""

import torch

from hatcli.config import Config
from hatcli.engine import OPTIMIZERS, SCHEDULES
from hatcli.engine.evaluation import require_best_by
from hatcli.errors import ConfigError
from hatcli.events import Job, Note, Warned
from hatcli.recipes.build import (
    HEAD_HINT,
    SEVERAL_HEADS,
    build_batch_transforms,
    build_dataset,
    build_loader,
    build_loss,
    build_metric,
    build_model,
    deployed,
    lacks_head,
)
from hatcli.recipes.crop_sizes import require_sizes


def dry_run(config: Config) -> Job[None]:
    """Build everything that a config names and pass one batch of each set through it.

    Raises:
        HatError: whatever would have stopped the training before its second step.
    """
    model, prepare = build_model(config), build_batch_transforms(config)
    require_sizes(config, model)
    if lacks_head(model, config):
        yield Warned(f"{SEVERAL_HEADS}; {HEAD_HINT}")
    for split in ("train", "val"):
        dataset = build_dataset(config, split)
        loader = build_loader(config, split, dataset)
        images, targets, names = next(loader.epoch(0))
        yield Note(f"{split}: {len(dataset)} samples; images {tuple(images.shape)}, {names[0]} ...")
        if split == "train":
            optimizer = OPTIMIZERS.build(config["optim"], model=model)
            SCHEDULES.build(
                config["schedule"], steps_per_epoch=len(loader), epochs=config["epochs"]
            )
            value = build_loss(config, dataset)(model.train()(prepare(images)), targets)
            value.backward()
            optimizer.step()
            if not torch.isfinite(value):
                raise ConfigError(f"the first loss is {value.item()}")
            yield Note(f"loss of the first batch: {value.item():.4f}")
        else:
            metric = build_metric(config, dataset)
            with torch.inference_mode():
                metric.update(deployed(model, config).eval()(prepare(images)), targets)
            require_best_by(metric, metric.compute())
