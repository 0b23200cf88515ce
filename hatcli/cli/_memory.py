"""How much memory the job takes, for the line that shows its progress."""

import os
import sys
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))


def memory_texts() -> list[str]:
    """'1.2 GB' of this process and its workers, and 'GPU 10.3/79.2 GB' where a GPU is in use.

    The first is what stands in RAM: all of this process (RSS), and of each worker what it doesn't
    share. Where the system doesn't tell, it is left out.
    """
    texts = []
    used = resident_bytes()
    if used is not None:
        texts.append(size_text(used))
    gpu = _gpu_bytes()
    if gpu is not None:
        texts.append(f"GPU {gpu[0] / 1e9:.1f}/{gpu[1] / 1e9:.1f} GB")
    return texts


def resident_bytes(process: int | None = None, *, is_worker: bool = False) -> int | None:
    """Bytes in RAM of a process and of its descendants.

    Args:
        process: its number; None for this one.
        is_worker: whether what it shares with others is left out.

    Returns:
        None where the process is gone, or the system doesn't tell.
    """
    folder = _PROC / str(process or "self")
    try:
        _, resident, shared, *_ = (folder / "statm").read_text().split()
        pages = int(resident) - (int(shared) if is_worker else 0)
        children = {
            int(child)
            for path in folder.glob("task/*/children")
            for child in path.read_text().split()
        }
    except OSError:
        return None
    own = pages * os.sysconf("SC_PAGE_SIZE")
    return own + sum(resident_bytes(child, is_worker=True) or 0 for child in children)


def size_text(count: float) -> str:
    """'1.2 GB', '87 MB'."""
    scale, unit = next((one for one in _UNITS if count >= one[0]), _UNITS[-1])
    return f"{count / scale:.0f} {unit}" if unit == "MB" else f"{count / scale:.1f} {unit}"


def _gpu_bytes() -> tuple[int, int] | None:
    """Bytes that this process holds of its GPU, and that there are; None without one in use."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    _, total = torch.cuda.mem_get_info()
    return torch.cuda.memory_reserved(), total
