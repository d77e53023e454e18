"""Tests of garbage collection around imports."""

from tests.support.helpers import run_python

CODE = """
import atexit, gc, sys
from finetune.system.garbage_collection import import_without_collection

def check_exit():
    assert gc.get_freeze_count() == 0
    print("returned at exit")

atexit.register(check_exit)
with import_without_collection():
    assert not gc.isenabled()
    import decimal
assert gc.isenabled() and gc.get_freeze_count() > 1000
sys.modules["torch"] = decimal
with import_without_collection():
    assert gc.isenabled()
print("collected again")
"""


def test_imports_are_without_collection_and_left_out_of_later_ones() -> None:
    assert run_python(CODE).split("\n") == ["collected again", "returned at exit", ""]
