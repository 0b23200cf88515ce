"""UNet on Cityscapes: the published recipe of the original toolkit.

Batch 32 in all (8 devices of 4 there). The public manual of the original quotes mIoU 68.02 in
float for this recipe. For a quick run on a small machine see the tutorial.
"""

task = "segmentation"
data_rootdir = "data/cityscapes"
epochs = 300

model = {"type": "unet", "num_classes": 19, "alpha": 0.25, "upsample": "bilinear"}

train = {
    "dataset": {"type": "Cityscapes", "path": "train_lmdb"},
    "transforms": [
        {"type": "RandomScaleCropFlip", "height": 1024, "width": 2048, "flip": 0.0},
    ],
    "batch_size": 4,
    "num_workers": 2,
}
val = {
    "dataset": {"type": "Cityscapes", "path": "val_lmdb"},
    "transforms": [{"type": "PadToMultiple", "divisor": 64}],
    "batch_size": 4,
    "num_workers": 2,
}
batch_transforms = [{"type": "RgbToYuv444"}]

loss = {
    "type": "SoftmaxFocal",
    "alpha": 0.25,
    "gamma": 2.0,
    "stride_weights": [256 / 19, 128 / 19, 64 / 19, 32 / 19, 16 / 19],
}
metric = {"type": "MeanIoU", "num_classes": 19}

optim = {"type": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-3}
schedule = {"type": "step", "milestones": [200, 240, 280], "gamma": 0.1}
fit = {"precision": "auto", "channels_last": True}

deploy = {"head": "4", "argmax": True, "shape": [1, 3, 1024, 2048]}

# The original's: scales as calibrated, and a fiftieth of the learning rate. The head that is
# deployed is trained alone, with the weight that it has among the others.
steps = {
    "qat": {
        "epochs": 30,
        "loss": {"alpha": 0.25 * 256 / 19},
        "optim": {"type": "sgd", "lr": 2e-4, "momentum": 0.9, "weight_decay": 5e-3},
        "schedule": {"type": "step", "milestones": [20], "gamma": 0.1},
    }
}
