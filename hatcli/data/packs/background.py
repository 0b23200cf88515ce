"""Stores batches of records while the next ones are made."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from hatcli.data.packs.digest import ContentDigest

if TYPE_CHECKING:
    from hatcli.data.packs.protocol import Writer


class BackgroundWriter:
    """A container's writer that lets its caller go on; at most one batch is on its way.

    A batch that can't be stored is an error of the next call, and of all calls after that: what
    comes behind it must not be stored either.

    Args:
        writer: used by nobody else.

    Attributes:
        digest: over all records given so far; complete after `drain`.
    """

    def __init__(self, writer: "Writer") -> None:
        self.digest = ContentDigest()
        self._writer = writer
        self._threads = ThreadPoolExecutor(2, "hat-pack")  # one stores, one sums up
        self._running: list[Future[None]] = []

    def commit(
        self, records: Sequence[tuple[bytes, bytes]], named: Mapping[bytes, bytes | None]
    ) -> None:
        """Begin to store a batch, which mustn't be changed any more; see `Writer.commit`."""
        self.drain()
        self._running = [
            self._threads.submit(self._writer.commit, records, named),
            self._threads.submit(self._sum_up, records),
        ]

    def drain(self) -> None:
        """Wait until everything is stored durably.

        Raises:
            HatError: it can't be.
        """
        wait(self._running)
        for one in self._running:
            one.result()  # stays, so that a failure is told again

    def get(self, key: bytes) -> bytes | None:
        """The record under a key."""
        self.drain()
        return self._writer.get(key)

    def count(self) -> int:
        """Number of records, those with names included."""
        self.drain()
        return self._writer.count()

    def seal_file(self) -> None:
        """Make the finished files durable, leave nothing but them, and close."""
        self.drain()
        self._writer.seal_file()

    def close(self) -> None:
        """Let go of the files, after the batch that is on its way."""
        self._threads.shutdown()
        self._writer.close()

    def _sum_up(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        for key, record in records:
            self.digest.add(key, record, check=False)  # framed in this run
