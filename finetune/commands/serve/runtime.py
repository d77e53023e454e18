"""Library that computes the network of a server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from finetune.bundle.bundle import ModelBundle
from finetune.types import Reporter

Runtime = Literal["auto", "onnx", "torch"]


@contextmanager
def choose_runtime(
    bundle: ModelBundle, runtime: Runtime, *, reporter: Reporter
) -> Iterator[tuple[ModelBundle, str]]:
    """Return the model that computes, and the name of its library.

    Args:
        bundle: Model as it was loaded.
        runtime: Name of the library, or "auto" for that of the model's file.
        reporter: Receiver of notes.
    """
    del reporter, runtime
    yield bundle, "torch"
