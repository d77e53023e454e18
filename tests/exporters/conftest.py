"""Fixtures of the tests that run networks."""

from collections.abc import Iterator

import pytest

from tests.networks import one_thread


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
