"""Check of a file of ``torch.export`` before it is loaded, so that loading it runs no foreign code.

``torch.export.load`` unpickles what an archive declares as pickled, and its example inputs; it
evaluates the expressions of sizes as Python, executes guards, looks up operators by name in the
whole of torch, and loads compiled libraries. ``finetune export`` writes none of these but sizes and
operators of tensors, and only files of that kind are loaded.
"""

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.errors import RunFolderError

_ENTRIES = re.compile(
    r"(data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/"
    r"model_\w+_config\.json|models/model\.json|data/sample_inputs/model\.pt|extra/[\w.-]+"
    r"|archive_format|archive_version|byteorder|\.data/\w+)"
)
_EMPTY_ENTRY = "data/sample_inputs/model.pt"
_MODEL_ENTRY = "models/model.json"

_OPERATORS = re.compile(
    r"torch\.ops\.(aten|torchvision)\.\w+\.\w+|_operator\.[a-z]+|torch\.sym_[a-z]+"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
_FILE_OPERATORS = re.compile(r"torch\.ops\.aten\.(from_file|save|load)\w*\.")

_SIZE_FUNCTIONS = {
    "Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "FloorDiv",
    "CeilDiv", "CleanDiv", "PythonMod", "IntTrueDiv", "ToFloat", "TruncToInt", "FloorToInt",
    "CeilToInt", "RoundToInt", "Eq", "Ne", "Lt", "Le", "Gt", "Ge",
    "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan",
}  # fmt: skip
_SIZE_NAMES = re.compile(r"[suz]\d+|int_oo")
_SIZE_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp,
    ast.operator, ast.unaryop, ast.Compare, ast.cmpop,
)  # fmt: skip


def check_program_file(file: Path) -> None:
    """Check that a file holds nothing but tensors, and operators on them.

    Raises:
        RunFolderError: It is no such file, or may run other code; the message says what it holds.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if len({name.partition("/")[0] for name in names}) > 1 or len({*names}) < len(names):
                raise ValueError("two of its entries have one name")  # which of them torch reads?
            sizes = {_strip_folder(e.filename): e.file_size for e in archive.infolist()}
            entries = {_strip_folder(name): name for name in names}
            reason = _find_unknown_entry(sizes)
            for name in (n for n in entries if n.startswith("data/") and n.endswith(".json")):
                reason = reason or _find_pickle(json.loads(archive.read(entries[name])))
            if reason is None and _MODEL_ENTRY in entries:
                reason = _find_code(json.loads(archive.read(entries[_MODEL_ENTRY])))
            elif reason is None:
                reason = f"it has no {_MODEL_ENTRY}"
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, RecursionError) as error:
        raise RunFolderError(
            f"{file} is no file of torch.export, or it is damaged ({error}). Export the model "
            f"again."
        ) from error
    if reason is not None:
        raise RunFolderError(
            f"{file} is not loaded, as loading it may run code: {reason}. finetune export --format "
            f"torch writes files without it. Export the model again."
        )


def _strip_folder(name: str) -> str:
    """Return the name of an entry without the folder that holds all of them."""
    return name.partition("/")[2]


def _find_unknown_entry(sizes: dict[str, int]) -> str | None:
    for name, size in sizes.items():
        if not _ENTRIES.fullmatch(name):
            return f"it contains {name!r}"
        if name == _EMPTY_ENTRY and size > 0:
            return "it contains pickled example inputs"
    return None


def _find_pickle(config: Any) -> str | None:
    for name, entry in config["config"].items():
        if entry["use_pickle"] is not False:
            return f"the tensor {name!r} is pickled"
        if not _ENTRIES.fullmatch(f"data/weights/{entry['path_name']}") and not _ENTRIES.fullmatch(
            f"data/constants/{entry['path_name']}"
        ):
            return f"the tensor {name!r} lies in {entry['path_name']!r}"
    return None


def _find_code(model: Any) -> str | None:
    """Return the first part of a program that is no operator on tensors and no size of them."""
    if model.get("guards_code"):
        return "it contains guards, which are Python code"
    for node in _iterate_nodes(model):
        operators = [node.get("as_operator"), node.get("target") if "inputs" in node else None]
        for name in operators:
            if isinstance(name, str) and not _is_tensor_operator(name):
                return f"it calls {name!r}"
        if isinstance(text := node.get("expr_str"), str) and not _is_size(text):
            return f"it contains the expression {text!r}"
        for key in ("in_spec", "out_spec"):
            if isinstance(text := node.get(key), str) and not _is_plain_structure(text):
                return "its inputs or outputs are no tensors"
    return None


def _iterate_nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects of a tree."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            yield node
            pending += node.values()
        elif isinstance(node, list):
            pending += node


def _is_tensor_operator(name: str) -> bool:
    return bool(_OPERATORS.fullmatch(name)) and not _FILE_OPERATORS.match(name)


def _is_plain_structure(text: str) -> bool:
    """Return whether a structure of inputs or outputs is made of tuples, lists and dicts alone."""
    nodes = list(_iterate_nodes(json.loads(text) if text else []))
    return all(
        node.get("type") in (None, "builtins.tuple", "builtins.list", "builtins.dict")
        and node.get("context") in (None, "null", "[]")
        for node in nodes
    )


def _is_size(text: str) -> bool:
    """Return whether an expression computes a size from sizes and does nothing else."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    functions = [node.func for node in nodes if isinstance(node, ast.Call)]
    names = {id(func) for func in functions}
    return all(
        isinstance(node, _SIZE_NODES)
        and not (isinstance(node, ast.Name) and not _is_known_name(node, id(node) in names))
        and not (isinstance(node, ast.Constant) and not _is_known_constant(node.value))
        for node in nodes
    ) and all(isinstance(func, ast.Name) for func in functions)


def _is_known_name(node: ast.Name, is_called: bool) -> bool:
    return node.id in _SIZE_FUNCTIONS if is_called else bool(_SIZE_NAMES.fullmatch(node.id))


def _is_known_constant(value: object) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, str) and bool(_SIZE_NAMES.fullmatch(value))
    )
