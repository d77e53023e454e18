"""Fixtures: a browser, and pages of made runs."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from finetune.commands.report.report import report
from tests.support.browser import launch_chromium
from tests.support.reports import write_predictions

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from finetune.commands.fit.fit import FitResult

FINDINGS = [
    {
        "rule": "overfitting",
        "severity": "problem",
        "title": "Overfitting from epoch 1",
        "sentence": "The validation loss rises from 1.05 to 1.2.",
        "numbers": {"best_loss": 1.05, "last_loss": 1.2, "first_epoch": 1},
        "remedy": "Stop earlier:",
        "option": "trainer.early_stopping_patience=2",
    },
    {"rule": "learning_rate", "severity": "good", "title": "Rate", "sentence": "Losses fall."},
]
_LAYER = {"kind": "ReLU", "units": 64, "saturated": 0.0, "mean_abs_correlation": 0.2, "std": 1.0}
NETWORK: dict[str, Any] = {
    "num_images": 8,
    "before": {"layers": [{"name": "layer1", "dead": 0.25, **_LAYER}]},
    "after": {"layers": [{"name": "layer1", "dead": 0.5, **_LAYER}]},
    "weights": [{"name": "layer1", "group": "layer1", "relative_change": 0.02}],
    "gradients": [{"name": "layer1", "group": "layer1", "norm": 0.1, "relative_norm": 0.01}],
}


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """Return the Chromium of the system; skip the test where it or playwright is missing.

    It ends with its module: a thread can have one playwright, and no other event loop beside it.
    """
    with launch_chromium() as browser:
        yield browser


@pytest.fixture
def open_page(chromium: "Browser") -> Iterator[Callable[..., "Page"]]:
    """Return a function that opens a file, and fail the test on messages of its console."""
    contexts, messages, requests = [], [], []

    def open_file(file: Path, *, width: int = 1280, **options: Any) -> "Page":
        context = chromium.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.resolve().as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="session")
def full_run(trained: "FitResult", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run with a diagnosis and statistics of its network; never change it."""
    run = tmp_path_factory.mktemp("report") / "insects"
    shutil.copytree(trained.run_dir, run)
    (run / "diagnosis.json").write_text(json.dumps({"version": 1, "findings": FINDINGS}))
    (run / "network.json").write_text(json.dumps(NETWORK))
    write_predictions(run, np.random.default_rng(0))
    return run


@pytest.fixture(scope="session")
def other_run(full_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the same images with other predictions and another learning rate."""
    run = tmp_path_factory.mktemp("report") / "other"
    shutil.copytree(full_run, run)
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace("  lr: 0.01\n", "  lr: 0.02\n"))
    write_predictions(run, np.random.default_rng(1))
    return run


@pytest.fixture(scope="session")
def page_file(full_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of ``full_run``."""
    return report([full_run], output=tmp_path_factory.mktemp("page") / "report.html").output


@pytest.fixture(scope="session")
def comparison_file(
    full_run: Path, other_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the page that compares both runs."""
    output = tmp_path_factory.mktemp("page") / "comparison.html"
    return report([full_run, other_run], output=output).output
