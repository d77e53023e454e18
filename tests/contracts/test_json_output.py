"""The page on JSON output names the keys that the results of commands have, and no others."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.audit.audit import Audit
from finetune.commands.compare.backbone_result import BackboneResult
from finetune.commands.compare.result import CompareResult
from finetune.commands.cross_validation.summary import summarise_folds
from finetune.commands.demo.class_ranges import TransferClasses
from finetune.commands.demo.demo import DemoResult
from finetune.commands.demo.transfer_result import TransferResult
from finetune.commands.evaluation.evaluation_result import EvaluateResult
from finetune.commands.export.export_result import ExportResult
from finetune.commands.fetch import FetchResult
from finetune.commands.fit.check.overfit_check import CheckResult
from finetune.commands.fit.lr_find import LearningRateResult
from finetune.commands.fit.single_run import FitResult
from finetune.commands.inspect.inspect import InspectResult
from finetune.commands.predict.predict_result import PredictResult
from finetune.commands.predict.prediction_row import RowFormat, prediction_to_json
from finetune.commands.predict.shards.sharded_prediction import ShardsResult
from finetune.commands.push.push import PushResult
from finetune.commands.report.report import ReportResult
from finetune.commands.submit.submit import Submission
from finetune.commands.submit.submitted_prediction import PredictionSubmission
from finetune.commands.tune.study_plan import StudyPlan
from finetune.commands.tune.tune_result import TuneResult
from finetune.data.multi_label.label_statistics import LabelStatistics
from finetune.evaluation.multi_label.label_metrics import MultiLabelEvaluation
from finetune.exporters.export_formats import FORMATS, ExportOptions
from finetune.exporters.parity import Parity
from finetune.inference.scoring import details_to_json
from finetune.types import Evaluation, Prediction
from tests.support.helpers import ROOT

PAGE = (ROOT / "docs/reference/json-output.md").read_text(encoding="utf-8")
EVALUATION = Evaluation(1, {"accuracy": 1.0}, (), (), (0.5, 1.0), ())
LABEL_EVALUATION = MultiLabelEvaluation(1, {"loss": 0.1}, ())
HERE = Path()
DETAILS = {"num_images", "accuracy_interval", "rarest_third", "num_classes_averaged", "per_class"}
LABEL_DETAILS = {"num_images", "num_labels_averaged", "per_label"}


def _get_section(title: str) -> str:
    """Return the text below a heading."""
    _, _, rest = PAGE.partition(f"\n## {title}\n")
    assert rest, title
    return rest.partition("\n## ")[0].strip()


def _get_text(section: str, start: str) -> str:
    """Return the text of a section from a word up to the next empty line."""
    _, found, rest = _get_section(section).partition(start)
    assert found, start
    return rest.partition("\n\n")[0]


def _get_rows(text: str) -> list[list[str]]:
    """Return the cells of the rows of the first table of a text, without its heading."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def _iter_outer(text: str) -> Iterator[str]:
    """Yield the characters of a text that are not in parentheses."""
    depth = 0
    for character in text:
        depth += character == "("
        if depth == 0:
            yield character
        depth -= character == ")"


def _list_names(text: str) -> set[str]:
    """Return the keys of a listing, without those in parentheses, up to its first full stop."""
    listing = re.split(r"\.\s", "".join(_iter_outer(text)))[0]
    return {re.split(r"[.\[]", name)[0] for name in re.findall(r"`([^`]+)`", listing)}


def _list_table_names(text: str) -> set[str]:
    """Return the keys in the first column of the first table of a text."""
    names = [name for row in _get_rows(text) for name in re.findall(r"`([^`]+)`", row[0])]
    return {re.split(r"[.\[]", name)[0] for name in names}


def _get_details(section: str, key: str) -> str:
    """Return the text in parentheses behind a key."""
    _, found, rest = _get_section(section).partition(f"`{key}` (")
    assert found, key
    depth, end = 1, 0
    while depth:
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    return rest[: end - 1]


def _get_other_command(name: str) -> set[str]:
    rows = _get_rows(_get_section("Other commands"))
    return _list_names(next(keys for command, keys in rows if command == f"`{name}`"))


def _read_returned_keys(function: Callable[..., Any]) -> set[str]:
    """Return the keys of the dict that the last statement of a function returns."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    statement = tree.body[-1]
    assert isinstance(statement, ast.Return)
    assert isinstance(statement.value, ast.Dict)
    return {ast.literal_eval(key) for key in statement.value.keys if key is not None}


def test_keys_of_fit_equal_page() -> None:
    section = _get_section("fit")
    assert _list_names(section) == FitResult(HERE, 1.0, {}, {}).to_json().keys()
    lr_find = _list_names(_get_text("fit", "`fit --lr-find` prints"))
    assert lr_find == _read_returned_keys(LearningRateResult.to_json)
    check = _list_names(_get_text("fit", "`fit --check` prints"))
    assert check == _read_returned_keys(CheckResult.to_json)


def test_keys_of_cross_validation_equal_page() -> None:
    _, found, rest = _get_section("fit").partition("`cross_validation` (`null` without")
    assert found
    rows = _list_table_names(rest.partition("\n\n`")[0])
    # the command adds the final model
    assert rows == {*_read_returned_keys(summarise_folds), "final"}


def test_keys_of_details_equal_page() -> None:
    shared = _get_section("Shared objects")
    table = _list_table_names(shared.partition("Of a [multi-label")[0])
    assert table == DETAILS == details_to_json(EVALUATION).keys()
    labels = _list_names(_get_text("Shared objects", "they are "))
    assert (
        labels - {"confusion_matrix"} == LABEL_DETAILS == details_to_json(LABEL_EVALUATION).keys()
    )


def test_keys_of_evaluate_equal_page() -> None:
    named = _list_names(_get_section("evaluate"))
    result = EvaluateResult(HERE, HERE, None, EVALUATION, ()).to_json()
    assert named | DETAILS == result.keys()
    result = EvaluateResult(HERE, HERE, None, LABEL_EVALUATION, ()).to_json()
    assert (named | LABEL_DETAILS) - {"confusion_matrix"} == result.keys()


def test_keys_of_predict_equal_page() -> None:
    named = _list_names(_get_section("predict"))
    assert named == PredictResult(1, 0).to_json().keys()
    shards = ShardsResult(HERE, 0, 1, 1, 0, 1, 0, None).to_json()
    assert _list_names(_get_text("predict", "With `--shards`:")) == shards.keys()


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_keys_of_prediction_are_on_page(is_multi_label: bool) -> None:
    form = RowFormat(("a", "b"), is_multi_label=is_multi_label)
    prediction = Prediction("a.jpg", ("a",), (1.0,), all_probabilities=(1.0, 0.0))
    details = _get_details("predict", "predictions[]")
    named = {re.split(r"[.\[]", name)[0] for name in re.findall(r"`([^`]+)`", details)}
    assert prediction_to_json(prediction, form).keys() <= named


def test_keys_of_inspect_equal_page() -> None:
    labels = LabelStatistics({"all": 1}, 0, 1.0, ())
    audit = Audit(1, {"all": {"a": 1}}, {}, {}, (), None, (), labels=labels)
    named = _list_table_names(_get_section("inspect"))
    assert named == InspectResult(HERE, HERE, audit).to_json().keys()


def test_keys_of_compare_equal_page() -> None:
    row = BackboneResult(
        backbone="a", weights="hub", image_size=32, num_parameters=1, num_macs=1,
        images_per_second=1.0, training_bytes=1, batch_size=1, monitor="accuracy",
        metrics={"accuracy": 1.0}, is_correct=np.ones(4, dtype=bool), num_images=1,
        num_computed=1, seconds=1.0,
    )  # fmt: skip
    result = CompareResult(HERE, (row,), (), {}, 1.0).to_json()
    assert _list_names(_get_section("compare")) == result.keys()
    named = _list_names(_get_details("compare", "backbones[]"))
    assert named - {"mean_average_precision_interval", "fit"} == result["backbones"][0].keys()


def test_keys_of_tune_equal_page() -> None:
    table = _list_table_names(_get_section("tune"))
    assert table == _read_returned_keys(TuneResult.to_json)
    plan = _list_names(_get_text("tune", "With `--dry-run`:"))
    assert plan == _read_returned_keys(StudyPlan.to_json)


def test_keys_and_formats_of_export_equal_page(tmp_path: Path) -> None:
    parity = Parity(1, 0.0, 1)
    for export_format in FORMATS.values():
        assert f"`{export_format.name}`" in _get_details("export", "format")
        result = ExportResult(tmp_path, export_format, ExportOptions(), parity, {}).to_json()
        assert _list_names(_get_section("export")) == result.keys()
        named = _list_names(_get_details("export", "parity").partition(";")[2])
        assert named == result["parity"].keys()


def test_keys_of_other_commands_equal_page() -> None:
    pushed = PushResult("a/b", None, None, {}, None, None, None, "")
    job = Submission(None, HERE, HERE, HERE, "")
    prediction = PredictionSubmission(None, HERE, HERE, HERE, 1, "")
    run = FitResult(HERE, 1.0, {"test": {"accuracy": 1.0}}, {})
    digits = DemoResult(HERE, {"finetuned": run}, (), HERE, 1.0)
    transfer = TransferResult(HERE, TransferClasses(("a",), ("b",)), (), 1, 1.0, 1.0)
    assert _get_other_command("fetch") == FetchResult(()).to_json().keys()
    assert _get_other_command("push") == pushed.to_json().keys()
    assert _get_other_command("report") == ReportResult(HERE, 1, ()).to_json().keys()
    assert _get_other_command("submit") == job.to_json().keys()
    assert _get_other_command("submit --verb predict") == prediction.to_json().keys()
    assert _get_other_command("demo") == digits.to_json().keys()
    assert _get_other_command("demo --data") == transfer.to_json().keys()
