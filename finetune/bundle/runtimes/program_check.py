"""Check of a file of ``torch.export`` before it is loaded, so that loading it runs no foreign code.

``torch.export.load`` unpickles what an archive declares as pickled, and its example inputs; it
evaluates the expressions of sizes as Python, executes guards, looks up operators by name in the
whole of torch, and loads compiled libraries. ``finetune export`` writes none of these but sizes and
operators of tensors, and only files of that kind are loaded. Their sizes are bounded, before memory
is reserved or a number is computed.
"""

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.bundle.verification.json_file import MAX_JSON_BYTES
from finetune.errors import RunFolderError

_ENTRIES = re.compile(
    r"(data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/"
    r"model_\w+_config\.json|models/model\.json|data/sample_inputs/model\.pt|extra/[\w.-]+"
    r"|archive_format|archive_version|byteorder|\.data/\w+)"
)
_EMPTY_ENTRY = "data/sample_inputs/model.pt"
_MODEL_ENTRY = "models/model.json"

_OPERATORS = re.compile(
    r"torch\.ops\.(aten|torchvision)\.\w+\.\w+|torch\.sym_[a-z]+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
_FILE_OPERATORS = re.compile(r"torch\.ops\.aten\.(from_file|save|load)\w*\.")

_SIZE_FUNCTIONS = {
    "Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "FloorDiv",
    "CeilDiv", "CleanDiv", "PythonMod", "IntTrueDiv", "ToFloat", "TruncToInt", "FloorToInt",
    "CeilToInt", "RoundToInt", "Eq", "Ne", "Lt", "Le", "Gt", "Ge",
    "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan",
}  # fmt: skip
_MAX_SIZE_CHARACTERS = 4000
_MAX_SIZE_NODES = 1000
_MAX_SIZE_CONSTANT = 2**63
_MAX_EXPONENT = 4
"""Bounds of an expression; that of a Swin Transformer with a free batch size has 20 nodes."""

_SIZE_NAMES = re.compile(r"[suz]\d+|int_oo")
_SIZE_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp,
    ast.operator, ast.unaryop, ast.Compare, ast.cmpop,
)  # fmt: skip


def check_program_file(file: Path, *, max_json_bytes: int = MAX_JSON_BYTES) -> None:
    """Check that a file holds nothing but tensors, and operators on them.

    Args:
        file: File.
        max_json_bytes: Largest size of a text in it.

    Raises:
        RunFolderError: It is no such file, or may run other code; the message says what it holds.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if len({name.partition("/")[0] for name in names}) > 1 or len({*names}) < len(names):
                raise ValueError("two of its entries have one name")  # which of them torch reads?
            _check_storage(archive.infolist(), file.stat().st_size, max_json_bytes)
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


def _check_storage(entries: list[zipfile.ZipInfo], archive_size: int, max_json_bytes: int) -> None:
    """Check that entries take no more memory than the archive, as torch does not compress them.

    Raises:
        ValueError: They do, or the text of one is too long.
    """
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"its entry {entry.filename!r} is compressed")
        if entry.filename.endswith(".json") and entry.file_size > max_json_bytes:
            raise ValueError(
                f"its entry {entry.filename!r} has {entry.file_size / 2**20:,.0f} MB, and no more "
                f"than {max_json_bytes // 2**20} MB are read"
            )
    if sum(entry.file_size for entry in entries) > archive_size:
        raise ValueError("its entries overlap")


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
    """Return whether an expression computes a size from sizes and does nothing else.

    It is short, and its powers are small: sympy computes those of constants as whole numbers.
    """
    if len(text) > _MAX_SIZE_CHARACTERS:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if len(nodes) > _MAX_SIZE_NODES or not all(map(_is_small_power, nodes)):
        return False
    functions = [node.func for node in nodes if isinstance(node, ast.Call)]
    names = {id(func) for func in functions}
    symbols = {
        id(arg)
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Symbol"
        for arg in node.args
    }  # a text elsewhere can be repeated
    return all(
        isinstance(node, _SIZE_NODES)
        and not (isinstance(node, ast.Name) and not _is_known_name(node, id(node) in names))
        and not (
            isinstance(node, ast.Constant)
            and not _is_known_constant(node.value, id(node) in symbols)
        )
        for node in nodes
    ) and all(isinstance(func, ast.Name) for func in functions)


def _is_known_name(node: ast.Name, is_called: bool) -> bool:
    return node.id in _SIZE_FUNCTIONS if is_called else bool(_SIZE_NAMES.fullmatch(node.id))


def _is_small_power(node: ast.AST) -> bool:
    """Return whether a node is no power, or one of a small constant exponent without others."""
    if not _is_power(node):
        return True
    if isinstance(node, ast.BinOp):
        base, exponent = node.left, node.right
    elif isinstance(node, ast.Call) and len(node.args) == 2 and not node.keywords:
        base, exponent = node.args
    else:
        return False
    value = _read_integer(exponent)
    is_nested = any(map(_is_power, ast.walk(base)))
    return value is not None and abs(value) <= _MAX_EXPONENT and not is_nested


def _is_power(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Pow | ast.LShift)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Pow"


def _read_integer(node: ast.expr) -> int | None:
    """Return the value of ``2``, ``-2`` or ``Integer(2)``; None for another expression."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        is_integer = isinstance(node.func, ast.Name) and node.func.id == "Integer"
        return _read_integer(node.args[0]) if is_integer else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _read_integer(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    return None


def _is_known_constant(value: object, is_symbol: bool) -> bool:
    if isinstance(value, int | float):
        return abs(value) <= _MAX_SIZE_CONSTANT
    return is_symbol and isinstance(value, str) and bool(_SIZE_NAMES.fullmatch(value))
