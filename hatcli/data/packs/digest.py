"""What the metadata says of all records together; taken while each of them is checked."""

import hashlib

from hatcli.data.packs.frame import unseal


class ContentDigest:
    """Sums over the records of a pack, in key order.

    Attributes:
        payload_bytes: all records together, frames included.
        max_record_bytes: the largest record, frame included.
    """

    def __init__(self) -> None:
        self.payload_bytes = self.max_record_bytes = 0
        self._sha256 = hashlib.sha256()

    def add(self, key: bytes, record: bytes | memoryview, *, check: bool = True) -> None:
        """Take the next record.

        Args:
            key: of the record.
            record: frame and payload.
            check: whether frame and checksum are looked at.

        Raises:
            DataError: its frame or its checksum is wrong.
        """
        if check:
            unseal(key, record)
        self._sha256.update(key)
        self._sha256.update(record)
        self.payload_bytes += len(record)
        self.max_record_bytes = max(self.max_record_bytes, len(record))

    def hexdigest(self) -> str:
        """SHA-256 over key and record of all so far."""
        return self._sha256.hexdigest()
