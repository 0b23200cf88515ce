import io

import lmdb
import numpy as np
import pytest
from made_cityscapes import make_cityscapes
from made_imagenet import make_imagenet
from PIL import Image

from hatcli.cli import run
from hatcli.data import jpeg
from hatcli.data.datasets import DATASETS
from hatcli.data.jpeg import decode_upper_rows, read_jpeg_head
from hatcli.data.loader import Loader
from hatcli.data.packs.strips import RawRows, Strips, encode_strips
from hatcli.data.stored_image import StoredImage, decode_image
from hatcli.data.transforms.resized_crop import RandomResizedCrop
from hatcli.errors import DataError

SAMPLINGS = ["4:4:4", "4:2:2", "4:2:0", "grey"]


def picture(height: int = 123, width: int = 157) -> np.ndarray:
    """Edges and slopes, as a photo has them."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    image[height // 3 : height // 2, width // 4 :] ^= 255
    return image


def encoded(sampling: str = "4:2:0", kind: str = "JPEG", size=(123, 157), **settings) -> bytes:
    image, file = Image.fromarray(picture(*size)), io.BytesIO()
    if kind == "JPEG":
        settings = {"quality": 90, **settings}
        if sampling == "grey":
            image = image.convert("L")
        else:
            settings["subsampling"] = sampling
    image.save(file, kind, **settings)
    return file.getvalue()


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    elif jpeg.simplejpeg is None:
        pytest.skip("simplejpeg isn't installed")


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [(123, 157), (16, 16), (7, 300), (129, 8), (1, 1)])
def test_a_region_of_a_jpeg_has_the_pixels_of_the_whole(sampling, size):
    data = encoded(sampling, size=size)
    image, whole = StoredImage(memoryview(data), "made"), decode_image(data, "made")
    assert image.shape == whole.shape
    rng = np.random.default_rng(0)
    for _ in range(20):
        top, left = int(rng.integers(size[0])), int(rng.integers(size[1]))
        height, width = (
            1 + int(rng.integers(size[0] - top)),
            1 + int(rng.integers(size[1] - left)),
        )
        part = image.region(top, left, height, width)
        assert np.array_equal(part, whole[top : top + height, left : left + width])


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_shrunk_region_is_about_the_mean_of_squares(sampling, shrink):
    slopes = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    smooth, file = (
        Image.fromarray(slopes).resize((157, 123), Image.Resampling.BICUBIC),
        io.BytesIO(),
    )
    kind = {"quality": 95} if sampling == "grey" else {"quality": 95, "subsampling": sampling}
    (smooth.convert("L") if sampling == "grey" else smooth).save(file, "JPEG", **kind)
    image = StoredImage(file.getvalue(), "made")
    assert image.shrinks == (8, 4, 2, 1)
    part = image.region(16, 24, 64, 96, shrink)
    assert part.shape == (64 // shrink, 96 // shrink, 3)
    exact = image.region(16, 24, 64, 96).reshape(64 // shrink, shrink, 96 // shrink, shrink, 3)
    assert np.abs(part - exact.mean((1, 3))).mean() < 8  # colours are coarser


def test_rows_below_the_region_are_not_decoded():
    data = encoded("4:4:4", size=(400, 150))
    head = read_jpeg_head(data)
    assert len(decode_upper_rows(data, head, 30, "made")) == 32
    assert len(decode_upper_rows(data, head, 100, "made", shrink=4)) == 28


@pytest.mark.parametrize(
    "data",
    [
        encoded(progressive=True),
        encoded(kind="PNG"),
        encoded(kind="WEBP", lossless=True),
        encoded() + b"notes behind the end",
    ],
)
def test_other_files_are_decoded_whole_by_pillow(data):
    image = StoredImage(data, "made")
    assert read_jpeg_head(data) is None
    assert image.shrinks == (1,)
    assert np.array_equal(image.region(20, 30, 40, 50), image.pixels()[20:60, 30:80])
    assert np.array_equal(image.pixels(), decode_image(data, "made"))


@pytest.mark.parametrize("kind", [RawRows, lambda i: Strips(memoryview(encode_strips(i)), i.shape)])
def test_a_region_of_stored_pixels_is_that_of_the_image(kind):
    pixels = picture()
    image = StoredImage(kind(pixels), "made")
    assert (image.height, image.width, image.shrinks) == (123, 157, (1,))
    assert np.array_equal(image.pixels(), pixels)
    assert np.array_equal(image.region(20, 30, 77, 50), pixels[20:97, 30:80])


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("cut", [30, 300, -500, -1])
def test_a_cut_file_is_an_error_that_names_it(cut):
    data = encoded()[:cut]
    with pytest.raises(DataError, match=r"here\.jpg"):
        StoredImage(data, "here.jpg", (123, 157)).region(0, 0, 123, 157)


@pytest.mark.usefixtures("decoder")
def test_flipped_bits_give_pixels_or_a_data_error():
    whole, rng = encoded(), np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        data[int(rng.integers(len(data) - 2))] ^= 1 << int(rng.integers(8))
        try:
            part = StoredImage(bytes(data), "made", (123, 157)).region(0, 8, 64, 32)
            assert part.shape == (64, 32, 3)
        except DataError:
            pass


def test_an_image_of_another_size_than_said_is_an_error():
    for data in (encoded(), encoded(kind="PNG")):
        with pytest.raises(DataError, match=r"image is .*123, 157.*made"):
            StoredImage(data, "made", (50, 157)).region(0, 0, 10, 10)
    with pytest.raises(DataError, match="image has the shape"):
        StoredImage(RawRows(picture()), "made", (50, 157))


@pytest.mark.parametrize("window", [(-1, 0, 5, 5), (0, 0, 124, 5), (0, 150, 5, 8), (0, 0, 0, 5)])
def test_a_window_outside_is_our_mistake(window):
    with pytest.raises(ValueError, match="window"):
        StoredImage(RawRows(picture()), "made").region(*window)
    with pytest.raises(ValueError, match="can't be shrunk by 2"):
        StoredImage(encoded(), "made").region(0, 0, 5, 6, 2)


# In transforms and datasets


def cropped(image, seed, **settings):
    step = RandomResizedCrop(48, **settings)
    return step({"image": image, "label": 0}, np.random.default_rng(seed))["image"]


@pytest.mark.usefixtures("decoder")
def test_a_resized_crop_of_a_stored_image_has_the_same_bytes():
    data = encoded(size=(300, 400))
    whole = decode_image(data, "made")
    for seed in range(20):
        assert np.array_equal(cropped(StoredImage(data, "made"), seed), cropped(whole, seed))


@pytest.mark.usefixtures("decoder")
def test_a_scaled_decode_shows_the_same_part():
    data = encoded(size=(600, 800))
    whole, differs, errors = decode_image(data, "made"), 0, []
    for seed in range(20):
        scaled = cropped(StoredImage(data, "made"), seed, scaled_decode=True)
        exact = cropped(whole, seed)
        differs += not np.array_equal(scaled, exact)
        errors.append(np.mean((scaled.astype(float) - exact) ** 2))
        assert np.array_equal(cropped(whole, seed, scaled_decode=True), exact)
    assert differs > 15
    assert np.median(errors) < 255**2 / 10**3  # 30 dB; parts begin up to half a pixel elsewhere


def test_a_scaled_decode_moves_the_label_map_and_the_boxes_with_the_image():
    label = np.zeros((600, 800), np.uint8)
    label[200:440, 304:640] = 1
    file = io.BytesIO()
    Image.fromarray(np.repeat(label[..., None] * 200, 3, 2)).save(file, "JPEG", quality=95)
    step = RandomResizedCrop(48, scale=[0.5, 1], scaled_decode=True)
    boxes = np.array([[304, 200, 640, 440]], np.float32)
    for seed in range(10):
        sample = {"image": StoredImage(file.getvalue(), "made"), "label": label, "boxes": boxes}
        result = step(sample, np.random.default_rng(seed))
        bright = result["image"][..., 0] > 100
        assert (bright != (result["label"] == 1)).mean() < 0.05
        rows, columns = np.nonzero(result["label"] == 1)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(result["boxes"][0], found, atol=1)


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return make_cityscapes(tmp_path_factory.mktemp("streets"), train=3, val=1, size=(64, 48))


@pytest.mark.parametrize("image_format", ["source", "raw", "strips", "jpeg:95"])
def test_a_pack_gives_the_same_undecoded_as_decoded(streets, image_format):
    command = f"pack cityscapes --src {streets} --split train --overwrite".split()
    assert run([*command, "--image-format", image_format]) == 0
    dataset = DATASETS.build({"type": "Cityscapes", "path": "train_lmdb"}, root=streets)
    raw = DATASETS.build({"type": "CityscapesRaw", "split": "train"}, root=streets)
    for index in range(3):
        plain = dataset[index]
        part, label = dataset.read(
            index, lambda s: (s["image"].region(5, 6, 40, 50).copy(), s["label"])
        )
        assert np.array_equal(part, plain["image"][5:45, 6:56])
        assert np.array_equal(label, plain["label"])
        if image_format != "jpeg:95":
            assert np.array_equal(plain["image"], raw[index]["image"])


class Plain:
    """A dataset without `read`."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return self.dataset[index]


@pytest.mark.parametrize("name", ["ImageNet", "ImageFolder"])
def test_a_loader_gives_the_same_batches_whether_a_dataset_decodes_or_not(name, tmp_path):
    if name == "ImageNet":
        make_imagenet(tmp_path, train=4, val=2, num_classes=2)
        assert run(["pack", "imagenet", "--src", str(tmp_path), "--split", "train"]) == 0
    for label in ("cats", "dogs"):
        (tmp_path / "train_lmdb" / label).mkdir(parents=True)
        for number in range(2):
            file = tmp_path / "train_lmdb" / label / f"{number}.jpg"
            file.write_bytes(encoded(size=(90 + number, 100)))
    dataset = DATASETS.build({"type": name, "path": "train_lmdb"}, root=tmp_path)
    for workers in ("process", "thread"):
        settings = {"batch_size": 2, "shuffle": True, "num_workers": 1, "workers": workers}
        loaders = [
            Loader(d, [RandomResizedCrop(32)], **settings) for d in (dataset, Plain(dataset))
        ]
        for lazy, whole in zip(*(loader.epoch(0) for loader in loaders), strict=True):
            assert lazy.names == whole.names
            assert np.array_equal(lazy.images, whole.images)


def test_the_system_reads_ahead_where_records_are_large(streets, monkeypatch):
    told, real_open = [], lmdb.open
    monkeypatch.setattr(
        lmdb, "open", lambda *a, **k: told.append(k.get("readahead")) or real_open(*a, **k)
    )
    for size, reads_ahead in (((64, 32), False), ((256, 128), True)):
        root = make_cityscapes(streets.parent / f"{size}", train=8, val=1, size=size)
        command = ["pack", "cityscapes", "--src", str(root), "--split", "train"]
        assert run([*command, "--image-format", "raw"]) == 0
        told.clear()
        assert DATASETS.build({"type": "Cityscapes", "path": "train_lmdb"}, root=root)[0]
        assert told[-1] is reads_ahead
