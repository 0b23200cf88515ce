"""Training and evaluation loops; they know no model, no dataset and no quantizer."""

from hatcli.registry import Registry

OPTIMIZERS = Registry("optimizer", "hatcli.engine.optimizers", given=["model"])
SCHEDULES = Registry("schedule", "hatcli.engine.schedules", given=["steps_per_epoch", "epochs"])
