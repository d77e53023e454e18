"""The layers of the package: a module imports only from lower layers; folders stay small."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.support.helpers import ROOT

PACKAGE = ROOT / "finetune"

# From the top down. Packages on one line are siblings, which never import each other.
LAYERS = (
    ("__main__",),
    ("cli", "api"),
    ("commands",),
    ("builders",),
    ("training", "inference", "exporters", "report", "saliency", "server"),
    ("probe",),
    ("audit", "bundle", "timm_models"),
    ("data", "models", "losses", "diagnosis"),
    ("evaluation", "distributed"),
    ("config", "system", "charts"),
    ("types", "lookup", "units"),
    ("errors", "read_options"),
)
LAYER_OF = {name: layer for layer, names in enumerate(reversed(LAYERS)) for name in names}
TORCH_FREE = (
    "config", "system.files", "system.run_folder", "types", "lookup", "errors",
    "bundle.model_card", "evaluation.prior_file", "evaluation.priors", "evaluation.significance",
    "diagnosis",
    "distributed.signals", "distributed.launch",
)  # fmt: skip
READ_CONFIG = ("cli", "api", "commands", "builders", "config")
STANDARD_LIBRARY_ONLY = (
    "system.files",
    "types",
    "read_options",
    "lookup",
    "units",
    "errors",
    "distributed.signals",
)
HEAVY = {"torch", "torchvision", "timm", "pytorch_lightning", "albumentations", "wandb", "sklearn"}
MAX_MODULES_IN_FOLDER = 12
MAX_LINES = 320
COMMANDS = {
    "fit",
    "inspect",
    "compare",
    "submit",
    "demo",
    "tune",
    "report",
    "export",
    "push",
    "serve",
    "evaluate",
    "predict",
}
"""Commands have a module in ``cli`` and one in ``commands``."""

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def _name(path: Path) -> str:
    """Return the dotted name of a module below ``finetune``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def _package(name: str) -> str:
    return name.partition(".")[0]


def _is_in(name: str, units: tuple[str, ...]) -> bool:
    return any(name == unit or name.startswith(f"{unit}.") for unit in units)


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the full name of everything imported at any depth of a file, and its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _imports_of_finetune(path: Path) -> Iterator[tuple[str, int]]:
    for name, line in _imports(path):
        if name.startswith("finetune."):
            yield name.removeprefix("finetune."), line


def test_modules_import_only_from_lower_layers() -> None:
    violations = []
    for path in MODULES:
        own = _package(_name(path))
        for name, line in _imports_of_finetune(path):
            other = _package(name)
            if other != own and LAYER_OF[other] >= LAYER_OF[own]:
                violations.append(f"{_name(path)}:{line} imports {name}")
    assert not violations
    assert {_package(_name(path)) for path in MODULES} == LAYER_OF.keys()


def test_layers_equal_the_table_of_the_design() -> None:
    page = (ROOT / "docs/design/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", page, re.MULTILINE)
    table = {int(number): set(re.findall(r"`(\w+)`", names)) for number, names in rows}
    assert table == {len(LAYERS) - place: set(names) for place, names in enumerate(LAYERS)}


def test_layers_lightning_only_in_training_and_torch_not_in_light_modules() -> None:
    violations = []
    for path in MODULES:
        name = _name(path)
        packages = {_package(imported) for imported, _ in _imports(path)}
        forbidden = set() if _package(name) == "training" else {"pytorch_lightning", "lightning"}
        if _is_in(name, TORCH_FREE):
            forbidden |= HEAVY
        if _is_in(name, STANDARD_LIBRARY_ONLY):
            forbidden |= packages - {*sys.stdlib_module_names, "finetune"}
        violations += [f"{name} imports {package}" for package in packages & forbidden]
    assert not violations


def test_config_is_imported_by_builders_and_above_only() -> None:
    violations = [
        f"{_name(path)}:{line} imports {name}"
        for path in MODULES
        for name, line in _imports_of_finetune(path)
        if _package(name) == "config" and not _is_in(_name(path), READ_CONFIG)
    ]
    assert not violations


def test_albumentations_is_imported_by_two_modules_only() -> None:
    users = [
        _name(path)
        for path in MODULES
        if "albumentations" in {_package(name) for name, _ in _imports(path)}
    ]
    assert users == ["data.transforms.presets", "data.transforms.train_transform"]


def test_folders_and_files_stay_small() -> None:
    folders = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert {str(f): n for f, n in folders.items() if n > MAX_MODULES_IN_FOLDER} == {}
    lines = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}


def test_module_names_are_unique_but_for_commands() -> None:
    names = Counter(path.stem for path in MODULES if path.name != "__init__.py")
    assert {name for name, count in names.items() if count > 1} <= COMMANDS
    similar = [f"{a}, {a}s" for a in names if f"{a}s" in names]
    assert not similar


def test_console_starts_without_heavy_imports() -> None:
    code = "import finetune.cli.main, json, sys; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    assert not HEAVY & set(json.loads(run.stdout))
