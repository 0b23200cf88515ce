"""One raw dataset a file; the file's name is what ``hat pack`` calls it. No torch here.

A packer's file defines a function of its own name, registered in `PACKERS`. It looks through the
source (cheap: names, sizes, pairs) and returns a `Packer`; its keyword arguments are options of
``hat pack NAME``. Files whose name starts with an underscore are shared by the packers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from hatcli.registry import Registry

PACKERS = Registry("dataset", __name__, given=("source_dir", "split"))


class Made(NamedTuple):
    """One sample made from its source.

    Attributes:
        sample: field name -> value that `packs.codec` can store.
        totals: what this sample adds to the sums over the split, by any name.
    """

    sample: dict[str, Any]
    totals: Counter[str]


class Packer(Protocol):
    """One split of a raw dataset, looked through and ready to be packed; it can be pickled.

    Attributes:
        dataset: what ``hat pack`` calls it.
        options: plain values; two packs of one source with equal options are equal.
        fields: name -> {"type", "required"}, for arrays "dtype" and "codec" ("raw", "zstd",
            "strips").
        source: plain values for the metadata; without paths and times.
        stamps: one a sample, in pack order; differs when a sample's source files differ.
        official_length: samples that the published split has.
        estimated_bytes: about what the pack will take.
        remarks: what may be wrong with the source, found without reading it.
        unofficial: those of the remarks, besides the number of samples, that tell the source from
            the published one.
    """

    dataset: str
    split: str
    options: Mapping[str, Any]
    fields: Mapping[str, Mapping[str, Any]]
    source: Mapping[str, Any]
    stamps: Sequence[str]
    official_length: int | None
    estimated_bytes: int
    remarks: Sequence[str]
    unofficial: Sequence[str]

    def make(self, index: int) -> Made:
        """Read, check and convert one sample.

        Raises:
            DataError: an image or a label is damaged or not legal.
        """
        ...

    def name(self, index: int) -> str:
        """What messages call a sample."""
        ...

    def describe(self, totals: Mapping[str, int]) -> dict[str, Any]:
        """The metadata of the split.

        Args:
            totals: the sums over all samples.
        """
        ...

    def find_remarks(self, meta: Mapping[str, Any]) -> list[str]:
        """What may be wrong with the content.

        Args:
            meta: what `describe` said.
        """
        ...
