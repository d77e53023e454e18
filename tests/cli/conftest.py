"""Runs command lines in this process."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from finetune.cli.main import run
from tests.support.networks import one_thread

SMALL = (
    "--backbone", "test_resnet", "--weights", "random", "--epochs", "1", "--batch-size", "4",
    "--image-size", "32", "--precision", "32-true", "--augment", "none", "trainer.accelerator=cpu",
)  # fmt: skip
"""Options of a fit that takes a second."""


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object; anything before or after it on standard output is an error here."""
        tree: dict[str, Any] = json.loads(self.out)
        return tree


class Cli:
    """Runs a command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: object) -> Said:
        self.capsys.readouterr()
        code = run([str(word) for word in words])
        return Said(code, *self.capsys.readouterr())

    def ok(self, *words: object) -> Said:
        said = self(*words)
        assert said.code == 0, said.err
        return said

    def refused(self, *words: object, code: int) -> str:
        said = self(*words)
        assert said.code == code, said.err
        assert said.out == ""
        assert "Traceback" not in said.err
        assert said.err.count("error:") == 1
        return " ".join(said.err.split())


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    # one wide line a message, so that a test sees the words and not their wrapping
    monkeypatch.setenv("COLUMNS", "1000")
    return Cli(capsys)
