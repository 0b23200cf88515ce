"""Says under which licences the packages come that hatcli and its extras need.

``python tests/licences.py`` fails with the name of each installed package whose licence is neither
permissive nor named below with a reason, and where docs/project/licences.md says something else;
with ``--write`` it brings that page up to date. The packages of a development environment (the
extras dev and docs) aren't distributed and are free to have any licence.
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "project" / "licences.md"
MARK = "<!-- From here on the page is made by tests/licences.py. -->\n"
NOT_DISTRIBUTED = {"all", "dev", "docs"}  # "all" only names other extras
UNKNOWN = "unknown"
NOTHING = "no files of its own"

ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause",
    "BSL-1.0", "CC0-1.0", "ISC", "LicenseRef-BSD", "MIT", "MIT-CMU", "OLDAP-2.8", "PSF-2.0",
    "Zlib", NOTHING,
}  # fmt: skip
"""Permissive licences, by their SPDX names; LicenseRef-BSD: how many clauses isn't stated."""

SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "BSD": "LicenseRef-BSD",
    "BSD 3-Clause License": "BSD-3-Clause",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "NVIDIA Proprietary Software": "LicenseRef-NVIDIA-Proprietary",
    "PSF": "PSF-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "LicenseRef-BSD",
    "Python Software Foundation License": "PSF-2.0",
}
"""What packages write into their metadata -> SPDX name."""

IN_FILE = {
    "cityscapesscripts": ("MIT", "MIT License"),
    "faster-coco-eval": ("Apache-2.0", "Apache License Version 2.0, January 2004"),
}
"""Package whose metadata doesn't say -> its licence, and how its licence file begins."""

EXCEPTIONS = {
    "nvidia-*": "LicenseRef-NVIDIA-Proprietary",
    "certifi": "MPL-2.0",
    "tqdm": "MPL-2.0 AND MIT",
}
"""Package -> the other licence that it may have; the page gives the reasons."""

COPYLEFT_LIBRARIES = {
    "libx264": "GPL-2.0-or-later",
    "libx265": "GPL-2.0-or-later",
    "libxvidcore": "GPL-2.0-or-later",
    "libpostproc": "GPL-2.0-or-later",
    "libvidstab": "GPL-2.0-or-later",
    "librubberband": "GPL-2.0-or-later",
    "libreadline": "GPL-3.0-or-later",
    "libfftw3": "GPL-2.0-or-later",
}
"""Compiled libraries that wheels are known to bring, whatever their metadata says."""

BUNDLES = {"av": {"libx264", "libx265"}}
"""Package -> the copyleft libraries that it may bring; the page gives the reasons."""


def needed(requirements: Iterable[str]) -> set[str]:
    """Names of the packages that must be there for the requirements, and of what these need.

    Raises:
        PackageNotFoundError: one isn't installed.
    """
    todo = [(one, "") for one in map(Requirement, requirements)]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement, asked_by = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": asked_by}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {had for one, had in seen if one == name}:
            seen.add((name, extra))
            todo += [(Requirement(text), extra) for text in distribution(name).requires or ()]
    return {name for name, _ in seen}


def licence(package: Distribution) -> str:
    """SPDX expression of a package's licence, from what it says of itself; or UNKNOWN."""
    meta = package.metadata
    name = canonicalize_name(meta["Name"])
    for said in (meta.get("License-Expression"), (meta.get("License") or "").partition("\n")[0]):
        found = _spdx((said or "").strip())
        if found:
            return found
    classifiers = [
        _spdx(one.rpartition(" :: ")[2])
        for one in meta.get_all("Classifier") or ()
        if one.startswith("License :: OSI Approved :: ")
    ]
    if classifiers and None not in classifiers:
        return " AND ".join(sorted(set(filter(None, classifiers))))
    if name in IN_FILE and _licence_file(package).startswith(IN_FILE[name][1]):
        return IN_FILE[name][0]
    if all(".dist-info" in path.parts[0] for path in package.files or ()):
        return NOTHING
    return UNKNOWN


def _spdx(said: str) -> str | None:
    try:
        return canonicalize_license_expression(SPELLINGS.get(said, said))
    except InvalidLicenseExpression:
        return None


def _licence_file(package: Distribution) -> str:
    """The text of the first one, on one line."""
    paths = [path for path in package.files or () if path.name.startswith(("LICENSE", "LICENCE"))]
    return " ".join(paths[0].read_text().split()) if paths else ""


def is_allowed(expression: str) -> bool:
    """Whether one choice of an SPDX expression without brackets is permissive throughout."""
    choices = expression.split(" OR ")
    return any(all(one in ALLOWED for one in choice.split(" AND ")) for choice in choices)


def faults(package: Distribution) -> Iterator[str]:
    """What of a package neither is permissive nor is a named exception."""
    name, said = canonicalize_name(package.metadata["Name"]), licence(package)
    expected = (one for pattern, one in EXCEPTIONS.items() if fnmatch(name, pattern))
    if not is_allowed(said) and said not in expected:
        yield f"{name}: licence {said}"
    for library in sorted(copyleft_libraries(package) - BUNDLES.get(name, set())):
        yield f"{name}: brings {library}, {COPYLEFT_LIBRARIES[library]}"


def copyleft_libraries(package: Distribution) -> set[str]:
    """Which of the known ones it brings along."""
    names = {re.split(r"[-.]", path.name)[0] for path in package.files or ()}
    return names & COPYLEFT_LIBRARIES.keys()


def tables(groups: dict[str, set[str]]) -> str:
    """The part of the page that is made.

    Args:
        groups: what asks for packages ("" for hatcli itself, else an extra) -> their names.
    """
    by_licence: dict[str, list[str]] = {}
    for name in sorted(set().union(*groups.values())):
        by_licence.setdefault(licence(distribution(name)), []).append(name)
    lines = ["", "## Every package", "", "| licence | packages |", "|---|---|"]
    lines += [f"| {one} | {', '.join(names)} |" for one, names in sorted(by_licence.items())]
    lines += ["", "## What an extra adds", "", "| extra | packages |", "|---|---|"]
    for extra in sorted(groups.keys() - {""}):
        lines.append(f"| `{extra}` | {', '.join(sorted(groups[extra] - groups['']))} |")
    return "\n".join([*lines, ""])


def groups_of_hatcli() -> dict[str, set[str]]:
    """The packages of hatcli and of each extra, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = project["dependencies"]
    extras = project["optional-dependencies"]
    asked = {extra: [*base, *extras[extra]] for extra in extras.keys() - NOT_DISTRIBUTED}
    return {"": needed(base), **{extra: needed(asked[extra]) for extra in sorted(asked)}}


def main() -> None:
    try:
        groups = groups_of_hatcli()
    except PackageNotFoundError as missing:
        sys.exit(f"licences: {missing.name} isn't installed; all extras are needed to see all")
    packages = [distribution(name) for name in sorted(set().union(*groups.values()))]
    found = [fault for package in packages for fault in faults(package)]
    if found:
        sys.exit("licences: neither permissive nor a named exception:\n  " + "\n  ".join(found))
    words, mark, table = PAGE.read_text().partition(MARK)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(words + MARK + tables(groups))
    elif not mark or table != tables(groups):
        sys.exit(f"licences: {PAGE.name} is out of date; python tests/licences.py --write")
    sys.stdout.write(f"licences: {len(packages)} packages looked at\n")


if __name__ == "__main__":
    main()
