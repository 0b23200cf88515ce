"""What this machine is: its processor, and how much of it and of its memory is ours."""

import os
import platform
from pathlib import Path

VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Names, in Linux, of the 8-bit dot products of x86 that don't saturate."""

TELLING = (
    "avx2",
    "avx512f",
    *VNNI,
    "avx512_bf16",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)
"""Instruction sets that decide how fast, and how exact, int8 and bfloat16 are; the last three
are those of ARM."""

_CPU = Path("/proc/cpuinfo")
_CGROUP = Path("/sys/fs/cgroup")
_WHOLE = 1 << 60  # bytes; a limit above it is none


def processor() -> str:
    """The name of this machine's processor."""
    for key, value in _cpu_information():
        if key == "model name":
            return value
    return platform.processor() or platform.machine()


def has_vnni() -> bool | None:
    """Whether the processor has an 8-bit dot product that doesn't saturate; None if unknown."""
    flags = _flags()
    return None if flags is None else any(name in flags for name in VNNI)


def instruction_sets() -> list[str] | None:
    """Those of `TELLING` that the processor has; None if unknown."""
    flags = _flags()
    if flags is None:
        flags = _arm_features()
    return None if flags is None else [name for name in TELLING if name in flags]


def usable_cores() -> float:
    """Cores that this process may use: of all, those of its affinity and its control group."""
    cores = float(len(os.sched_getaffinity(0)))
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, int(quota) / int(period))
    return cores


def memory() -> tuple[int, int]:
    """Bytes of memory in all and available, as far as the control group lets us."""
    sizes = {}
    for line in _read(Path("/proc/meminfo")).splitlines():
        name, _, value = line.partition(":")
        sizes[name] = int(value.split()[0]) * 1024
    total = sizes.get("MemTotal", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    available = sizes.get("MemAvailable", total)
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit() and int(limit) < min(total, _WHOLE):
        total = int(limit)
        available = min(available, max(0, total - int(used)))
    return total, available


def _flags() -> set[str] | None:
    for key, value in _cpu_information():
        if key == "flags":
            return set(value.split())
    return None


def _arm_features() -> set[str] | None:
    for key, value in _cpu_information():
        if key == "Features":
            return set(value.split())
    return None


def _cpu_information() -> list[tuple[str, str]]:
    pairs = [line.partition(":") for line in _read(_CPU).splitlines()]
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _read(path: Path) -> str:
    """A small file of the system; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
