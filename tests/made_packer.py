"""A packer without a source, for what doesn't depend on the dataset; workers can import it."""

import os
import signal
from collections import Counter

import numpy as np

from hatcli.data.packers import Made
from hatcli.data.packers._part import Part, Shard
from hatcli.data.packers._work import Refused, make_records
from hatcli.data.packs.place import hold_lock, make_room
from hatcli.data.packs.publish import Draft, Identity
from hatcli.data.packs.reader import open_pack
from hatcli.errors import DataError


class NumbersPacker:
    """Sample i holds i in a few thousand bytes.

    Args:
        count: number of samples.
        size: values in each sample.
        deadly: making this sample kills the process; None for none.
        damaged: making these samples is refused.
    """

    dataset = "numbers"
    split = "train"
    official_length = None
    remarks = ()
    unofficial = ()

    def __init__(self, count=20, size=500, deadly=None, damaged=()):
        self.options = {"size": size}
        self.source = {"kind": "made up"}
        self.fields = {
            "name": {"type": "str", "required": True},
            "values": {"type": "ndarray", "dtype": "<i4", "codec": "raw", "required": True},
        }
        self.stamps = [f"sample {index}" for index in range(count)]
        self.estimated_bytes = count * size * 4
        self._size, self._deadly, self._damaged = size, deadly, damaged

    def make(self, index):
        if index == self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if index in self._damaged:
            raise DataError(f"number {index} is damaged")
        values = np.full(self._size, index, dtype=np.int32)
        return Made({"name": self.name(index), "values": values}, Counter({"sum": index}))

    def name(self, index):
        return f"number {index}"

    def describe(self, totals):
        return {
            "dataset": self.dataset,
            "split": self.split,
            "task": "counting",
            "fields": self.fields,
            "source": self.source,
            "options": self.options,
            "sum": totals["sum"],
            "join": {"sum": "add"},
        }

    def find_remarks(self, meta):
        return []


def build(
    target,
    packer=None,
    *,
    workers=0,
    restart=False,
    overwrite=False,
    pack_type="lmdb",
    shard=None,
    leave_out=False,
):
    """Pack into a target, as the recipe does; return the metadata.

    Args:
        shard: (index, count) of the part that is packed; None for all.
        leave_out: pass over damaged samples.
    """
    packer = packer or NumbersPacker()
    if shard:
        packer = Part(packer, Shard(*shard))
    first = packer.first if shard else 0
    identity = Identity(
        packer.dataset, packer.split, packer.options, packer.source, packer.stamps, first
    )
    size_bytes = packer.estimated_bytes
    with hold_lock(target):
        make_room(target, overwrite=overwrite)
        draft = Draft(target, identity, restart=restart, size_bytes=size_bytes, pack_type=pack_type)
        try:
            if not draft.is_complete:
                _fill(draft, packer, workers, leave_out)
            return draft.publish()
        finally:
            draft.close()


def _fill(draft, packer, workers, leave_out):
    first_key = int(draft.next_key)
    for record in make_records(
        packer, draft.next, workers, first_key=first_key, leave_out=leave_out
    ):
        if isinstance(record, Refused):
            draft.leave_out({"name": record.name, "error": record.error})
        else:
            draft.add(record.data, record.totals)
    draft.commit()
    for _ in draft.finish(packer.describe(draft.totals)):
        pass


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def numbers_in(path):
    with open_pack(path) as pack:
        return [int(sample["values"][0]) for sample in pack]
