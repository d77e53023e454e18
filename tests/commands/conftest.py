"""Fixtures of the tests of the commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune.bundle.bundle import load_model, save_bundle

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


@pytest.fixture(scope="session")
def flipped_bundle(trained: FitResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle whose card says that it was trained on flipped images; never change it."""
    bundle = load_model(trained.run_dir)
    facts = {**bundle.card.facts, "flipped": True, "flipped_by": "augment.name=light"}
    folder = tmp_path_factory.mktemp("flipped") / "bundle"
    save_bundle(bundle.network, replace(bundle.card, facts=facts), folder)
    return folder
