"""A packer without a source, for what doesn't depend on the dataset; workers can import it."""

import os
import signal
from collections import Counter

import numpy as np

from hatcli.data.packers import Made
from hatcli.data.packers._work import StopRequest, make_records
from hatcli.data.packs.publish import Draft, Identity, hold_lock, make_room
from hatcli.data.packs.reader import open_pack


class NumbersPacker:
    """Sample i holds i in a few thousand bytes.

    Args:
        count: number of samples.
        size: values in each sample.
        deadly: making this sample kills the process; None for none.
    """

    dataset = "numbers"
    split = "train"
    official_length = None
    remarks = ()
    unofficial = ()

    def __init__(self, count=20, size=500, deadly=None):
        self.options = {"size": size}
        self.source = {"kind": "made up"}
        self.fields = {
            "name": {"type": "str", "required": True},
            "values": {"type": "ndarray", "dtype": "<i4", "codec": "raw", "required": True},
        }
        self.stamps = [f"sample {index}" for index in range(count)]
        self.estimated_bytes = count * size * 4
        self._size, self._deadly = size, deadly

    def make(self, index):
        if index == self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)
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
        }

    def find_remarks(self, meta):
        return []


def build(target, packer=None, *, workers=0, restart=False, overwrite=False):
    """Pack into a target, as the recipe does; return the metadata."""
    packer = packer or NumbersPacker()
    identity = Identity(packer.dataset, packer.split, packer.options, packer.source, packer.stamps)
    with hold_lock(target):
        make_room(target, overwrite=overwrite)
        draft = Draft(target, identity, restart=restart, size_bytes=packer.estimated_bytes)
        try:
            if not draft.is_complete:
                for record in make_records(packer, draft.next, workers, StopRequest()):
                    draft.add(record.data, record.totals)
                draft.commit()
                for _ in draft.finish(packer.describe(draft.totals)):
                    pass
            return draft.publish()
        finally:
            draft.close()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def numbers_in(path):
    with open_pack(path) as pack:
        return [int(sample["values"][0]) for sample in pack]
