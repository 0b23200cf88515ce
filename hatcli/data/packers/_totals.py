"""The sums that packers keep over a split, under names such as 'count.jpeg', for the metadata."""

from collections.abc import Mapping


def section(totals: Mapping[str, int], name: str) -> dict[str, int]:
    """{'size.64x32': 4} -> {'64x32': 4}, sorted by key."""
    start = name + "."
    return {key[len(start) :]: totals[key] for key in sorted(totals) if key.startswith(start)}


def spread(counts: Mapping[str, int]) -> dict[str, int]:
    """The least, the middle and the greatest of numbers, from how often each occurs."""
    numbers = sorted((int(number), count) for number, count in counts.items())
    middle = (sum(counts.values()) - 1) // 2
    median = 0
    for number, count in numbers:
        median = number
        if middle < count:
            break
        middle -= count
    return {"min": numbers[0][0], "median": median, "max": numbers[-1][0]}


def spread_of_sides(totals: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The `spread` of the images' widths and heights, from 'width.640', 'height.480' and so on."""
    return {side: spread(section(totals, side)) for side in ("width", "height")}
