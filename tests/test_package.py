"""The public names of the package, and imports that stay light until they are used."""

import json

import pytest

import finetune
from tests.support.helpers import run_python

HEAVY = ("torch", "torchvision", "timm", "pytorch_lightning", "albumentations", "wandb", "sklearn")


def test_import_finetune_loads_no_heavy_module() -> None:
    loaded = json.loads(
        run_python("import finetune, json, sys; print(json.dumps(list(sys.modules)))")
    )
    assert not set(HEAVY) & set(loaded)
    assert "pydantic" not in loaded
    assert "typer" not in loaded


@pytest.mark.parametrize("name", sorted(set(finetune.__all__) - {"__version__"}))
def test_public_name_resolves_to_the_documented_object(name: str) -> None:
    attribute = getattr(finetune, name)
    assert attribute.__name__ == name
    assert attribute.__doc__
    # not shadowed by a module of the same name once that is imported
    assert getattr(finetune, name) is attribute


def test_public_names_are_those_imported_lazily() -> None:
    assert set(finetune.__all__) == {"__version__", *finetune._LAZY_IMPORTS}


def test_unknown_attribute_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'finetune' has no attribute 'fti'"):
        finetune.fti  # noqa: B018


def test_version_is_that_of_the_installed_distribution() -> None:
    assert run_python("import finetune; print(finetune.__version__)") == f"{finetune.__version__}\n"


@pytest.mark.slow  # tests/bundle/test_bundle.py checks the import that registers them
def test_import_finetune_registers_no_networks_with_timm() -> None:
    code = "import finetune, timm; print(*(timm.is_model(n) for n in ('googlenet', 'resnet18')))"
    assert run_python(code).split() == ["False", "True"]


def test_import_finetune_leaves_the_import_system_unchanged() -> None:
    code = (
        "import sys; before = list(sys.meta_path); import finetune; print(sys.meta_path == before)"
    )
    assert run_python(code) == "True\n"


def test_module_execution_equals_the_console_script() -> None:
    code = """
import runpy, sys
sys.argv = ["finetune", "--version"]
try:
    runpy.run_module("finetune", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
"""
    assert run_python(code) == f"{finetune.__version__}\n"
