"""Exception tree: exit codes and built-in base classes."""

import builtins
import re

import pytest

from finetune import errors
from finetune.errors import FinetuneError
from tests.support.helpers import ROOT

TREE = dict(re.findall(r"^[│├└─ ]*(\w+Error) +(\d+)", errors.__doc__ or "", re.MULTILINE))
CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, FinetuneError)
}


def test_docstring_tree_equals_the_classes() -> None:
    assert {name: str(kind.exit_code) for name, kind in CLASSES.items()} == TREE


def test_documentation_lists_every_exit_code_once() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+) \|", text, re.MULTILINE)
    others = {
        errors.PREEMPTED_EXIT_CODE,
        errors.INTERRUPTED_EXIT_CODE,
        errors.CHECK_FAILED_EXIT_CODE,
    }
    codes = {kind.exit_code for kind in CLASSES.values()} | {0} | others
    assert sorted(map(int, listed)) == sorted(codes)


def test_exit_codes_are_unique_and_nonzero() -> None:
    codes = [kind.exit_code for kind in CLASSES.values()] + [
        errors.PREEMPTED_EXIT_CODE,
        errors.INTERRUPTED_EXIT_CODE,
        errors.CHECK_FAILED_EXIT_CODE,
    ]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"FinetuneError"}))
def test_error_is_caught_as_finetune_error_and_as_built_in(name: str) -> None:
    kind = CLASSES[name]
    built_in = kind.__bases__[1]
    assert getattr(builtins, built_in.__name__) is built_in
    for caught in (FinetuneError, built_in):
        with pytest.raises(caught, match=r"^message$"):
            raise kind("message")
