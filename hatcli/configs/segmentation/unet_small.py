"""UNet on a small dataset in Cityscapes layout with pictures of 480x360, on two cores.

Classes are weighed by 1/sqrt(frequency): without it the rare ones stay at 0 on 74 pictures.
"""

task = "segmentation"
data_rootdir = "data/cityscapes"
epochs = 420
model = {"type": "unet", "num_classes": 19, "alpha": 0.25, "upsample": "bilinear"}
train = {
    "dataset": {"type": "Cityscapes", "path": "train_lmdb"},
    "transforms": [
        {"type": "RandomScaleCropFlip", "height": 320, "width": 384},
        {"type": "ColorJitter", "brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
    ],
    "batch_size": 4,
    "num_workers": 1,
}
val = {
    "dataset": {"type": "Cityscapes", "path": "val_lmdb"},
    "transforms": [{"type": "PadToMultiple", "divisor": 64}],
    "batch_size": 2,
}
batch_transforms = [{"type": "RgbToYuv444"}]
loss = {
    "type": "CrossEntropy",
    "class_weights": "inverse_sqrt",
    "stride_weights": [1.0, 0.4, 0.4, 0.4, 0.4],
}
metric = {"type": "MeanIoU", "num_classes": 19}
optim = {"type": "adamw", "lr": 0.008, "weight_decay": 0.02}
schedule = {"type": "cosine", "warmup_epochs": 10}
fit = {"precision": "auto", "channels_last": True, "val_every": 20, "ema_decay": 0.998}
deploy = {"head": "4", "argmax": True, "shape": [1, 3, 384, 512]}
steps = {
    "qat": {
        "epochs": 20,
        "optim": {"lr": 2e-4},
        "schedule": {"type": "cosine"},
        "fit": {"val_every": 4, "ema_decay": None},
    }
}
