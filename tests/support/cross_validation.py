"""Comparison of cross-validations by the files in their run folders."""

from pathlib import Path

RESULTS = ("out_of_fold.csv", "folds.csv", "manifest.csv", "audit.csv", "cross_validation.json")


def assert_same_cross_validation(run: Path, expected: Path) -> None:
    """Check that two cross-validations have the same results and models, to the bit."""
    weights = sorted(path.relative_to(expected) for path in expected.rglob("*.safetensors"))
    assert Path("bundle") in {path.parents[-2] for path in weights}
    assert weights == sorted(path.relative_to(run) for path in run.rglob("*.safetensors"))
    for name in (*RESULTS, *map(str, weights)):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name
