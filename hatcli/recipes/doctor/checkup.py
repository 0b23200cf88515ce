"""hat doctor: whether this machine and what is installed on it will do."""

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatcli import __version__
from hatcli.events import Job, Progress
from hatcli.recipes.doctor.process import CUDA, IMPORT, SELF_TESTS
from hatcli.recipes.machine import has_vnni, instruction_sets, memory, processor, usable_cores

REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "pillow": "PIL",
    "lmdb": "lmdb",
    "msgpack": "msgpack",
    "zstandard": "zstandard",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "safetensors": "safetensors",
    "thop": "thop",
    "setuptools": "setuptools",
    "matplotlib": "matplotlib",
    "typer": "typer",
    "rich": "rich",
}
"""Package -> the module that it brings."""

OPTIONAL = {
    "faster-coco-eval": ("faster_coco_eval", "det", "the detection metric CocoAP"),
    "cityscapesscripts": ("cityscapesscripts", "cityscapes", "hat eval --official"),
    "pyquaternion": ("pyquaternion", "cityscapes", "hat eval --official"),
    "simplejpeg": ("simplejpeg", "fast", "training from large JPEG files"),
    "tensorboard": ("tensorboard", "log", "figures in TensorBoard"),
    "av": ("av", "video", "hat predict on videos"),
}
"""Package -> its module, the extra that holds it, and what it is for."""

SHARED_MEMORY = Path("/dev/shm")
GIB = 1 << 30
LITTLE_SHARED, LITTLE_DISK, LITTLE_MEMORY = 1 * GIB, 5 * GIB, 2 * GIB
FEW_FILES = 1024
LONGEST_S = 300.0


@dataclass(frozen=True)
class Package:
    """One package.

    Attributes:
        version: None where it isn't installed.
        error: why it can't be imported, in a line.
        extra: that installs it; "" for one that is always needed.
        purpose: what an optional one is for.
    """

    name: str
    version: str | None
    error: str
    extra: str = ""
    purpose: str = ""

    @property
    def install(self) -> str:
        """The line that installs it."""
        return f"pip install 'hatcli[{self.extra}]'" if self.extra else "pip install hatcli"


@dataclass(frozen=True)
class SelfTest:
    """One thing that was tried."""

    name: str
    ok: bool
    text: str
    seconds: float


@dataclass(frozen=True)
class Checkup:
    """What was found.

    Attributes:
        cuda: "built_for" (a version, or None), "devices" and "problems".
        cores: usable ones.
        instruction_sets: that matter for int8 and bfloat16; None if unknown.
        vnni: whether int8 products don't saturate; None if unknown.
        memory_bytes: in all, and available.
        room: folder -> bytes in all, and free.
        limits: name -> the limit on what this process may open or use; None for no limit.
        warnings: what may hurt, with what to do.
    """

    versions: dict[str, str]
    packages: tuple[Package, ...]
    cuda: dict[str, Any]
    processor: str
    cores: float
    instruction_sets: list[str] | None
    vnni: bool | None
    memory_bytes: tuple[int, int]
    room: dict[str, tuple[int, int]]
    limits: dict[str, int | None]
    tests: tuple[SelfTest, ...]
    warnings: tuple[str, ...]

    @property
    def faults(self) -> list[str]:
        """What makes it unfit: a self-test that fails, a needed package that is broken."""
        broken = [
            f"package {one.name}: {one.error or 'is not installed'}"
            for one in self.packages
            if not one.extra and (one.error or one.version is None)
        ]
        return broken + [f"{test.name}: {test.text}" for test in self.tests if not test.ok]


def examine() -> Job[Checkup]:
    """Look at the machine and the packages, and try what all commands build upon."""
    packages = list(_installed())
    here = [module for name, module in _modules() if _version(name) is not None]
    checks = [*(IMPORT + module for module in here), CUDA, *SELF_TESTS]
    answers: dict[str, Answer] = {}
    for answer in _ask(checks):
        answers[checks[len(answers)]] = answer
        yield Progress("looking", len(answers), len(checks), "checks")
    modules = dict(_modules())
    packages = [
        Package(
            one.name,
            one.version,
            _error(answers.get(IMPORT + modules[one.name])),
            one.extra,
            one.purpose,
        )
        for one in packages
    ]
    cuda_ok, cuda_text, _ = answers[CUDA]
    known = {"built_for": None, "devices": [], "problems": [cuda_text]}
    cuda = json.loads(cuda_text) if cuda_ok else known
    tests = tuple(SelfTest(name, *answers[name]) for name in SELF_TESTS)
    found = Checkup(
        {"hat": __version__, "python": platform.python_version(), "system": platform.platform()},
        tuple(packages),
        cuda,
        processor(),
        usable_cores(),
        instruction_sets(),
        has_vnni(),
        memory(),
        _room(),
        _limits(),
        tests,
        (),
    )
    return Checkup(**{**vars(found), "warnings": tuple(_warnings(found))})


Answer = tuple[bool, str, float]


def _ask(checks: Sequence[str]) -> Iterator[Answer]:
    """Whether each check goes well, what it says, and its seconds.

    A check that ends its process has failed; the rest is tried in a new one.
    """
    remaining = list(checks)
    while remaining:
        command = [sys.executable, "-m", "hatcli.recipes.doctor.process", *remaining]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            timer = threading.Timer(LONGEST_S, process.kill)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                answer = json.loads(line)
                remaining.pop(0)
                yield answer["ok"], answer["text"], answer["seconds"]
            process.wait()
            is_late = not timer.is_alive()
            timer.cancel()
        if remaining:
            remaining.pop(0)
            yield False, _end(process.returncode, is_late=is_late), 0.0


def _end(code: int, *, is_late: bool) -> str:
    if is_late:
        return f"not done after {LONGEST_S:g} s"
    return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"


def _error(answer: Answer | None) -> str:
    return "" if answer is None or answer[0] else answer[1]


def _modules() -> list[tuple[str, str]]:
    optional = [(name, module) for name, (module, _, _) in OPTIONAL.items()]
    return [*REQUIRED.items(), *optional]


def _installed() -> Iterator[Package]:
    for name in REQUIRED:
        yield Package(name, _version(name), "")
    for name, (_, extra, purpose) in OPTIONAL.items():
        yield Package(name, _version(name), "", extra, purpose)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _room() -> dict[str, tuple[int, int]]:
    found = {}
    for folder in (Path(), SHARED_MEMORY):
        if folder.is_dir():
            usage = shutil.disk_usage(folder)
            found[str(folder.resolve())] = usage.total, usage.free
    return found


def _limits() -> dict[str, int | None]:
    try:
        import resource
    except ImportError:  # not on Windows
        return {}
    kinds = {
        "open files": resource.RLIMIT_NOFILE,
        "processes": resource.RLIMIT_NPROC,
        "address space, bytes": resource.RLIMIT_AS,
        "file size, bytes": resource.RLIMIT_FSIZE,
    }
    soft = {name: resource.getrlimit(kind)[0] for name, kind in kinds.items()}
    return {name: None if n == resource.RLIM_INFINITY else n for name, n in soft.items()}


def _warnings(found: Checkup) -> Iterator[str]:
    for one in found.packages:
        if one.extra and one.error:
            yield f"package {one.name} is broken: {one.error}; {one.install}"
    if _version("ultralytics-thop") is not None:
        yield "thop is that of ultralytics-thop, under the AGPL; pip uninstall ultralytics-thop"
    yield from (f"CUDA: {problem}" for problem in found.cuda["problems"])
    if found.vnni is False:
        yield (
            "the processor has no VNNI: int8 is slower, and sums of two products may saturate; "
            "see 'hat export --verify'"
        )
    yield from _shortages(found)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) < int(found.cores):
        yield f"OMP_NUM_THREADS={asked}: torch computes on {asked} of {found.cores:g} cores"


def _shortages(found: Checkup) -> Iterator[str]:
    """What there is little of: memory, room, open files."""
    if found.memory_bytes[1] < LITTLE_MEMORY:
        yield f"{_gib(found.memory_bytes[1])} of memory free; train with a small train.batch_size"
    here, shared = str(Path().resolve()), str(SHARED_MEMORY)
    if found.room.get(here, (0, LITTLE_DISK))[1] < LITTLE_DISK:
        yield f"{_gib(found.room[here][1])} free on the disk of this folder"
    if found.room.get(shared, (0, LITTLE_SHARED))[1] < LITTLE_SHARED:
        yield (
            f"{_gib(found.room[shared][1])} free in {shared}, where loaders' processes put their "
            "batches; start a container with --shm-size=2g, or set train.workers=thread"
        )
    files = found.limits.get("open files")
    if files is not None and files < FEW_FILES:
        yield f"only {files} open files allowed; ulimit -n 4096"
    size = found.limits.get("file size, bytes")
    if size is not None:
        yield f"files may have {_gib(size)} at most; ulimit -f unlimited"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
