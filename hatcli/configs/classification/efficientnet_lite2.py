"""EfficientNet-Lite2 on ImageNet, at 260x260 and with the input of TensorFlow: (x - 127) / 128.

Evaluation is that of the public weights, which --weights loads. The public manual of the original
toolkit quotes top-1 77.34 in float and 76.96 as integers for weights trained elsewhere. The
training recipe is the one that it has for its own EfficientNet, untried on this one, with the drop
path of the network's authors.
Batch 512 in all (8 devices of 64 there), for which the rate is made: on one device
train with optim.lr=0.00625.
"""

task = "classification"
data_rootdir = "data/imagenet"
epochs = 360

model = {"type": "efficientnet_lite2", "num_classes": 1000, "drop_path": 0.2}

train = {
    "dataset": {"type": "ImageNet", "path": "train_lmdb"},
    "transforms": [
        {
            "type": "RandomResizedCrop",
            "size": 260,
            "scale": [0.08, 1.0],
            "ratio": [3 / 4, 4 / 3],
            "interpolation": "bicubic",
        },
        {"type": "RandomFlip", "p": 0.5},
        {
            "type": "ColorJitter",
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.4,
            "hue": 0.1,
        },
    ],
    "batch_size": 64,
    "num_workers": 4,
}
val = {
    "dataset": {"type": "ImageNet", "path": "val_lmdb"},
    "transforms": [
        {"type": "Resize", "size": 292, "interpolation": "bicubic"},
        {"type": "CenterCrop", "size": 260},
    ],
    "batch_size": 128,
    "num_workers": 4,
}
batch_transforms = [
    {"type": "Normalize", "mean": [127.0, 127.0, 127.0], "std": [128.0, 128.0, 128.0]}
]

# Any label of 0 to 999 is a class: the default ignore_index of maps, 255, would be one of them.
loss = {"type": "CrossEntropy", "label_smoothing": 0.1, "ignore_index": -100}
metric = {"type": "Accuracy"}

optim = {"type": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 4e-5}
schedule = {"type": "cosine", "warmup_epochs": 5}
fit = {"precision": "auto", "channels_last": True}

deploy = {"argmax": False, "shape": [1, 3, 260, 260]}
