"""Tests of ``finetune fit --check`` on the command line."""

from pathlib import Path

import pytest

from finetune.errors import CHECK_FAILED_EXIT_CODE, ConfigError
from tests.cli.conftest import Cli

NETWORK = (
    "--backbone", "test_resnet", "--weights", "random", "--image-size", "32", "--augment", "none",
    "trainer.accelerator=cpu", "probe.enabled=off", "data.num_workers=0",
)  # fmt: skip


def test_fit_check_prints_at_most_80_columns_and_its_exit_code(
    cli: Cli, animals: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    output = cli("fit", animals, *NETWORK, "--check", "--lr", "100")
    assert output.code == CHECK_FAILED_EXIT_CODE
    assert "The learning rate is too high" in output.out
    text = output.out[output.out.index("24 training images") :]
    assert max(map(len, text.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


def test_fit_check_as_json_has_findings(cli: Cli, animals: Path) -> None:
    output = cli("fit", animals, *NETWORK, "--check", "--lr", "100", "--json")
    assert output.code == CHECK_FAILED_EXIT_CODE
    assert not output.json["is_passed"]
    assert output.json["findings"][0]["rule"] == "rate_too_high"
    assert output.json["attempts"]["run"]["lr"] == 100


@pytest.mark.parametrize("option", ["--dry-run", "--lr-find"])
def test_fit_check_with_a_contradicting_option_fails(option: str, cli: Cli, animals: Path) -> None:
    message = cli.fails("fit", animals, "--check", option, code=ConfigError.exit_code)
    assert "--check" in message
    assert option in message


def test_submit_rejects_check(cli: Cli, animals: Path) -> None:
    assert "--check" in cli.fails("submit", animals, "--check", code=ConfigError.exit_code)


def test_fit_check_under_a_launcher_is_refused(
    cli: Cli, animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "a",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    output = cli("fit", animals, *NETWORK, "--check")
    assert output.code == ConfigError.exit_code
    assert "one process" in " ".join(output.err.split())
