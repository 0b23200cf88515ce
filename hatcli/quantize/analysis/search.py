"""Find few layers that, in higher precision, keep the loss of the metric within a budget."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hatcli.events import Job, Note

Score = Callable[[frozenset[str]], Job[float]]
"""What the metric loses to float, in points, with these layers raised; NaN counts as all."""


@dataclass(frozen=True)
class Trial:
    """One set of layers, and what the metric lost with it.

    Attributes:
        layers: in the order of damage.
        drop: in points; negative where the metric is better than in float.
    """

    layers: tuple[str, ...]
    drop: float


@dataclass
class Search:
    """A search that can go on with a smaller budget: no set is scored twice.

    Attributes:
        order: all layers that may be raised, the most harmful first.
        trials: all so far, in their order.
    """

    order: tuple[str, ...]
    score: Score
    trials: list[Trial] = field(default_factory=list)

    def find(self, max_drop: float, *, max_trials: int = 100) -> Job[Trial]:
        """The smallest set that was found within a budget; else the one that loses least.

        The shortest beginning of the order that meets the budget is looked for in growing, then
        halving steps, which takes it that more layers never lose more. From it single layers are
        taken out again, the least harmful first.

        Args:
            max_drop: largest loss to float, in points.
            max_trials: sets that may be scored, in all.
        """
        length = yield from self._shortest_beginning(max_drop, max_trials)
        if length is None:
            return min(self.trials, key=lambda trial: (_worst_if_nan(trial.drop), trial.layers))
        chosen = list(self.order[:length])
        for name in reversed(self.order[:length]):
            if len(self.trials) >= max_trials:
                yield Note(f"search: stopped after {len(self.trials)} trials")
                break
            if len(chosen) == 1:
                break  # without it is the beginning of length 0, which failed
            fewer = [other for other in chosen if other != name]
            if (yield from self._drop(fewer)) <= max_drop:
                chosen = fewer
        return Trial(tuple(chosen), (yield from self._drop(chosen)))

    def _shortest_beginning(self, max_drop: float, max_trials: int) -> Job[int | None]:
        low, high = -1, 0  # the longest that is known to fail, and one to try
        while not (yield from self._drop(self.order[:high])) <= max_drop:
            if high == len(self.order) or len(self.trials) >= max_trials:
                return None
            low, high = high, min(max(1, 2 * high), len(self.order))
        while high - low > 1 and len(self.trials) < max_trials:
            middle = (low + high) // 2
            if (yield from self._drop(self.order[:middle])) <= max_drop:
                high = middle
            else:
                low = middle
        return high

    def _drop(self, layers: Sequence[str]) -> Job[float]:
        """The loss with some layers raised, scored once."""
        for trial in self.trials:
            if set(trial.layers) == set(layers):
                return trial.drop
        drop = yield from self.score(frozenset(layers))
        self.trials.append(Trial(tuple(layers), drop))
        return drop


def _worst_if_nan(drop: float) -> float:
    return math.inf if math.isnan(drop) else drop
