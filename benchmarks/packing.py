"""Packing against copying and decoding, on the same photos, in turn; and the memory it takes.

Targets: `hat pack imagenet --check none` packs at least 0.55 of the images a second that
`cat` and fsync copy; checked, with one process, it takes at most 1.3 times as long as decoding
alone; anonymous and shared memory of all its processes stay below 250 MB at any number of records.

    python benchmarks/packing.py [TAR with JPEG files]

Without an argument it takes $HAT_TEST_DATA/coco.tar where that is set, else it draws photos.
"""

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

COPIED, DECODED, ROUNDS = 3000, 300, 5
RECORDS = (1000, 10_000, 100_000)
SMALL_SIDE = 160  # of the photos of which the memory is measured: there are many of them


def photos(archive: Path | None) -> list[bytes]:
    if archive is None:
        return list(drawn_photos())
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.lower().endswith(".jpg")]
        files = [tar.extractfile(member) for member in members]
        return [file.read() for file in files if file is not None]


def drawn_photos() -> Iterator[bytes]:
    """About 120 kB each."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        coarse = Image.fromarray(rng.integers(0, 255, (120, 160, 3), np.uint8)).resize((640, 480))
        noise = rng.integers(-12, 13, (480, 640, 3))
        file = io.BytesIO()
        pixels = np.clip(np.asarray(coarse, int) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=88)
        yield file.getvalue()


def write_files(folder: Path, data: list[bytes], count: int, *, link: bool = False) -> Path:
    """So many photos in two class folders; as files of their own unless linked."""
    for index in range(count):
        wnid = f"n{index % 2:08d}"
        path = folder / "train" / wnid / f"{wnid}_{index}.JPEG"
        if index < 2:
            path.parent.mkdir(parents=True)
        if link and index >= 2 * len(data):
            first = index % (2 * len(data))
            os.link(folder / "train" / wnid / f"{wnid}_{first}.JPEG", path)
        else:
            path.write_bytes(data[index % len(data)])
    return folder


def small(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((SMALL_SIDE, SMALL_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def copy_s(source: Path, target: Path) -> float:
    """Seconds that ``cat`` of all files and an fsync take."""
    started = time.perf_counter()
    with target.open("wb") as out:
        files = sorted(map(str, source.glob("train/*/*.JPEG")))
        subprocess.run(["cat", *files], stdout=out, check=True)
        os.fsync(out.fileno())
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def decode_s(source: Path) -> float:
    """Seconds that reading and decoding all files takes, in one thread."""
    started = time.perf_counter()
    for path in sorted(source.glob("train/*/*.JPEG")):
        Image.open(io.BytesIO(path.read_bytes())).load()
    return time.perf_counter() - started


def pack_s(source: Path, target: Path, *options: str) -> tuple[float, float]:
    """Seconds of packing, as the command tells them, and of the whole command."""
    command = [sys.executable, "-m", "hatcli", "pack", "imagenet", "--split", "train", "--json"]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--src", str(source), "--out", str(target), *options],
        capture_output=True,
        check=True,
    )
    whole = time.perf_counter() - started
    shutil.rmtree(target)
    return json.loads(done.stdout)["seconds"], whole


def peak_mb(source: Path, target: Path, *options: str) -> float:
    """The most anonymous and shared memory that the command and its workers have at one time."""
    command = [sys.executable, "-m", "hatcli", "pack", "imagenet", "--split", "train"]
    process = subprocess.Popen(
        [*command, "--src", str(source), "--out", str(target), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(memory_mb(status) for status in group(process.pid)))
        time.sleep(0.03)
    assert process.returncode == 0
    shutil.rmtree(target)
    return peak


def group(leader: int) -> Iterator[Path]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[2]) == leader:
                yield stat.with_name("status")
        except OSError:
            continue


def memory_mb(status: Path) -> float:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0.0
    fields = (line.split() for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    return sum(int(field[1]) / 1000 for field in fields)


def report_copying(data: list[bytes], folder: Path) -> None:
    source = write_files(folder / "many", data, COPIED)
    copy_s(source, folder / "copy")  # so that all files are in the cache
    for pack_type in ("lmdb", "mxrecord"):
        options = ["--check", "none", "-j", "0", "--pack-type", pack_type]
        ratios, times = [], []
        for _ in range(ROUNDS):
            base = copy_s(source, folder / "copy")
            inner, whole = pack_s(source, folder / "pack", *options)
            ratios.append(base / inner)
            times.append((base, inner, whole))
        base, inner, whole = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{pack_type}: cat and fsync {COPIED / base:.0f} images/s, packed unchecked "
            f"{COPIED / inner:.0f} ({COPIED / whole:.0f} with the start of the program): "
            f"{statistics.median(ratios):.2f}, best {max(ratios):.2f} (target: at least 0.55)"
        )
    shutil.rmtree(source)


def report_decoding(data: list[bytes], folder: Path) -> None:
    source = write_files(folder / "checked", data, DECODED)
    ratios = []
    for _ in range(ROUNDS):
        base = decode_s(source)
        inner, _ = pack_s(source, folder / "pack", "-j", "0")
        ratios.append(inner / base)
    print(
        f"packed checked, one process: {statistics.median(ratios):.2f} of the time of decoding "
        "alone (target: at most 1.3)"
    )


def report_memory(data: list[bytes], folder: Path) -> None:
    little = [small(one) for one in data]
    for count in RECORDS:
        is_few = count < RECORDS[-1]
        source = write_files(folder / f"{count}", data if is_few else little, count, link=True)
        peak = peak_mb(source, folder / "pack", "-j", "2", "--check", "header")
        print(f"{count} records: at most {peak:.0f} MB (target: at most 250)")
        shutil.rmtree(source)


def main() -> None:
    archive = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if archive is None and "HAT_TEST_DATA" in os.environ:
        archive = Path(os.environ["HAT_TEST_DATA"], "coco.tar")
    data = photos(archive)
    print(f"{len(data)} photos, {sum(map(len, data)) / len(data) / 1000:.0f} kB on average")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        report_copying(data, Path(folder))
        report_decoding(data, Path(folder))
        report_memory(data, Path(folder))


if __name__ == "__main__":
    main()
