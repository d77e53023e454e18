"""Garbage collection around imports, whose million objects stay until the process ends."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def import_without_collection() -> Iterator[None]:
    """Import torch and what needs it without garbage collections; leave it out of later ones.

    Collections take a fifth of the time of these imports, and each later one of everything would
    take a third of a second. Does nothing once torch is imported.
    """
    if "torch" in sys.modules:
        yield
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
    gc.freeze()
    # extension modules check at exit that what they gave is returned
    atexit.register(gc.unfreeze)
