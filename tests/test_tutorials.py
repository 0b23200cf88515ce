"""The tutorials: Chinese twins equal the English ones, and the original's commands are run."""

import re

import pytest
from test_docs import BLOCK, ROOT, commands

TUTORIALS = ROOT / "docs" / "tutorials"
NAMES = ["unet-cityscapes", "vargconvnet-imagenet"]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# What replaces the scripts of the original; everything else in its commands is kept.
SCRIPTS = {
    "python3 tools/datasets/cityscapes_packer.py": "hat pack cityscapes",
    "python3 tools/datasets/imagenet_packer.py": "hat pack imagenet",
    "python3 tools/calops.py": "hat ops",
    "python3 tools/train.py": "hat train",
    "python3 tools/export_onnx.py": "hat export",
}
FOLDERS = {
    "unet-cityscapes": {"${data-dir}": "data/cityscapes"},
    "vargconvnet-imagenet": {
        "${src-data-dir}": "data/imagenet",
        "${target-data-dir}": "data/imagenet",
    },
}


def headings(text):
    return re.findall(r"^## .*", FENCED.sub("", text), re.MULTILINE)


def rows(text):
    """The cells of the table of the original's commands."""
    return re.findall(r"^\| `(python3 tools[^`]*)` \| `(hat [^`]*)` \|$", text, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_a_chinese_twin_has_the_commands_and_outputs_of_the_english_page(name):
    english = (TUTORIALS / f"{name}.md").read_text()
    chinese = (TUTORIALS / "zh" / f"{name}.md").read_text()
    for kind in ("console", "python"):
        first, second = (
            [block for language, block in BLOCK.findall(text) if language == kind]
            for text in (english, chinese)
        )
        assert first == second
    assert rows(english) == rows(chinese)
    assert len(commands(TUTORIALS / f"{name}.md")) > 20


@pytest.mark.parametrize("name", NAMES)
def test_a_chinese_twin_has_the_sections_of_the_english_page_in_chinese(name):
    english = headings((TUTORIALS / f"{name}.md").read_text())
    chinese = headings((TUTORIALS / "zh" / f"{name}.md").read_text())
    assert len(english) == len(chinese)
    numbers = [re.findall(r"^## (\d+)\. ", heading) for heading in english]
    assert [re.findall(r"^## (\d+)\. ", heading) for heading in chinese] == numbers
    assert all(re.search(r"[\u4e00-\u9fff]", heading) for heading in chinese)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_the_original_is_among_those_that_are_run(name):
    page = TUTORIALS / f"{name}.md"
    cells = rows(page.read_text())
    assert len(cells) == 6
    run = [line.removesuffix(" --overwrite") for line in commands(page)]
    for original, here in cells:
        assert any(line.startswith(here) for line in run)
        line = original
        for old, new in {**SCRIPTS, **FOLDERS[name]}.items():
            line = line.replace(old, new)
        assert line in run


@pytest.mark.parametrize("name", NAMES)
def test_outputs_show_no_machine_and_no_colour(name):
    for folder in (TUTORIALS, TUTORIALS / "zh"):
        text = (folder / f"{name}.md").read_text()
        assert not re.search(r"/tmp|/work|/home|/root|\x1b", text)
        assert text.count("$ hat") > 20


def test_pictures_are_small_and_have_words_in_their_place():
    pictures = list((TUTORIALS / "pictures").iterdir())
    assert 1 <= len(pictures) <= 4
    assert all(picture.suffix == ".png" for picture in pictures)
    assert all(picture.stat().st_size < 60_000 for picture in pictures)
    shown = set()
    for page in TUTORIALS.rglob("*.md"):
        for alternative, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text()):
            assert len(alternative) > 20, page
            shown.add((page.parent / target).resolve())
    assert shown == {picture.resolve() for picture in pictures}
