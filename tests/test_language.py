"""Names and docstrings are in the field's terms; see docs/glossary.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.helpers import ROOT

MODULES = sorted((ROOT / "finetune").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))

# A function is a verb: it begins with neither a participle nor a preposition nor a pronoun.
_NOT_A_VERB = {
    "about", "above", "after", "all", "alike", "among", "any", "asked", "at", "before",
    "begun", "below", "between", "beside", "by", "done", "drawn", "each", "every", "for",
    "given", "gone", "heard", "held", "how", "in", "kept", "known", "laid", "left", "made",
    "met", "of", "on", "other", "others", "own", "said", "seen", "shown", "some", "such",
    "taken", "that", "their", "these", "told", "under", "what", "where", "which", "who",
    "whose", "with", "without", "written",
}  # fmt: skip
_VERBS_IN_ED = {"embed", "exceed", "feed", "need", "proceed", "seed", "shed", "speed", "succeed"}
_ALLOWED_FUNCTIONS = {
    # rows of a registry, which users name in a config
    "abundant_first", "balanced", "deferred", "undersample", "oversample", "weighted",
    "logit_adjusted", "squared_hinge", "stratified_split",
    # as in torch and pytest
    "from_json",
}  # fmt: skip
_FRONTED = re.compile(
    r"^(What|Who|Whom|Whose|Where|When|Which|How|Whether|Of|By|In|With|That|Those|Says|Tells|Lets)\b"
)
_DIALECT = re.compile(
    r"\b(copies that are cut|labels? in doubt|in a mirror|goes on|comes to|came to|what heads say|"
    r"lone image|starved|sign of life|kept maps|is asked|are asked|says of|stands twice|last part|"
    r"mend(s|ed)? the)\b",
    re.IGNORECASE,
)


def _iter_definitions(
    path: Path,
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def _is_verb(word: str) -> bool:
    return word not in _NOT_A_VERB and (not word.endswith("ed") or word in _VERBS_IN_ED)


def test_functions_begin_with_a_verb() -> None:
    violations = [
        where
        for path in MODULES
        for where, node in _iter_definitions(path)
        if not isinstance(node, ast.ClassDef)
        and node.name not in _ALLOWED_FUNCTIONS
        # dunder methods, properties and Lightning's hooks
        and not (node.name.startswith(("__", "on_")) or _is_property(node))
        and not _is_verb(node.name.lstrip("_").partition("_")[0])
    ]
    assert not violations


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(names & {"property", "cached_property", "setter"})


def test_docstrings_of_modules_and_classes_begin_with_a_noun_phrase() -> None:
    violations = []
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        docstrings = [(str(path.relative_to(ROOT)), ast.get_docstring(ast.parse(text)))]
        docstrings += [
            (where, ast.get_docstring(node))
            for where, node in _iter_definitions(path)
            if isinstance(node, ast.ClassDef)
        ]
        violations += [f"{w}: {d[:60]}" for w, d in docstrings if d and _FRONTED.match(d)]
    assert not violations


def test_package_and_docs_use_no_terms_of_version_0_1() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    violations = [
        f"{path.relative_to(ROOT)}:{number} {match[0]}"
        for path in [*MODULES, *pages]
        if path.name != "glossary.md"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for match in [_DIALECT.search(line)]
        if match
    ]
    assert not violations


def test_test_names_begin_with_a_unit() -> None:
    violations = [
        where
        for path in TESTS
        for where, node in _iter_definitions(path)
        if not isinstance(node, ast.ClassDef)
        and re.match(r"test_(a|an|what|who|whose|where|when|how|of|it|no|only|the)_", node.name)
    ]
    assert len(violations) == 0, f"{len(violations)}: {violations[:20]}"
