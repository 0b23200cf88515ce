"""UNet on the street scenes that ``hat demo`` draws: trains in two minutes on two cores.

Not the original's recipe: small crops, classes weighed by their frequency, AdamW.
"""

task = "segmentation"
data_rootdir = "demo/scenes"
epochs = 28

model = {"type": "unet", "num_classes": 19, "alpha": 0.25, "upsample": "bilinear"}

train = {
    "dataset": {"type": "Cityscapes", "path": "train_lmdb"},
    "transforms": [
        {"type": "RandomScaleCropFlip", "height": 192, "width": 256, "low": 0.75, "high": 1.5},
        {"type": "ColorJitter", "brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
    ],
    "batch_size": 4,
    "num_workers": 1,
}
val = {
    "dataset": {"type": "Cityscapes", "path": "val_lmdb"},
    "transforms": [{"type": "PadToMultiple", "divisor": 64}],
    "batch_size": 4,
}
batch_transforms = [{"type": "RgbToYuv444"}]

loss = {
    "type": "CrossEntropy",
    "class_weights": "inverse_sqrt",
    "stride_weights": [1.0, 0.4, 0.4, 0.4, 0.4],
}
metric = {"type": "MeanIoU", "num_classes": 19}

optim = {"type": "adamw", "lr": 0.006, "weight_decay": 0.01}
schedule = {"type": "cosine", "warmup_epochs": 1}
fit = {"precision": "auto", "channels_last": True, "val_every": 7}

deploy = {"head": "4", "argmax": True, "shape": [1, 3, 256, 512]}

quantize = {"images": 64}
steps = {
    "qat": {
        "epochs": 3,
        "optim": {"lr": 2e-4},
        "schedule": {"type": "cosine"},
        "fit": {"val_every": 1},
    }
}
