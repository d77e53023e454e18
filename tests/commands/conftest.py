"""Fixtures of the tests that run networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune.bundle.bundle import load_model, save_bundle
from tests.support.networks import one_thread

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def mirrored(trained: FitResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle that says that it was trained on mirrored images; never change it."""
    bundle = load_model(trained.run_dir)
    facts = {**bundle.card.facts, "mirrored": True, "mirrored_by": "augment.name=light"}
    folder = tmp_path_factory.mktemp("mirrored") / "bundle"
    save_bundle(bundle.network, replace(bundle.card, facts=facts), folder)
    return folder
