"""Batches are stored behind the back of their maker, in order, and a failure stops all of them."""

import hashlib
import threading

import pytest

from hatcli.data.packs.background import BackgroundWriter
from hatcli.data.packs.meta import sample_key
from hatcli.errors import HatError


class MemoryWriter:
    """Stores in a dict; a batch that holds b"bad" can't be stored."""

    def __init__(self):
        self.stored = {}
        self.calls = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def commit(self, records, named):
        assert self.may_go_on.wait(5)
        if any(record == b"bad" for _, record in records):
            raise HatError("disk full")
        self.stored.update(records)
        self.stored.update(named)

    def get(self, key):
        return self.stored.get(key)

    def count(self):
        return len(self.stored)

    def seal_file(self):
        self.calls.append("seal")

    def close(self):
        self.calls.append("close")


def batch(*numbers, record=b"good"):
    return [(sample_key(number), record) for number in numbers]


def test_the_maker_goes_on_while_a_batch_is_stored():
    below = MemoryWriter()
    writer = BackgroundWriter(below)
    below.may_go_on.clear()
    writer.commit(batch(0, 1), {})
    assert below.stored == {}
    below.may_go_on.set()
    writer.drain()
    assert len(below.stored) == 2
    writer.close()


def test_everything_asked_waits_for_what_is_on_its_way():
    below = MemoryWriter()
    writer = BackgroundWriter(below)
    for number in range(5):
        writer.commit(batch(number), {b"__state__": b"%d" % number})
    assert writer.count() == 6
    assert writer.get(b"__state__") == b"4"
    writer.seal_file()
    writer.close()
    assert below.calls == ["seal", "close"]


def test_the_digest_is_over_keys_and_records_in_order():
    writer = BackgroundWriter(MemoryWriter())
    writer.commit(batch(0, 1), {})
    writer.commit(batch(2), {})
    writer.drain()
    expected = hashlib.sha256(b"".join(key + b"good" for key, _ in batch(0, 1, 2)))
    assert writer.digest.hexdigest() == expected.hexdigest()
    assert (writer.digest.payload_bytes, writer.digest.max_record_bytes) == (12, 4)
    writer.close()


def test_nothing_is_stored_behind_a_batch_that_failed():
    below = MemoryWriter()
    writer = BackgroundWriter(below)
    writer.commit(batch(0), {})
    writer.commit(batch(1, record=b"bad"), {})
    for call in (lambda: writer.commit(batch(2), {}), writer.drain, writer.seal_file):
        with pytest.raises(HatError, match="disk full"):
            call()
    writer.close()
    assert sorted(below.stored) == [sample_key(0)]
    assert below.calls == ["close"]
