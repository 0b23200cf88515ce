"""What every container of a pack can do, whatever its files are.

A container maps keys to records and knows nothing of what is in them. Everything above this file
is the same for all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TypeVar

T = TypeVar("T")

Order = Literal["random", "sequential"]


class Writer(Protocol):
    """Puts records into the files of an unfinished pack; a batch is stored whole or not at all."""

    def get(self, key: bytes) -> bytes | None:
        """The record under a key.

        Raises:
            PackError: the files are damaged.
        """
        ...

    def count(self) -> int:
        """Number of records, those with names included."""
        ...

    def commit(
        self, records: Sequence[tuple[bytes, bytes]], named: Mapping[bytes, bytes | None]
    ) -> None:
        """Store a batch durably; when this fails, the same batch may be given again.

        Args:
            records: (key, record) in key order without gaps, behind those stored before.
            named: records that sort behind all samples, stored anew; None removes one.

        Raises:
            PackError: a key stands already, or the order is wrong.
            HatError: the disk is full or fails; what was committed before stays.
        """
        ...

    def seal_file(self) -> None:
        """Make the finished files durable, leave nothing but them, and close."""
        ...

    def close(self) -> None:
        """Let go of the files; commits are on the disk already."""
        ...


class Reader(Protocol):
    """Gets records out of a published pack; threads may share it.

    Attributes:
        pid: the process that opened it, which alone may use it.
    """

    pid: int

    def read(self, key: bytes, use: Callable[[memoryview], T]) -> T | None:
        """What ``use`` makes of the record under a key; None when there is none.

        Args:
            key: of the record.
            use: gets a view that is valid only during the call.

        Raises:
            PackError: the container is damaged there.
        """
        ...

    def count(self) -> int:
        """Number of records, those with names included."""
        ...

    def close(self) -> None:
        """Let go of the files, for all that share them; dropping a reader lets go of its own."""
        ...
