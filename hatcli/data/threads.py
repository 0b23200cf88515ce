"""Work that threads do ahead, in order: worth it where most of it runs outside of Python's lock."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2  # results a thread that are made before they are asked for


def map_ahead(work: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[R]:
    """What ``work`` makes of each item, in the order of the items.

    An exception of ``work`` comes out in its place. The threads end with the iterator: when it is
    exhausted, fails, is closed or dropped; what they are at is finished before.

    Args:
        work: may be called by several threads at once.
        items: taken one by one, by the thread that iterates.
        num_threads: how many work, at least 1.
    """
    remaining = iter(items)
    pending: deque[Future[R]] = deque()
    threads = ThreadPoolExecutor(num_threads, thread_name_prefix="hat-loader")
    try:
        for item in islice(remaining, _AHEAD * num_threads):
            pending.append(threads.submit(work, item))
        while pending:
            result = pending.popleft().result()
            for item in islice(remaining, 1):
                pending.append(threads.submit(work, item))
            yield result
    finally:
        threads.shutdown(cancel_futures=True)
