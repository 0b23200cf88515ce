"""From Python: draw, pack, train, make integers, export
=====================================================

Everything that the commands of ``hat`` do can be called from Python. This page draws street
scenes, packs them, trains a small UNet for seconds, turns it into integers and runs these in
onnxruntime: on one processor core, without a GPU and without a download.

The parts are imported from where they are defined. Two rules cover them all:

- A config is data, and ``build_...`` makes living parts of it.
- A long job is a generator: it yields events while it runs, and returns its result.
  ``finish(job)`` runs one to its end and gives the result; ``finish(job, print)`` shows the events.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import onnxruntime
import torch

from hatcli.config import load_config
from hatcli.data.classes import CITYSCAPES_PALETTE
from hatcli.data.scenes.draw import write_scenes
from hatcli.engine import OPTIMIZERS, SCHEDULES
from hatcli.engine.evaluation import evaluate
from hatcli.engine.loop import fit
from hatcli.engine.training import FitSettings, Training
from hatcli.events import EpochDone, finish, headline
from hatcli.export.parity import compare_codes
from hatcli.export.quantized import export_quantized
from hatcli.metrics.mean_iou import predictions
from hatcli.quantize.bias_correction import correct_biases
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.lower import lower
from hatcli.quantize.prepare import prepare
from hatcli.quantize.spec import read_spec
from hatcli.recipes.build import (
    build_batch_transforms,
    build_dataset,
    build_loader,
    build_loss,
    build_metric,
    build_model,
    deployed,
)
from hatcli.recipes.check import check_config
from hatcli.recipes.packing.pack import pack
from hatcli.report.pictures import colorize

# %%
# Data
# ----
#
# ``write_scenes`` draws pictures and labels in the folders of Cityscapes. ``pack`` is the job
# behind ``hat pack``: it checks each sample and publishes one file a split.

folder = tempfile.TemporaryDirectory()
root = Path(folder.name)
drawn = list(write_scenes(root, train=48, val=8, size=(256, 128)))
for split in ("train", "val"):
    packed = finish(pack("cityscapes", root, None, split, num_workers=0))
    print(packed.path.name, packed.meta["length"], "samples,", packed.size_bytes, "bytes")

# %%
# A config, and the parts that it names
# -------------------------------------
#
# A shipped config with overrides, as on the command line. ``check_config`` finds misspelt names
# before anything is loaded.

config = load_config(
    "demo",
    [
        f"data_rootdir={root}",
        "epochs=16",
        "train.num_workers=0",
        "train.transforms.0.height=128",
        "train.transforms.0.width=192",
    ],
)
check_config(config)
train_set, val_set = build_dataset(config, "train"), build_dataset(config, "val")
train_batches = build_loader(config, "train", train_set)
val_batches = build_loader(config, "val", val_set)
to_input = build_batch_transforms(config)  # uint8 images to what the network takes
model = build_model(config)

images, labels, names = next(train_batches.epoch(0))
print(images.shape, images.dtype, labels.shape, names[0])
print("scores of the heads:", [tuple(scores.shape) for scores in model(to_input(images))])

# %%
# Training
# --------
#
# ``fit`` yields an event after some steps and after each epoch, and stands still at each, so that a
# loop may log, save or change something. ``training`` holds all that changes.

training = Training(model, OPTIMIZERS.build(config["optim"], model=model))
events = fit(
    training,
    train_batches,
    FitSettings(epochs=config["epochs"]),
    loss=build_loss(config, train_set),
    prepare=to_input,
    schedule=SCHEDULES.build(
        config["schedule"], steps_per_epoch=len(train_batches), epochs=config["epochs"]
    ),
)
for event in events:
    if isinstance(event, EpochDone) and event.epoch % 4 == 0:
        print(f"epoch {event.epoch}: loss {event.train['loss']:.2f}")

# %%
# Integers
# --------
#
# ``prepare`` copies the deployed head as a graph with quantizers, ``calibrate`` and
# ``correct_biases`` look at training images, ``lower`` makes the graph of integers. ``evaluate``
# scores whatever maps images to scores.


def score(network):
    """The metrics of a network on the validation set."""
    job = evaluate(
        network,
        val_batches.epoch(0),
        build_metric(config, val_set),
        prepare=to_input,
        device=torch.device("cpu"),
        total=len(val_set),
    )
    return headline(finish(job))


network = deployed(model, config).eval()
graph = prepare(network, read_spec(config["quantize"]))
plain = config.with_overrides(["val.dataset.path=train_lmdb"])  # training images, not augmented
plain_batches = build_loader(plain, "val", build_dataset(plain, "val"))
seen = [to_input(batch.images) for batch in plain_batches.epoch(0)]
findings = finish(calibrate(graph, seen, total=len(train_set)))
findings += finish(correct_biases(graph, seen[:4]))
print("remarks on layers:", [str(finding) for finding in findings])
integers = lower(graph).graph
for name, candidate in (("float", network), ("integers", integers)):
    print(name, {metric: round(value, 2) for metric, value in score(candidate).items()})

# %%
# ONNX
# ----
#
# The exported file computes the same integers: ``compare_codes`` counts the codes in which
# onnxruntime differs, in the result and inside.

file = root / "unet_int8.onnx"
file.write_bytes(export_quantized(integers, (1, 3, 128, 256), dynamic="batch").SerializeToString())
parity = compare_codes(file, integers, seen[:2], where=file.name)
print(f"{parity.differing} of {parity.values} codes differ, {parity.layers} layers compared")

# %%
# A picture
# ---------
#
# What onnxruntime gives for a validation image, beside its label.

images, labels, _ = next(val_batches.epoch(0))
session = onnxruntime.InferenceSession(file)
(scores,) = session.run(None, {"images": to_input(images).numpy()})
maps = predictions(torch.from_numpy(scores), tuple(labels.shape[1:]))

figure, axes = plt.subplots(1, 3, figsize=(9, 2), layout="constrained")
panels = {
    "image": images[0].permute(1, 2, 0).numpy(),
    "integers in onnxruntime": colorize(maps[0].numpy(), CITYSCAPES_PALETTE),
    "label": colorize(labels[0].numpy(), CITYSCAPES_PALETTE),
}
for axis, (title, picture) in zip(axes, panels.items(), strict=True):
    axis.imshow(picture)
    axis.set_title(title)
    axis.axis("off")
folder.cleanup()
