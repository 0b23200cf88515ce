"""A peer of the config unet_small: same data, augmentation and loss weights, in float32.

torchvision's network trains fastest in float32 on a CPU. Its rate of images is a tenth of the
UNet's, so the epochs are fewer for the same minutes; learning rate and average are chosen for
that number of steps.
"""

task = "segmentation"
data_rootdir = "data/cityscapes"
epochs = 66
imports = ["lraspp.py"]
model = {"type": "lraspp", "num_classes": 19}
train = {
    "dataset": {"type": "Cityscapes", "path": "train_lmdb"},
    "transforms": [
        {"type": "RandomScale", "low": 0.5, "high": 2.0},
        {"type": "RandomCrop", "height": 320, "width": 384},
        {"type": "RandomFlip"},
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
loss = {"type": "CrossEntropy", "class_weights": "inverse_sqrt"}
metric = {"type": "MeanIoU", "num_classes": 19}
optim = {"type": "adamw", "lr": 0.003, "weight_decay": 0.02}
schedule = {"type": "cosine", "warmup_epochs": 3}
fit = {"precision": "float32", "channels_last": True, "val_every": 11, "ema_decay": 0.99}
deploy = {"argmax": True, "shape": [1, 3, 384, 512]}
