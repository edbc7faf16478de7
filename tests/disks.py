"""A disk that is full."""

import resource
from contextlib import contextmanager


@contextmanager
def full_disk(largest_file):
    """No file can grow beyond that size, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
