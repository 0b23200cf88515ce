"""The site holds every document, command and part, asks nobody for anything, has no dead link."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer
from registries import registries

from hatcli.cli import build_app
from hatcli.config import shipped_configs

ROOT = Path(__file__).parent.parent


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]

    @property
    def ids(self):
        return {attributes["id"] for _, attributes in self.elements if attributes.get("id")}


def build(source: Path, target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A build in which warnings are errors, as in the Makefile."""
    words = ["-q", "-W", "--keep-going", "-n", *options]
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *words, source, target],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, Page]:
    """All pages by their path in the site; it is built of a copy, for files are made on the way."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("gallery"))
    for name in ("CHANGELOG.md", "hatcli", "tests", "benchmarks"):  # documents link to files there
        (folder / name).symlink_to(ROOT / name)
    built = build(folder / "docs", folder / "html", "-D", "plot_gallery=0")  # runs no example
    assert built.returncode == 0, built.stderr
    pages = sorted((folder / "html").rglob("*.html"))
    return {str(path.relative_to(folder / "html")): Page(path) for path in pages}


def test_every_document_is_a_page(site):
    documents = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(documents) > 25
    for document in documents:
        assert str(document.with_suffix(".html")) in site


def test_every_command_is_told_with_its_options(site):
    page = site["reference/cli.html"]
    paths = 0
    for path, command in commands(typer.main.get_command(build_app()), ("hat",)):
        paths += 1
        assert "-".join(path) in page.ids
        for option in command.params:
            for name in [*option.opts, *option.secondary_opts]:
                assert option.hidden or not name.startswith("-") or name in page.text, name
    assert paths > 25


def commands(
    command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], typer.core.TyperCommand]]:
    """Each command that can be typed, those of the packers too."""
    yield path, command
    context = command.context_class(command, info_name=path[-1])
    for name in command.list_commands(context) if hasattr(command, "list_commands") else []:
        yield from commands(command.get_command(context, name), (*path, name))


def test_every_part_of_every_registry_is_told_with_its_arguments(site):
    page = site["reference/parts.html"]
    found = list(registries())
    assert len(found) >= 12
    for registry in found:
        for name in registry.names():
            part = registry.part(name)
            if not part.module.startswith("hatcli."):
                continue  # another test's own
            assert any(f"-{name.lower().replace('_', '-')}" in one for one in page.ids), name
            assert part.summary.split("`")[0] in page.text
            for parameter in part.parameters:
                told = parameter.name in page.text or parameter.name in registry.given
                assert told, (name, parameter.name)


def test_every_shipped_config_is_told_with_its_source(site):
    page = site["reference/shipped-configs.html"]
    for name, path in shipped_configs().items():
        assert name in page.ids
        assert path.read_text().splitlines()[0].removeprefix('"""') in page.text


def test_no_page_asks_another_site_for_anything(site):
    for name, page in site.items():
        asked = [a.get("src") for a in page.of("script", "img", "iframe", "source", "video")]
        asked += [a.get("href") for a in page.of("link")]
        for address in asked:
            assert not re.match(r"(https?:)?//", address or ""), f"{name}: {address}"
    styles = list(site["index.html"].path.parent.rglob("*.css"))
    assert styles
    for style in styles:
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text()), style


def test_links_within_the_site_lead_somewhere(site):
    root = site["index.html"].path.parent
    for name, page in site.items():
        for link in page.of("a"):
            target, _, anchor = unquote(link.get("href") or "").partition("#")
            if re.match(r"\w+:", target):
                continue
            file = (page.path.parent / target).resolve() if target else page.path
            assert file.exists(), f"{name}: {target}"
            if anchor and file.suffix == ".html":
                assert anchor in site[str(file.relative_to(root))].ids, f"{name}: {target}#{anchor}"


def test_every_page_has_one_heading_and_its_pictures_a_text(site):
    for name, page in site.items():
        assert len(page.of("h1")) == 1, name
        assert all((image.get("alt") or "").strip() for image in page.of("img")), name


def test_links_are_named_by_what_they_lead_to(site):
    for name, page in site.items():
        texts = re.findall(r"<a [^>]*>(?:<[^>]+>)*([^<]+)", page.path.read_text(encoding="utf-8"))
        assert not [text for text in texts if re.fullmatch(r"[\w/-]+\.(md|rst)", text)], name


def test_chinese_is_found_by_any_two_signs(site):
    root = site["search.html"].path.parent
    index = (root / "searchindex.js").read_text(encoding="utf-8")
    terms = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))["terms"]
    assert {"量化", "化感", "感知", "知训", "训练"} <= set(terms)  # of one longer word
    assert not [term for term in terms if re.search(r"[\u4e00-\u9fff]{3}", term)]
    assert "splitQuery" in (root / "_static" / "language_data.js").read_text(encoding="utf-8")


def test_chinese_pages_say_that_they_are(site):
    for name, page in site.items():
        language = "zh-CN" if "/zh/" in name else "en"
        assert page.of("html")[0]["lang"] == language, name


def test_a_broken_link_fails_the_build(tmp_path):
    source = tmp_path / "docs"
    (source / "_static").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "conf.py", source)
    (source / "other.md").write_text("# Two\n\n## A heading\n")
    index = "# One\n\n[x](other.md#a-heading)\n\n{}\n\n```{{toctree}}\nother\n```\n"
    options = ("-b", "dummy", "-D", "extensions=myst_parser")
    (source / "index.md").write_text(index.format(""))
    assert build(source, tmp_path / "html", *options).returncode == 0
    broken = ["other.md#no-heading", "#nowhere", "missing.md"]
    (source / "index.md").write_text(index.format("\n\n".join(f"[x]({link})" for link in broken)))
    failed = build(source, tmp_path / "html", *options)
    assert failed.returncode == 1
    assert failed.stderr.count("xref_missing") == len(broken), failed.stderr
