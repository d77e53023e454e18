"""Tests of how OpenMP's threads wait."""

import os
import subprocess
import sys

import pytest

from finetune.system.openmp import wait_passively
from tests.support.helpers import ROOT


def test_wait_passively_is_the_default() -> None:
    environment = {"OMP_NUM_THREADS": "2"}
    assert wait_passively(environment)
    assert environment == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "1000"), ("KMP_BLOCKTIME", "0")],
)
def test_wait_passively_respects_variables_of_the_user(variable: str, value: str) -> None:
    environment = {variable: value}
    assert not wait_passively(environment)
    assert environment == {variable: value}


def test_command_line_lets_threads_wait_passively_before_torch_is_imported() -> None:
    code = (
        "import os, sys, finetune.__main__ as entry, finetune.cli.main as main\n"
        "assert 'torch' not in sys.modules\n"
        "main.run = lambda: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules) or 0\n"
        "sys.argv = ['finetune', 'predict']\n"
        "entry.main()\n"
    )
    variables = {"PATH": os.environ["PATH"]}
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, cwd=ROOT, env=variables,
    )  # fmt: skip
    assert process.stdout.split() == ["PASSIVE", "False"]
