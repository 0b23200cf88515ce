"""What tests of several files begin with."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> str:
    """A folder of its own to stand in, with a small config over the file's packed ``data``."""
    from tiny import write_tiny_config

    monkeypatch.chdir(tmp_path)
    return str(write_tiny_config(tmp_path, data))


@pytest.fixture
def own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules and parts in the test's folder go with it: the next one has others so named."""
    from registries import forget_modules

    monkeypatch.setattr("sys.path", list(sys.path))
    yield
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    own = {name for name, file in files.items() if file and Path(file).is_relative_to(tmp_path)}
    for name in own:
        del sys.modules[name]
    forget_modules(own | {"<run_path>"})


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Other processes compute with one here; the sums of two differ in their last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
