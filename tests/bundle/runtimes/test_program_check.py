"""Tests of programs of ``torch.export`` that may run code: none is loaded."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from finetune.bundle.runtimes.program_check import check_program_file
from finetune.bundle.runtimes.program_network import load_program
from finetune.errors import RunFolderError

Entries = dict[str, bytes]


class Small(nn.Module):
    """Network whose program has weights, a constant and sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores, shape (B, 3)."""
        scores: Tensor = self.linear(images.flatten(1)) + torch.tensor([1.0, 2.0, 3.0])
        return scores * (images.shape[0] // images.shape[0])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of a program without pickles; never change it."""
    file = tmp_path_factory.mktemp("program") / "model.pt2"
    axes = ({0: Dim("batch")},)
    written = torch.export.export(Small(), (torch.zeros(2, 3, 2, 2),), dynamic_shapes=axes)
    written.example_inputs = None
    torch.export.save(written, file, extra_files={"finetune": "{}"})
    return file


class _Marker:
    """Object whose unpickling creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def rewrite(source: Path, target: Path, change: Callable[[Entries], None]) -> Path:
    """Write an archive with changed entries, by their names without the folder."""
    with zipfile.ZipFile(source) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"model/{name}", content)
    return target


def _edit_json(name: str, edit: Callable[[Any], None]) -> Callable[[Entries], None]:
    def change(entries: Entries) -> None:
        tree = json.loads(entries[name])
        edit(tree)
        entries[name] = json.dumps(tree).encode()

    return change


def _replace_in_model(old: str, new: str) -> Callable[[Entries], None]:
    def change(entries: Entries) -> None:
        text = entries["models/model.json"].decode()
        assert old in text
        entries["models/model.json"] = text.replace(old, new, 1).encode()

    return change


def _remove_model(entries: Entries) -> None:
    del entries["models/model.json"]


def _declare_pickled(tree: Any) -> None:
    next(iter(tree["config"].values()))["use_pickle"] = True


def _move_out(tree: Any) -> None:
    next(iter(tree["config"].values()))["path_name"] = "../../secret"


def test_load_program_without_code_predicts(program: Path) -> None:
    network, metadata = load_program(program)
    assert metadata == {"finetune": "{}"}
    assert network(torch.zeros(5, 3, 2, 2)).shape == (5, 3)


def test_load_program_of_pickled_inputs_is_refused_unopened(program: Path, tmp_path: Path) -> None:
    marker = tmp_path / "code ran"

    def add_pickle(entries: Entries) -> None:
        entries["data/sample_inputs/model.pt"] = pickle.dumps(_Marker(marker))

    file = rewrite(program, tmp_path / "bad.pt2", add_pickle)
    with pytest.raises(RunFolderError, match=r"bad\.pt2 is not loaded.*pickled example inputs"):
        load_program(file)
    assert not marker.exists()


_SYMBOL = "Symbol('"
_CODE = "__import__('os').system('true')"

CHANGES: dict[str, tuple[Callable[[Entries], None], str]] = {
    "pickled weight": (
        _edit_json("data/weights/model_weights_config.json", _declare_pickled),
        "is pickled",
    ),
    "other place": (
        _edit_json("data/weights/model_weights_config.json", _move_out),
        "secret",
    ),
    "compiled library": (
        lambda entries: entries.update({"data/aotinductor/model/a.so": b"ELF"}),
        "aotinductor",
    ),
    "guards": (
        _edit_json("models/model.json", lambda tree: tree.update(guards_code=[_CODE])),
        "guards",
    ),
    "function of torch": (
        _replace_in_model("torch.ops.aten.linear.default", "torch.hub.load"),
        r"torch\.hub\.load",
    ),
    "operator on files": (
        _replace_in_model("torch.ops.aten.linear.default", "torch.ops.aten.from_file.default"),
        "from_file",
    ),
    "expression": (_replace_in_model(_SYMBOL, f"{_CODE} + Symbol('"), "expression"),
    "type": (_replace_in_model("builtins.tuple", "os.system"), "no tensors"),
    "no program": (_remove_model, "has no models"),
}


ENDLESS = [
    "2**70", "9**2**2", "(2**2)**2", "Pow(Integer(2), Integer(70))", "Pow(Pow(2, 2), 2)",
    "2**Symbol('s77')", "Pow(2, Max(3, 4))", "Pow(*Pow(2, 2))", "1 << 70", f"{2**64} + 1",
    "'s77' * 3", "+".join(["1"] * 1500),
]  # fmt: skip


@pytest.mark.parametrize("text", ENDLESS)
def test_load_program_of_unbounded_expression_is_refused(
    program: Path, tmp_path: Path, text: str
) -> None:
    change = _replace_in_model(_SYMBOL, f"{text} + Symbol('")
    with pytest.raises(RunFolderError, match="expression"):
        load_program(rewrite(program, tmp_path / "bad.pt2", change))


@pytest.mark.parametrize("text", ["2**3", "Pow(Integer(2), Integer(-1))", "4 * Integer(16)"])
def test_load_program_of_small_expression_is_not_refused(
    program: Path, tmp_path: Path, text: str
) -> None:
    change = _replace_in_model(_SYMBOL, f"{text} * Symbol('")
    check_program_file(rewrite(program, tmp_path / "good.pt2", change))


@pytest.mark.parametrize("operator", ["pow", "lshift", "call"])
def test_load_program_of_other_operators_of_python_is_refused(
    program: Path, tmp_path: Path, operator: str
) -> None:
    change = _replace_in_model("torch.ops.aten.linear.default", f"_operator.{operator}")
    with pytest.raises(RunFolderError, match=f"calls '_operator.{operator}'"):
        load_program(rewrite(program, tmp_path / "bad.pt2", change))


def test_load_program_that_inflates_is_refused_unread(program: Path, tmp_path: Path) -> None:
    def add_blanks(entries: Entries) -> None:
        entries["models/model.json"] += b" " * 2**20

    plain = rewrite(program, tmp_path / "plain.pt2", add_blanks)
    load_program(plain)
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as target:
        for name in archive.namelist():
            kind = zipfile.ZIP_DEFLATED if name.endswith("model.json") else zipfile.ZIP_STORED
            target.writestr(name, archive.read(name), kind)
    with pytest.raises(RunFolderError, match=r"model\.json' is compressed"):
        load_program(tmp_path / "bad.pt2")


def test_check_program_file_of_too_long_text_refuses_it_unread(program: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        size = archive.getinfo("model/models/model.json").file_size
    with pytest.raises(RunFolderError, match=r"model\.json' has 0 MB, and no more than"):
        check_program_file(program, max_json_bytes=size - 1)


def test_load_program_of_overlapping_entries_is_refused(program: Path, tmp_path: Path) -> None:
    file = rewrite(program, tmp_path / "bad.pt2", lambda _: None)
    archive = zipfile.ZipFile(file, "a")
    large = max(archive.infolist(), key=lambda entry: entry.file_size)
    for number in range(50, 60):
        double = copy.copy(large)
        double.filename = f"model/data/weights/weight_{number}"
        archive.filelist.append(double)
        archive.NameToInfo[double.filename] = double
    archive._didModify = True  # type: ignore[attr-defined]
    archive.close()
    with pytest.raises(RunFolderError, match="overlap"):
        load_program(file)


@pytest.mark.parametrize("name", CHANGES)
def test_load_program_that_may_run_code_is_refused(
    program: Path, tmp_path: Path, name: str
) -> None:
    change, message = CHANGES[name]
    with pytest.raises(RunFolderError, match=message):
        load_program(rewrite(program, tmp_path / "bad.pt2", change))


def test_load_program_of_other_file_raises_run_folder_error(tmp_path: Path, program: Path) -> None:
    (tmp_path / "text.pt2").write_text("no archive")
    (tmp_path / "cut.pt2").write_bytes(program.read_bytes()[:-100])
    for name in ("text.pt2", "cut.pt2", "gone.pt2"):
        with pytest.raises(RunFolderError, match=rf"{name} .*damaged"):
            load_program(tmp_path / name)


@pytest.mark.parametrize("folder", ["model", "other"])
def test_load_program_with_two_models_is_refused(
    program: Path, tmp_path: Path, folder: str
) -> None:
    file = rewrite(program, tmp_path / "two.pt2", lambda _: None)
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the same name
        archive.writestr(f"{folder}/models/model.json", archive.read("model/models/model.json"))
    with pytest.raises(RunFolderError, match="two of its entries have one name"):
        load_program(file)
