"""Commands whose output cannot be written: real pipes, closed descriptors and a full device."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune.errors import StorageError
from tests.support.runs import build_command, build_environment

SMALL = (
    "--backbone", "test_resnet", "--weights", "weights.pth", "--image-size", "32",
    "--precision", "32-true", "trainer.accelerator=cpu", "data.num_workers=0",
)  # fmt: skip
FIT = (
    "fit", "photos", *SMALL, "--epochs", "1", "--batch-size", "8", "--augment", "none",
    "probe.enabled=off", "--output", "run",
)  # fmt: skip
INSPECT = ("inspect", "photos", "--output", "audit")
COMPARE = (
    "compare", "photos", "--backbones", "test_resnet", "--weights", "weights", "--image-size", "32",
    "--precision", "32-true", "trainer.accelerator=cpu", "data.num_workers=0",
)  # fmt: skip

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full"),
]


def start(
    folder: Path, words: Sequence[str], *, stdout: str, stderr: str = ""
) -> tuple[int, str, str]:
    """Run a command line in a shell and return its exit code and what is still readable.

    Args:
        folder: Working folder.
        words: Command line.
        stdout: "true" and "head -1" are readers of a pipe; else a redirection, such as ">&-".
        stderr: Redirection of standard error.
    """
    pipe = "" if stdout.startswith(">") else "|"
    process = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$@" {stderr} {pipe} {stdout}', "_",
         *build_command(*words)],
        capture_output=True, text=True, check=False, cwd=folder,
        env=build_environment(Path.cwd(), {"FINETUNE_CACHE": str(folder / "cache")}),
    )  # fmt: skip
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize(
    ("words", "stdout"),
    [
        (("config",), "head -1"),
        (("config",), "true"),
        (("--version",), ">&-"),
        (("fit", "--help"), "true"),
        pytest.param(INSPECT, "true", marks=pytest.mark.slow),
        pytest.param(INSPECT, ">&-", marks=pytest.mark.slow),
    ],
)
def test_reading_command_whose_reader_is_gone_succeeds_silently(
    words: tuple[str, ...], stdout: str, place: Path
) -> None:
    code, _, err = start(place, words, stdout=stdout)
    assert (code, err) == (0, "")
    assert start(place, words, stdout=stdout, stderr="2>&1")[0] == 0
    assert words != INSPECT or (place / "audit" / "audit.json").is_file()


@pytest.mark.slow
def test_compare_ends_when_its_reader_is_gone(place: Path) -> None:
    (place / "weights").mkdir()
    (place / "weights.pth").rename(place / "weights" / "test_resnet.pth")
    code, out, err = start(place, COMPARE, stdout="true")
    assert (code, out, err) == (0, "", "")
    code, _, err = start(place, (*COMPARE, "--csv", "a.csv"), stdout="true")
    assert (code, err) == (0, "")
    assert (place / "a.csv").is_file(), "the file is wanted even if nobody reads the table"


@pytest.mark.parametrize(
    "words",
    [("config",), ("config", "--json"), pytest.param(INSPECT, marks=pytest.mark.slow)],
)
def test_output_on_full_disk_is_an_error(words: tuple[str, ...], place: Path) -> None:
    code, _, err = start(place, words, stdout="> /dev/full")
    assert code == StorageError.exit_code
    assert err.startswith("error: Cannot write to standard output: no space is left on the device.")
    assert err.count("error:") == 1
    assert start(place, words, stdout="> /dev/full", stderr="2>&1")[0] == StorageError.exit_code


@pytest.mark.parametrize(
    ("stdout", "stderr"),
    [
        ("head -1", ""),
        pytest.param("true", "2>&1", marks=pytest.mark.slow),
        pytest.param(">&-", "2>&-", marks=pytest.mark.slow),
        pytest.param("> /dev/full", "2> /dev/full", marks=pytest.mark.slow),
    ],
)
def test_fit_goes_on_without_console_and_logs(stdout: str, stderr: str, place: Path) -> None:
    code, out, err = start(place, FIT, stdout=stdout, stderr=stderr)
    assert code == 0
    assert "Traceback" not in out + err
    assert "Exception ignored" not in out + err
    assert (place / "run" / "bundle" / "model.safetensors").is_file()
    log = (place / "run" / "console.log").read_text(encoding="utf-8")
    first = log.splitlines()[0]
    assert "Cannot write to standard output" in first
    assert first.endswith("The run continues; what it prints is in run/console.log.")
    assert "finetune evaluate run" in log, "the last lines of a run"
    if stderr == "":
        assert err.count("warning: Cannot write to standard output (it was closed).") == 1


@pytest.mark.slow
def test_fit_with_console_has_no_log(place: Path) -> None:
    assert start(place, FIT, stdout="> out.txt")[0] == 0
    assert not (place / "run" / "console.log").exists()
    assert "finetune evaluate run" in (place / "out.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_two_ranks_go_on_without_console(place: Path) -> None:
    code, out, err = start(place, (*FIT, "--devices", "2"), stdout="true", stderr="2>&1")
    assert (code, out, err) == (0, "", "")
    assert (place / "run" / "bundle" / "model.safetensors").is_file()
    assert "The run continues" in (place / "run" / "console.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_closed_descriptors_are_not_given_to_files(place: Path) -> None:
    """What is printed must not end up in a file that got the number of a closed stream."""
    process = subprocess.run(
        ["bash", "-c", '"$@" <&- >&- 2>&-', "_", *build_command(*FIT)],
        check=False, cwd=place,
        env={**build_environment(Path.cwd()), "FINETUNE_CACHE": os.fspath(place / "cache")},
    )  # fmt: skip
    assert process.returncode == 0
    config = (place / "run" / "config.yaml").read_text(encoding="utf-8")
    assert config.startswith(("#", "data", "model", "seed"))
