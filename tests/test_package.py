"""The package's one public door: the verbs as functions, and nothing heavy before they are used."""

import json

import pytest

import finetune
from tests.support.helpers import run_python

HEAVY = ("torch", "torchvision", "timm", "pytorch_lightning", "albumentations", "wandb", "sklearn")


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = json.loads(
        run_python("import finetune, json, sys; print(json.dumps(list(sys.modules)))")
    )
    assert not set(HEAVY) & set(loaded)
    assert "pydantic" not in loaded
    assert "typer" not in loaded


@pytest.mark.parametrize("name", sorted(set(finetune.__all__) - {"__version__"}))
def test_every_public_name_is_what_its_module_calls_so(name: str) -> None:
    found = getattr(finetune, name)
    assert found.__name__ == name
    assert found.__doc__
    # not hidden by a module of the same name, once that is imported
    assert getattr(finetune, name) is found


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'finetune' has no attribute 'fti'"):
        finetune.fti


def test_the_version_is_the_installed_one() -> None:
    assert run_python("import finetune; print(finetune.__version__)") == f"{finetune.__version__}\n"


@pytest.mark.parametrize(
    "imports",
    [
        # many libraries ask whether timm is there before anybody imports it
        "import importlib.util, finetune; importlib.util.find_spec('timm'); import timm",
        pytest.param("import timm, finetune", marks=pytest.mark.slow),
        pytest.param(
            "import finetune; from timm.models import create_model; import timm",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_timm_knows_the_classics_whichever_is_imported_first(imports: str) -> None:
    code = f"{imports}; print(*(timm.is_model(n) for n in ('googlenet', 'alexnet', 'resnet18')))"
    assert run_python(code).split() == ["True"] * 3


@pytest.mark.slow
def test_timm_alone_does_not_know_them() -> None:
    assert run_python("import timm; print(timm.is_model('googlenet'))") == "False\n"


def test_without_timm_importing_it_fails_as_ever() -> None:
    code = """
import sys, finetune
class Hidden:
    def find_spec(self, name, path, target=None):
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
sys.meta_path.insert(1, Hidden())
try:
    import timm
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run_python(code) == "timm\n"


def test_the_module_is_the_console_script() -> None:
    code = """
import runpy, sys
sys.argv = ["finetune", "--version"]
try:
    runpy.run_module("finetune", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
"""
    assert run_python(code) == f"{finetune.__version__}\n"
