"""hat doctor: whether this machine and what is installed on it will do."""

import textwrap
from typing import TYPE_CHECKING

from hatcli.cli._options import AsJson
from hatcli.errors import CheckFailed

if TYPE_CHECKING:
    from hatcli.recipes.doctor.checkup import Checkup

WIDTH = 80
INDENT = 9
GIB = 1 << 30


def main(as_json: AsJson = False) -> None:
    """Look at versions, devices, memory and disk; try quantization, export, and a pack.

    The exit code is 3 where a self-test fails or a needed package is broken; with warnings it is 0.

    Example: hat doctor
    """
    from hatcli.cli import _screen
    from hatcli.recipes.doctor.checkup import examine

    found = _screen.follow(examine())
    if as_json:
        from dataclasses import asdict

        _screen.print_json({**asdict(found), "faults": found.faults})
    else:
        for line in _lines(found):
            _screen.say(line)
    if found.faults:
        count = len(found.faults)
        what = "1 fault" if count == 1 else f"{count} faults"
        raise CheckFailed(f"{what}: {found.faults[0]}")
    _screen.next_command("hat demo")


def _lines(found: "Checkup") -> list[str]:
    lines = [
        *_block("hat", [f"{found.versions['hat']}", f"python {found.versions['python']}"]),
        *_block("system", [found.versions["system"]]),
        *_block("cpu", _processor(found)),
        *_block("gpu", _devices(found)),
        *_block("memory", [f"{_gib(found.memory_bytes[1])} free of {_gib(found.memory_bytes[0])}"]),
        *_block(
            "disk",
            [f"{folder}: {_gib(free)} free" for folder, (_, free) in found.room.items()],
        ),
        *_block("limits", _limits(found)),
        *_block("packages", _packages(found)),
    ]
    lines += _optional(found)
    for test in found.tests:
        verdict = "ok    " if test.ok else "FAILED"
        lines += _wrapped(
            f"{'test':{INDENT}}{verdict} {test.name}: {test.text} ({test.seconds:.1f} s)"
        )
    lines += [line for text in found.warnings for line in _wrapped(f"{'warning':{INDENT}}{text}")]
    lines += [line for text in found.faults for line in _wrapped(f"{'fault':{INDENT}}{text}")]
    return [*lines, _verdict(found)]


def _verdict(found: "Checkup") -> str:
    if found.faults:
        return "not fit"
    count = len(found.warnings)
    return "ok" + (f", {count} warning{'s' if count > 1 else ''}" if count else "")


def _processor(found: "Checkup") -> list[str]:
    parts = [f"{found.processor}, {found.cores:g} cores"]
    if found.instruction_sets is not None:
        parts.append(" ".join(found.instruction_sets) or "none that helps int8")
    if found.vnni is not None:
        parts.append("int8 products don't saturate" if found.vnni else "no VNNI")
    return parts


def _devices(found: "Checkup") -> list[str]:
    devices = [
        f"{number}: {one['name']} ({one['capability']}), {_gib(one['free_bytes'])} free of "
        f"{_gib(one['memory_bytes'])}{', bf16' if one['bf16'] else ''}"
        for number, one in enumerate(found.cuda["devices"])
    ]
    if devices:
        return devices
    built = found.cuda["built_for"]
    return [f"none ({f'torch is built for CUDA {built}' if built else 'torch is built without'})"]


def _limits(found: "Checkup") -> list[str]:
    return [f"{name} {n}" for name, n in found.limits.items() if n is not None] or ["none"]


def _packages(found: "Checkup") -> list[str]:
    return [f"{one.name} {one.version}" for one in found.packages if one.version and not one.error]


def _optional(found: "Checkup") -> list[str]:
    """One line for each extra that isn't there, or not whole."""
    missing: dict[str, list[str]] = {}
    for one in found.packages:
        if one.extra and one.version is None:
            missing.setdefault(one.install, [one.purpose]).append(one.name)
    return [
        line
        for install, (purpose, *names) in missing.items()
        for line in _wrapped(f"{'optional':{INDENT}}{', '.join(names)} for {purpose}: {install}")
    ]


def _block(head: str, parts: list[str]) -> list[str]:
    """Parts behind a head, three spaces apart, broken between them where it can be."""
    lines, line = [], f"{head:{INDENT}}"
    for part in parts:
        gap = "   " if line.strip() and len(line) > INDENT else ""
        if len(line) > INDENT and len(line) + len(gap) + len(part) > WIDTH:
            lines.append(line)
            line, gap = " " * INDENT, ""
        line += gap + part
    return [*lines, line]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        subsequent_indent=" " * INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
