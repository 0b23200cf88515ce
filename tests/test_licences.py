import re
import sys
from importlib.metadata import PathDistribution

import licences
import pytest
from licences import copyleft_libraries, faults, is_allowed, licence, needed
from packaging.utils import canonicalize_name

PLAIN = ["made/__init__.py"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes an installed package of given metadata and files."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(*metadata, name="made", files=PLAIN, text=""):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "LICENSE").write_text(text)
        (folder / "METADATA").write_text("\n".join([f"Name: {name}", "Version: 1.0", *metadata]))
        names = [f"{folder.name}/METADATA", f"{folder.name}/LICENSE", *files]
        (folder / "RECORD").write_text("".join(f"{one},,\n" for one in names))
        return PathDistribution(folder)

    return make


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        (["License-Expression: Apache-2.0"], "Apache-2.0"),
        (["License: BSD 3-Clause License", "        Copyright"], "BSD-3-Clause"),
        (["License: our own", "Classifier: License :: OSI Approved :: MIT License"], "MIT"),
        (["License-Expression: mit or gpl-2.0-only"], "MIT OR GPL-2.0-only"),
    ],
)
def test_a_permissive_licence_is_found_where_the_package_says_it(made, metadata, found):
    package = made(*metadata)
    assert licence(package) == found
    assert list(faults(package)) == []


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        (["License-Expression: GPL-3.0-or-later"], "made: licence GPL-3.0-or-later"),
        (["License-Expression: MIT AND AGPL-3.0-only"], "made: licence MIT AND AGPL-3.0-only"),
        (["License-Expression: MPL-2.0"], "made: licence MPL-2.0"),
        (["License: LicenseRef-NVIDIA-Proprietary"], "made: licence LicenseRef-NVIDIA-Proprietary"),
        (["License: ask us"], "made: licence unknown"),
        (
            [
                "Classifier: License :: OSI Approved :: MIT License",
                "Classifier: License :: OSI Approved :: GNU General Public License (GPL)",
            ],
            "made: licence unknown",
        ),
        ([], "made: licence unknown"),
    ],
)
def test_any_other_licence_is_a_fault_that_names_the_package(made, metadata, fault):
    assert list(faults(made(*metadata))) == [fault]


def test_an_exception_holds_for_its_package_and_its_licence_alone(made):
    assert list(faults(made("License: MPL-2.0", name="certifi"))) == []
    (fault,) = faults(made("License: GPL-2.0-only", name="tqdm"))
    assert fault == "tqdm: licence GPL-2.0-only"


def test_a_licence_read_by_hand_is_compared_with_the_file(made):
    assert licence(made(name="cityscapesscripts", text="MIT License\n")) == "MIT"
    changed = made(name="faster-coco-eval", text="GNU Affero General Public License")
    assert licence(changed) == "unknown"


def test_a_package_that_holds_nothing_needs_no_licence(made):
    assert is_allowed(licence(made(files=[])))


def test_a_wheel_that_brings_a_copyleft_library_is_a_fault_whatever_it_says(made):
    files = [*PLAIN, "made.libs/libx264-d6533a8d.so.165", "made.libs/libpng16.so.16"]
    package = made("License-Expression: MIT", files=files)
    assert copyleft_libraries(package) == {"libx264"}
    assert list(faults(package)) == ["made: brings libx264, GPL-2.0-or-later"]
    assert list(faults(made("License-Expression: MIT", name="av", files=files))) == []


def test_the_requirements_of_requirements_count_and_only_asked_extras_do(made):
    made("Requires-Dist: made-two[more]; python_version > '3'", "Requires-Dist: absent; extra=='x'")
    made("Requires-Dist: made-three; extra == 'more'", "Requires-Dist: made", name="made_two")
    made("Requires-Dist: absent; sys_platform == 'plan9'", name="made_three")
    assert needed(["made"]) == {"made", "made-two", "made-three"}
    assert needed(["made_two"]) == {"made", "made-two", "made-three"}
    assert needed(["made_three>=1"]) == {"made-three"}


@pytest.fixture
def page(tmp_path, monkeypatch):
    path = tmp_path / "licences.md"
    path.write_text("# Words\n")
    monkeypatch.setattr(licences, "PAGE", path)
    monkeypatch.setattr(licences, "groups_of_hatcli", lambda: {"": {"made"}, "more": {"made"}})
    return path


def test_the_check_passes_once_the_page_is_written_and_fails_when_it_is_old(
    made, page, monkeypatch, capsys
):
    made("License-Expression: MIT")
    monkeypatch.setattr(sys, "argv", ["licences.py"])
    with pytest.raises(SystemExit, match=r"licences.md is out of date"):
        licences.main()
    monkeypatch.setattr(sys, "argv", ["licences.py", "--write"])
    licences.main()
    assert page.read_text().startswith("# Words\n")
    assert "| MIT | made |" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["licences.py"])
    licences.main()
    page.write_text(page.read_text().replace("| MIT |", "| ISC |"))
    with pytest.raises(SystemExit, match=r"licences.md is out of date"):
        licences.main()
    assert capsys.readouterr().out == "licences: 1 packages looked at\n" * 2


def test_the_check_ends_with_the_names_of_all_at_fault(made, page, monkeypatch):
    made("License-Expression: AGPL-3.0-only", files=["made/librubberband.so.2"])
    monkeypatch.setattr(sys, "argv", ["licences.py", "--write"])
    with pytest.raises(SystemExit) as caught:
        licences.main()
    assert str(caught.value).splitlines()[1:] == [
        "  made: licence AGPL-3.0-only",
        "  made: brings librubberband, GPL-2.0-or-later",
    ]
    assert page.read_text() == "# Words\n"


def test_continuous_integration_installs_pinned_versions_of_what_users_get():
    """Else a new release, with a new licence or a new need, would fail a commit at random."""
    table = licences.PAGE.read_text().partition("## What an extra adds")[0]
    rows = re.findall(r"^\| .* \| (.*) \|$", table.partition("## Every package")[2], re.MULTILINE)
    named = {name for row in rows[1:] for name in row.split(", ")}
    lines = (licences.ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    by_torch = {name for name in named if name.startswith(("nvidia-", "cuda-toolkit"))}
    assert {"torch", "grpcio", "certifi"} < named
    assert named - by_torch - pinned == set()
