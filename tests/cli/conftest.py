"""Fixture that runs command lines in this process."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from finetune.cli.main import run

SMALL = (
    "--backbone", "test_resnet", "--weights", "random", "--epochs", "1", "--batch-size", "4",
    "--image-size", "32", "--precision", "32-true", "--augment", "none", "trainer.accelerator=cpu",
)  # fmt: skip
"""Options of a fit that takes about a second."""


@dataclass
class Output:
    """Exit code and output of a command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The only JSON object on standard output; other text there is an error."""
        tree: dict[str, Any] = json.loads(self.out)
        return tree

    @property
    def words(self) -> str:
        """Standard output with its white space reduced to single spaces."""
        return " ".join(self.out.split())


class Cli:
    """Runner of command lines in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *args: object) -> Output:
        """Run a command line."""
        self.capsys.readouterr()
        code = run([str(arg) for arg in args])
        return Output(code, *self.capsys.readouterr())

    def ok(self, *args: object) -> Output:
        """Run a command line that succeeds."""
        output = self(*args)
        assert output.code == 0, output.err
        return output

    def fails(self, *args: object, code: int) -> str:
        """Run a command line that fails with an exit code, and return its single message."""
        output = self(*args)
        assert output.code == code, output.err
        assert output.out == ""
        assert "Traceback" not in output.err
        assert output.err.count("error:") == 1
        return " ".join(output.err.split())


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a runner whose messages are not wrapped."""
    monkeypatch.setenv("COLUMNS", "1000")
    return Cli(capsys)
