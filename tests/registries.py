"""All registries of the package, and what a test leaves behind in them."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from hatcli.registry import Registry

PACKAGE = Path(__file__).parent.parent / "hatcli"


def registries() -> Iterator[Registry]:
    """Each registry that a package of hatcli makes."""
    for file in sorted(PACKAGE.rglob("__init__.py")):
        module = ".".join(file.parent.relative_to(PACKAGE.parent).parts)
        for name in re.findall(r"^([A-Z_]+) = Registry\(", file.read_text(), re.MULTILINE):
            yield getattr(importlib.import_module(module), name)


def forget_modules(names: set[str]) -> None:
    """Take the parts of modules out of the registries."""
    for registry in registries():
        imported, joined = registry._imported, registry._joined
        registry._imported = {k: p for k, p in imported.items() if p.__module__ not in names}
        registry._joined = {k: p for k, p in joined.items() if p.module not in names}
