"""hat data check: every sample of a dataset decoded, counted and compared with the rules."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset

from hatcli.data.facts import Facts, Rules, Totals, look_at
from hatcli.data.loader import SampleSource
from hatcli.errors import UsageError
from hatcli.events import Job, Note, Progress
from hatcli.recipes.data.findings import Checked, Finding, find_all
from hatcli.recipes.data.source import Source, open_sources

_FEW_SAMPLES = 64  # not worth starting workers for
_REPORT_EVERY = 16
_AT_ONCE = 8  # samples that a worker hands over together


@dataclass(frozen=True)
class CheckResult:
    """What was found.

    Attributes:
        sets: by the name of the split.
        findings: what is wrong first.
    """

    sets: dict[str, Checked]
    findings: list[Finding]

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.is_wrong for finding in self.findings)


def check_data(
    targets: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    split: str | None = None,
    num_workers: int | None = None,
) -> Job[CheckResult]:
    """Look through the datasets of a config, or through packs.

    Args:
        targets: one config, or folders of packs; images that two of them share are found.
        overrides: "key=value" changes of the config.
        split: one of them alone.
        num_workers: processes that read; None for one a core, where there is enough to read.

    Raises:
        HatError: a dataset can't be opened; what is wrong in it raises nothing.
    """
    if num_workers is not None and num_workers < 0:
        raise UsageError(f"--num-workers {num_workers}: give 0 or more")
    _, sources = open_sources(targets, overrides, split)
    return (yield from check_sources(sources, num_workers))


def check_sources(sources: Sequence[Source], num_workers: int | None = None) -> Job[CheckResult]:
    """Look through datasets, each of a split of its own; see `check_data`."""
    sets: dict[str, Checked] = {}
    for source in sources:
        yield Note(f"{source.where}: {len(source.dataset)} samples")
        totals = yield from _look_through(source, num_workers)
        sets[source.split] = Checked(source, totals)
    return CheckResult(sets, find_all(sets))


def _look_through(source: Source, num_workers: int | None) -> Job[Totals]:
    total, totals = len(source.dataset), Totals()
    for facts in _read(source, num_workers):
        totals.add(facts)
        if totals.samples % _REPORT_EVERY == 0 or totals.samples == total:
            yield Progress(f"checking {source.split}", totals.samples, total)
    return totals


def _read(source: Source, num_workers: int | None) -> Iterator[Facts]:
    """The facts of all samples, in order."""
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0)) if len(source.dataset) >= _FEW_SAMPLES else 0
    close = getattr(source.dataset, "close", None)
    if close is not None:  # a database that is open here can't be opened by forked workers
        close()
    looks = _Looks(source.dataset, source.rules)
    for facts in DataLoader(
        looks, batch_size=_AT_ONCE, num_workers=num_workers, collate_fn=list[Facts]
    ):
        yield from facts


class _Looks(Dataset[Facts]):
    """Looks at the sample that is asked for; spawned workers get it."""

    def __init__(self, dataset: SampleSource, rules: Rules) -> None:
        self._dataset, self._rules = dataset, rules

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Facts:
        return look_at(self._dataset, index, self._rules)
