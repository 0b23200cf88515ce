"""Which run folder a command line means; nothing here loads torch."""

from pathlib import Path

from hatcli.errors import UsageError
from hatcli.recipes.runs.folder import RUNS, find_checkpoint, newest_run


def find_run(text: str | None, root: Path = RUNS) -> Path:
    """The run folder that a word means.

    Args:
        text: a run folder; or the name of a config, which means its newest run; None for the
            newest run of all.
        root: folder that holds the run folders.

    Raises:
        UsageError: there is none.
    """
    if text is not None and _is_run(Path(text)):
        return Path(text)
    if text is not None and (Path(text).exists() or "/" in text):
        raise UsageError(f"{text}: is no run folder", f"they are in {root}/NAME/")
    run = newest_run(text, root=root)
    if run is None:
        of = f" of {text}" if text else ""
        raise UsageError(f"no run{of} in {root}/", f"train one: hat train {text or 'unet'}")
    return run


def run_of_checkpoint(
    text: str, name: str | None = None, root: Path = RUNS
) -> tuple[Path, Path, str | None]:
    """The checkpoint that --ckpt means, the run folder that it lies in, and a line that says so.

    Args:
        name: only runs of this config, where the checkpoint has to be looked for.

    Raises:
        UsageError: there is no such file, or it doesn't lie in a run folder.
    """
    file, found = find_checkpoint(text, name, root)
    if not file.is_file():
        raise UsageError(f"checkpoint not found: {file}", f"runs are in {root}/")
    if not _is_run(file.parent):
        raise UsageError(
            f"{file}: doesn't lie in a run folder, and the page is about a run",
            "give it its folder back, or score it alone: hat eval --ckpt FILE",
        )
    return file, file.parent, found


def _is_run(folder: Path) -> bool:
    return (folder / "config.py").is_file() and (folder / "train.log").is_file()
