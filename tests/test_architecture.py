"""The floors of the house: a module imports only from lower ones."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "finetune"

# From the top down. What stands on one line are siblings, which never import each other.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("build",),
    ("training", "inference", "exporters", "report"),
    ("bundle", "probe", "calibration"),
    ("data", "models", "losses", "metrics", "machine"),
    ("card", "prior_file"),
    ("config", "chance", "priors"),
    ("run_folder",),
    ("storage",),
    ("types", "lookup", "signals"),
    ("errors",),
)
FLOOR_OF = {name: floor for floor, names in enumerate(reversed(FLOORS)) for name in names}
TORCH_FREE = (
    "card", "prior_file", "config", "chance", "priors", "run_folder", "storage", "types", "lookup",
    "signals", "errors",
)  # fmt: skip
KNOW_THE_CONFIG = ("cli", "commands", "build", "config")
STANDARD_LIBRARY_ONLY = ("types", "lookup", "signals", "errors")
HEAVY = {"torch", "torchvision", "timm", "pytorch_lightning", "albumentations", "wandb", "sklearn"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE) + sorted(
    path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"
)


def _unit(path: Path) -> str:
    """Return the package or module directly under ``finetune`` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the full name of everything imported at any depth of a file, and its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _id(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_every_module_has_a_floor_and_imports_only_from_lower_ones(path: Path) -> None:
    own = _unit(path)
    assert own in FLOOR_OF, f"say in FLOORS where {own} stands"
    for name, line in _imports(path):
        package, _, rest = name.partition(".")
        if package != "finetune":
            continue
        other = rest.partition(".")[0]
        assert other in FLOOR_OF, f"{path}:{line} imports {name}, which has no floor"
        assert other == own or FLOOR_OF[other] < FLOOR_OF[own], f"{path}:{line} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_only_training_knows_lightning_and_the_lower_floors_no_torch(path: Path) -> None:
    packages = {name.partition(".")[0] for name, _ in _imports(path)}
    if _unit(path) != "training":
        assert not packages & {"pytorch_lightning", "lightning"}
    if _unit(path) in TORCH_FREE:
        assert not packages & HEAVY
    if _unit(path) in STANDARD_LIBRARY_ONLY:
        assert packages <= {*sys.stdlib_module_names, "finetune"}


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_components_never_see_the_config(path: Path) -> None:
    if _unit(path) not in KNOW_THE_CONFIG:
        assert not [name for name, _ in _imports(path) if name.startswith("finetune.config")]


def test_only_two_modules_know_albumentations() -> None:
    users = [
        _id(path)
        for path in MODULES
        if "albumentations" in {name.partition(".")[0] for name, _ in _imports(path)}
    ]
    assert users == ["data/augment.py", "data/train_transform.py"]


def test_the_console_is_imported_without_anything_heavy() -> None:
    code = "import finetune.cli.main, json, sys; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    assert not HEAVY & set(json.loads(run.stdout))
