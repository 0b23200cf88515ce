"""What `make dist` makes is complete, and works where the repository isn't."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import hatcli

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USER = """\
from hatcli.config import load_config
from hatcli.errors import HatError
reveal_type((load_config("unet"), HatError("where: what")))
"""


def sources():
    """Every file of the repository, committed or not yet."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The repository's files with their bytes; the source archive; the wheel built from that."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository, to know which files are its own")
    folder = tmp_path_factory.mktemp("built")
    files = {name: (ROOT / name).read_bytes() for name in sources()}
    for name, content in files.items():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / name).write_bytes(content)
    (folder / "tree" / "tests" / "__pycache__").mkdir()
    (folder / "tree" / "tests" / "__pycache__" / "old.pyc").write_bytes(b"")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "tree"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return files, archive, wheel


def test_the_source_archive_holds_the_repository_and_nothing_else(built):
    files, archive, _ = built
    with tarfile.open(archive) as opened:
        held = {
            member.name.partition("/")[2]: opened.extractfile(member).read()
            for member in opened
            if member.isfile()
        }
    made = {name for name in held if name.startswith("hatcli.egg-info/")}
    assert set(held) - made == files.keys() | {"PKG-INFO", "setup.cfg"}
    assert [name for name in files if held[name] != files[name]] == []


def test_the_wheel_holds_the_package_and_its_licence_and_nothing_else(built):
    files, _, wheel = built
    with zipfile.ZipFile(wheel) as opened:
        held = {name: opened.read(name) for name in opened.namelist()}
    package = {name for name in files if name.startswith("hatcli/")}
    about = f"hatcli-{hatcli.__version__}.dist-info"
    texts = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"]
    assert set(held) == package | {f"{about}/{name}" for name in texts}
    assert {"hatcli/py.typed", "hatcli/configs/segmentation/unet.py"} < package
    assert [name for name in package if held[name] != files[name]] == []
    assert held[f"{about}/licenses/LICENSE"] == files["LICENSE"]


def test_the_metadata_say_what_the_project_says(built):
    files, _, wheel = built
    assert wheel.name == f"hatcli-{hatcli.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith("/METADATA"))
        head, _, description = opened.read(name).decode().partition("\n\n")
    meta = email.message_from_string(head)
    assert (meta["Name"], meta["Version"]) == ("hatcli", hatcli.__version__)
    assert (meta["License-Expression"], meta["License-File"]) == ("Apache-2.0", "LICENSE")
    assert meta["Requires-Python"] == PROJECT["requires-python"]
    assert description.strip() == files["README.md"].decode().strip()
    assert set(meta.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


def test_the_version_stands_in_one_place():
    assert PROJECT["dynamic"] == ["version"]
    said = re.compile(rf'"{re.escape(hatcli.__version__)}"')
    found = [name for name in (ROOT / "hatcli").rglob("*.py") if said.search(name.read_text())]
    assert found == [ROOT / "hatcli" / "__init__.py"]


def test_every_hint_names_an_extra_that_there_is():
    extras = PROJECT["optional-dependencies"]
    texts = [path for top in ("hatcli", "docs") for path in (ROOT / top).rglob("*.[mp][dy]")]
    texts = [path.read_text() for path in [*texts, ROOT / "README.md"]]
    hints = {hint for text in texts for hint in re.findall(r"pip install .hatcli\[(\w+)\]", text)}
    assert {"cityscapes", "det", "fast", "log", "video"} <= hints <= extras.keys()


def test_the_extra_all_is_all_but_the_one_whose_wheel_is_under_the_gpl():
    extras = PROJECT["optional-dependencies"]
    (named,) = extras["all"]
    held = set(named.removeprefix("hatcli[").removesuffix("]").split(","))
    assert held == extras.keys() - {"all", "dev", "docs", "video"}


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs a program of a new environment that holds the wheel, in a folder somewhere else.

    What hatcli needs comes from the present environment.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (packages,) = (folder / "env" / "lib").glob("*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "env" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
         "--no-index", "--disable-pip-version-check", built[2]],
        check=True,
    )  # fmt: skip
    return lambda *words: run_in(folder, *words)


def run_in(folder, program, *words):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    free = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [folder / "env" / "bin" / program, *words],
        cwd=elsewhere, env=free, capture_output=True, text=True, check=False,
    )  # fmt: skip


def output(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_wheel_is_what_runs(installed):
    assert output(installed("hat", "--version")) == f"hat {hatcli.__version__}\n"
    assert output(installed("python", "-m", "hatcli", "--version")).startswith("hat ")
    where = Path(output(installed("python", "-c", "import hatcli; print(hatcli.__file__)")).strip())
    assert not where.is_relative_to(ROOT)
    assert where.parent.parent.name == "site-packages"


def test_installed_it_helps_and_shows_its_configs(installed):
    text = output(installed("hat", "--help"))
    for name in ("pack", "train", "eval", "export", "doctor"):
        assert f" {name} " in text
    namespace = {}
    exec(output(installed("hat", "config", "show", "unet")), namespace)
    assert namespace["model"]["type"] == "unet"
    assert "vargconvnet" in output(installed("hat", "config", "list"))


def test_a_user_program_is_checked_against_the_types_of_hat(installed):
    shown = output(installed("python", "-c", "import sys; print(sys.executable)")).strip()
    program = Path(shown).parent.parent.parent / "elsewhere" / "program.py"
    program.write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", shown, program.name]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, check=False)
    assert "Success" in done.stdout, done.stdout
    assert 'Revealed type is "tuple[hatcli.config.Config, hatcli.errors.HatError' in done.stdout


@pytest.mark.slow  # every import of torch from a new place costs seconds
def test_installed_it_computes(installed):
    assert "ok     integers in onnxruntime: 0 of" in output(installed("hat", "doctor"))
    assert "0.999 M" in output(installed("hat", "ops", "unet", "--shape", "1,3,64,128"))
    assert "efficientnet_lite0" in output(installed("hat", "models"))


@pytest.mark.slow  # some minutes, and some GiB of packages
@pytest.mark.timeout(3000)
def test_in_an_empty_environment_it_brings_all_that_it_needs(built, tmp_path):
    """Newest versions, not those of constraints.txt: what a user gets."""
    try:
        subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
        output(run_in(tmp_path, "python", "-m", "pip", "install", "--quiet", built[2]))
        output(run_in(tmp_path, "python", "-m", "pip", "check"))
        assert "ok     integers in onnxruntime: 0 of" in output(run_in(tmp_path, "hat", "doctor"))
        assert "0.999 M" in output(run_in(tmp_path, "hat", "ops", "unet", "--shape", "1,3,64,128"))
    finally:
        shutil.rmtree(tmp_path / "env")
