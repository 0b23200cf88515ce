"""A packed dataset and its raw twin: what those of all datasets have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from hatcli.data.packers import Made
from hatcli.data.packs.reader import Pack
from hatcli.errors import UsageError

T = TypeVar("T")

AsSample = Callable[[Mapping[str, Any]], dict[str, Any]]
"""From a record, as the packer makes it, to a sample; loader processes get it pickled."""


class Source(Protocol):
    """What a raw dataset needs of its packer; see `packers.Packer`."""

    @property
    def split(self) -> str: ...

    @property
    def stamps(self) -> Sequence[str]: ...

    def make(self, index: int) -> Made: ...


class PackedDataset:
    """The samples of a pack, in its order.

    Args:
        task: what the pack must be made for, where it says so; "" for any.

    Raises:
        UsageError: it is made for another one.

    Attributes:
        classes: a name for each index.
        digest: changes with the content of the pack.
    """

    def __init__(self, pack: Pack, as_sample: AsSample, task: str = "") -> None:
        if task and pack.meta.get("task", task) != task:
            found = f"{pack.meta.get('dataset')} for {pack.meta['task']}"
            raise UsageError(
                f"{pack.path}: a pack of {found}, {type(self).__name__} reads {task}",
                "data_rootdir=DIR says where the data of a config is",
            )
        self._pack = pack
        self._as_sample = as_sample
        self.classes: tuple[str, ...] = tuple(pack.meta["classes"])
        self.split: str = pack.meta["split"]
        self.digest: str = pack.meta["content_sha256"]

    def __len__(self) -> int:
        return len(self._pack)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._as_sample(self._pack[index])

    def read(self, index: int, use: Callable[[dict[str, Any]], T]) -> T:
        """What ``use`` makes of a sample whose image is a `StoredImage`, valid meanwhile."""
        return self._pack.read(index, lambda record: use(self._as_sample(record)), views=True)

    def close(self) -> None:
        """Let go of the files; the next read opens them again, in whatever process that is."""
        self._pack.close()


class RawDataset:
    """The samples that a packer makes of its source, one at a time.

    Attributes:
        classes: a name for each index.
    """

    def __init__(self, source: Source, classes: tuple[str, ...], as_sample: AsSample) -> None:
        self._source = source
        self._as_sample = as_sample
        self.classes = classes
        self.split = source.split

    def __len__(self) -> int:
        return len(self._source.stamps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._as_sample(self._source.make(index).sample)
