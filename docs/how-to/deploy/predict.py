"""Run a file of `hat export` on pictures, with onnxruntime, numpy and Pillow alone.

    python predict.py MODEL.onnx PICTURE... [-o FOLDER] [--threads N]

A segmentation becomes FOLDER/NAME.png, a picture of class indices in the colours of the classes,
of the size of the picture; a classification is printed. Both are what `hat predict` gives.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Model:
    """A model file and what it says of itself.

    Args:
        path: of `hat export`, float or integers.
        threads: that it computes with; 0 for one a core.
    """

    def __init__(self, path, threads=0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        said = self.session.get_modelmeta().custom_metadata_map
        if "hat.color_matrix" not in said:
            raise SystemExit(f"{path}: not of hat export, or of an old one: export it again")
        self.task = said["hat.task"]
        self.classes = json.loads(said["hat.classes"])
        self.palette = json.loads(said["hat.palette"])  # RGB of each class; may be empty
        self.transforms = json.loads(said["hat.transforms"])
        self.takes_bytes = json.loads(said["hat.preprocess"])  # exported with --with-preprocess
        matrix = json.loads(said["hat.color_matrix"])
        self.matrix = np.array(matrix, np.float32)  # (3, 4)
        if not self.takes_bytes and not matrix:
            raise SystemExit(f"{path}: export it with --with-preprocess")
        metric = json.loads(said["hat.config"])["values"]["metric"]
        self.is_smooth = metric.get("upsample") == "bilinear" and not json.loads(said["hat.argmax"])

    def __call__(self, pixels):
        """Scores (classes, ...) float32, or labels (1, ...) int64, of pixels (H, W, 3) uint8."""
        images = pixels.transpose(2, 0, 1)[None]  # (1, 3, H, W)
        if not self.takes_bytes:
            images = self.prepared(images)
        return self.session.run(None, {"images": np.ascontiguousarray(images)})[0][0]

    def prepared(self, images):
        """What the network takes: each channel a sum of red, green, blue and a constant."""
        red, green, blue = images.astype(np.float32).transpose(1, 0, 2, 3)
        rows = [row[0] * red + row[1] * green + row[2] * blue + row[3] for row in self.matrix]
        return np.stack(rows, axis=1)


def padded(pixels, divisor=64, fill=None, label_fill=255):
    """Filled up right and below with the mean colour until a number divides both sides."""
    height, width = pixels.shape[:2]
    if fill is None:
        fill = np.rint(pixels.sum((0, 1), dtype=np.int64) / (height * width))
    whole = np.empty((height + -height % divisor, width + -width % divisor, 3), np.uint8)
    whole[:] = fill
    whole[:height, :width] = pixels
    return whole


def resized(pixels, size, interpolation="bilinear"):
    """At [height, width]; or with the shorter side of a size, the longer one rounded down."""
    height, width = pixels.shape[:2]
    if isinstance(size, int):
        size = [size]
    if len(size) == 1 and height <= width:
        size = [size[0], int(size[0] * width / height)]
    elif len(size) == 1:
        size = [int(size[0] * height / width), size[0]]
    resample = Image.Resampling[interpolation.upper()]
    return np.array(Image.fromarray(pixels).resize((size[1], size[0]), resample))


def center_cropped(pixels, size, **_boxes):
    """The middle; a picture that is smaller is refused."""
    height, width = (size, size) if isinstance(size, int) else size
    top, left = (
        round((have - want) / 2)
        for have, want in zip(pixels.shape[:2], (height, width), strict=True)
    )
    if min(top, left) < 0:
        raise SystemExit(f"the picture is smaller than {height}x{width}")
    return pixels[top : top + height, left : left + width]


TRANSFORMS = {"PadToMultiple": padded, "Resize": resized, "CenterCrop": center_cropped}


def transformed(pixels, transforms):
    """A picture as the validation of the training prepared it."""
    for node in transforms:
        arguments = {key: value for key, value in node.items() if key != "type"}
        if node["type"] not in TRANSFORMS:
            raise SystemExit(f"the file wants the transform {node['type']}, which isn't here")
        pixels = TRANSFORMS[node["type"]](pixels, **arguments)
    return pixels


def label_map(model, pixels):
    """(H, W) uint8: the class of each pixel of a picture."""
    if any(node["type"] != "PadToMultiple" for node in model.transforms) or model.is_smooth:
        raise SystemExit("only padding, and the nearest score, are undone here")
    whole = transformed(pixels, model.transforms)
    scores = model(whole)
    labels = scores[0] if scores.dtype == np.int64 else scores.argmax(0)
    rows, columns = (  # a network of stride 4 gives a class for each 4x4 pixels
        np.arange(side) * cells // side
        for side, cells in zip(whole.shape[:2], labels.shape, strict=True)
    )
    height, width = pixels.shape[:2]
    return labels[rows[:height, None], columns[:width]].astype(np.uint8)


def probabilities(model, pixels):
    """Class -> probability, the likeliest first; just the class where the file has the argmax."""
    scores = model(transformed(pixels, model.transforms))
    if scores.dtype == np.int64:
        return {model.classes[int(scores.reshape(-1)[0])]: math.nan}
    powers = np.exp(scores.astype(np.float64) - scores.max())
    order = np.argsort(-powers, kind="stable")
    return {model.classes[index]: powers[index] / powers.sum() for index in order}


def save_labels(labels, palette, path):
    """A PNG of indices; 255 is no class."""
    image = Image.fromarray(labels)
    if palette:
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(palette)] = palette
        image.putpalette(colors.tobytes())
    image.save(path)


def main():
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, default=Path("labels"))
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    model = Model(arguments.model, arguments.threads)
    for path in arguments.pictures:
        with Image.open(path) as image:
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        if model.task == "segmentation":
            labels = label_map(model, pixels)
            arguments.out.mkdir(parents=True, exist_ok=True)
            save_labels(labels, model.palette, arguments.out / f"{path.stem}.png")
            counts = np.bincount(labels.ravel(), minlength=256)[: len(model.classes)]
            shares = dict(zip(model.classes, counts / labels.size, strict=True))
        else:
            shares = probabilities(model, pixels)
        best = sorted(shares.items(), key=lambda item: -item[1])[:3]
        print(path.name, ", ".join(f"{name} {share:.1%}" for name, share in best if share != 0))


if __name__ == "__main__":
    main()
