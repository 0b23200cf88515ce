"""Memory that is freed stays with the process, to be used for the next image."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers, see mallopt(3)
_LARGE = 2**30


def keep_freed_memory() -> None:
    """Tell the C library not to hand freed memory back at once.

    Packing takes and frees some hundred kilobytes for each image, several times over. By default
    each of these pages is asked of the system, zeroed and returned, which takes as long as all
    other work. What a C library doesn't know is left as it is; it only costs time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, _LARGE)
    mallopt(_MMAP_THRESHOLD, _LARGE)
