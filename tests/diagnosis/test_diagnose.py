"""Rules of the diagnosis: each fires on made runs and is silent on runs that resemble them."""

import math
from dataclasses import replace

import pytest

from finetune.config.load import build_config, parse_assignments
from finetune.diagnosis.diagnose import ACCUSATIONS, RULES, diagnose, diagnose_folds
from finetune.diagnosis.evidence import Curves, EpochRow, RunEvidence
from finetune.diagnosis.finding import SEVERITIES
from tests.diagnosis.cases import FIRING, SILENT
from tests.diagnosis.made_faults import (
    create_divergence,
    create_explosion,
    create_label_scores,
)
from tests.diagnosis.made_runs import SETTINGS, create_good_run

_RULE_OF = {rule.name: rule for rule in RULES}
_FIRING = [(name, run) for name, runs in FIRING.items() for run in runs]
_SILENT = [(name, run) for name, runs in SILENT.items() for run in runs]


def test_each_rule_has_made_runs_of_both_kinds() -> None:
    assert FIRING.keys() == SILENT.keys() == _RULE_OF.keys()


@pytest.mark.parametrize(("name", "run"), _FIRING)
def test_rule_fires_with_its_numbers_and_an_option_that_exists(name: str, run: RunEvidence) -> None:
    finding = _RULE_OF[name].find(run)

    assert finding is not None
    assert finding.rule == name
    assert finding.severity in SEVERITIES
    assert finding.numbers
    assert finding.sentence.endswith(".")
    assert any(letter.isdigit() for letter in finding.sentence)
    if finding.severity in ACCUSATIONS:
        assert finding.remedy
    if finding.option:
        assert finding.remedy.endswith(":")
        key = finding.option.partition("=")[0]
        config = build_config({}, assignments=parse_assignments([finding.option]))
        section, _, field = key.partition(".")
        assert getattr(getattr(config, section), field) != "auto"
    else:
        assert not finding.remedy.endswith(":")


@pytest.mark.parametrize(("name", "run"), _SILENT)
def test_rule_is_silent_on_a_run_without_its_fault(name: str, run: RunEvidence) -> None:
    assert _RULE_OF[name].find(run) is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_is_silent_without_any_numbers(rule: object) -> None:
    assert _RULE_OF[rule.name].find(RunEvidence()) is None  # type: ignore[attr-defined]


def test_good_run_has_one_good_finding() -> None:
    (finding,) = diagnose(create_good_run())

    assert (finding.rule, finding.severity, finding.title) == ("good_fit", "good", "Good fit")
    assert finding.numbers["val_accuracy"] == pytest.approx(187 / 200)


def test_findings_are_ordered_by_severity_and_omit_what_follows() -> None:
    (run,) = (one for one in FIRING["exploded_loss"][:1])
    findings = diagnose(run)

    assert findings[0].rule == "exploded_loss"
    assert "fall_from_probe" not in {finding.rule for finding in findings}
    order = [SEVERITIES.index(finding.severity) for finding in findings]
    assert order == sorted(order)


@pytest.mark.parametrize(("name", "run"), _FIRING)
def test_findings_of_any_run_are_json_without_a_good_one_beside_a_fault(
    name: str, run: RunEvidence
) -> None:
    findings = diagnose(run)
    severities = {finding.severity for finding in findings}

    assert not ({"good"} & severities and set(ACCUSATIONS) & severities)
    for finding in findings:
        tree = finding.to_json()
        assert tree["rule"] == finding.rule
        assert all(isinstance(value, int | float | str) for value in tree["numbers"].values())


def test_divergence_names_its_place_and_a_rate_that_is_lower_the_earlier_it_came() -> None:
    early, late = (diagnose(create_divergence(epoch=epoch)) for epoch in (1, 2))

    assert [finding.rule for finding in early] == ["diverged"]
    assert [finding.rule for finding in late] == ["diverged"], "no exploded_loss, no rate_too_low"
    assert early[0].numbers["epoch"] == 1
    assert early[0].numbers["step"] == 3
    assert early[0].numbers["learning_rate"] == 0.5
    rate = SETTINGS["optim.lr"]
    for finding, factor in ((early[0], 0.01), (late[0], 0.1)):
        key, _, value = finding.option.partition("=")
        assert key == "optim.lr"
        assert float(value) == pytest.approx(factor * rate)


@pytest.mark.parametrize("run", [create_divergence(), create_explosion(50.0, 50.0)])
def test_rate_of_the_user_that_is_far_too_high_after_a_probe_is_left_to_be_measured(
    run: RunEvidence,
) -> None:
    def find(measured: frozenset[str], probe: str) -> tuple[str, str]:
        settings = {**run.settings, "probe.enabled": probe}
        finding = diagnose(replace(run, measured=measured, settings=settings))[0]
        return finding.remedy, finding.option

    assert find(frozenset(), "on") == ("Let a new run measure the learning rate:", "optim.lr=auto")
    remedy, option = find(frozenset(), "off")
    assert remedy == "Lower the learning rate:"
    assert option.startswith("optim.lr=0.")
    assert find(frozenset({"optim.lr"}), "on")[1].startswith("optim.feature_change=")


def test_divergence_in_the_first_step_does_not_blame_the_rate() -> None:
    (full,) = diagnose(create_divergence(epoch=1, step=1))
    settings = {"trainer.precision": "16-mixed"}
    (half,) = diagnose(create_divergence(epoch=1, step=1, **settings))

    assert "rate" not in full.title
    assert full.option == ""
    assert half.option == "trainer.precision=32-true"


@pytest.mark.parametrize("num_images", [20, 60, 200, 1000])
@pytest.mark.parametrize("accuracy", [0.6, 0.8, 0.95])
def test_small_validation_follows_the_width_of_the_interval(
    num_images: int, accuracy: float
) -> None:
    from tests.diagnosis.made_runs import create_validation

    half = num_images // 2
    hits = round(accuracy * half)
    run = create_good_run(validation=create_validation(supports=[half, half], correct=[hits, hits]))
    # Wald's interval, of nearly the same width for so many images
    p = hits / half
    width = 2 * 1.96 * math.sqrt(p * (1 - p) / num_images)
    finding = _RULE_OF["small_validation"].find(run)

    if abs(width - 0.2) > 0.03:
        assert (finding is not None) == (width > 0.2)


def test_multi_label_run_is_judged_by_images_that_are_right_in_all_labels() -> None:
    def rename(row: EpochRow) -> EpochRow:
        val, train = dict(row.val), dict(row.train_eval)
        val["subset_accuracy"], train["subset_accuracy"] = (
            val.pop("accuracy"),
            train.pop("accuracy"),
        )
        return replace(row, val=val, train_eval=train)

    def to_multi_label(run: RunEvidence) -> RunEvidence:
        assert run.validation is not None
        assert run.curves.probe is not None
        rows = tuple(map(rename, run.curves.epochs))
        return replace(
            run,
            curves=replace(run.curves, probe=rename(run.curves.probe), epochs=rows),
            validation=replace(
                run.validation,
                num_correct=None,
                confusion=(),
                label_noise=None,
                metrics={"mean_average_precision": 0.9},
            ),
            data=replace(run.data, is_multi_label=True),
        )

    (good,) = diagnose(to_multi_label(create_good_run()))
    assert good.numbers["mean_average_precision"] == 0.9
    fallen = diagnose(to_multi_label(FIRING["fall_from_probe"][0]))
    assert [finding.rule for finding in fallen] == ["fall_from_probe"]
    assert fallen[0].sentence.startswith("Validation subset accuracy fell from ")


def test_option_of_an_easier_validation_applies_to_multi_label_images() -> None:
    finding = _RULE_OF["easier_validation"].find(create_label_scores(0.7, 0.95))
    assert finding is not None
    assert finding.option == "cross_validation.num_folds=5"
    assert finding.sentence.startswith(
        "The mean average precision of 200 validation images is 95.0%, but that of 200 training "
        "images that are measured alike only 70.0%: at least "
    )
    assert finding.numbers["val_mean_average_precision"] == 0.95


def test_small_validation_of_multi_label_images_names_a_cross_validation() -> None:
    finding = _RULE_OF["small_validation"].find(create_label_scores(0.8, 0.75, num_images=40))
    assert finding is not None
    assert finding.sentence.startswith(
        "The mean average precision of 40 validation images is 75.0%, and may be anything from "
    )
    assert finding.numbers["mean_average_precision"] == 0.75
    assert finding.option == "cross_validation.num_folds=5"
    assert finding.remedy == "Let each image be validated once by a cross-validation:"


@pytest.mark.parametrize(
    ("num_leaked", "severity"), [(1, "info"), (15, "warning"), (90, "problem")]
)
def test_leaks_of_multi_label_images_are_judged_by_the_interval(
    num_leaked: int, severity: str
) -> None:
    run = create_label_scores(0.95, 0.9)
    finding = _RULE_OF["leaks"].find(replace(run, data=replace(run.data, num_leaked=num_leaked)))
    assert finding is not None
    assert finding.severity == severity
    assert "the mean average precision is too high." in finding.sentence


@pytest.mark.parametrize("name", ["small_validation", "easier_validation"])
def test_folds_are_not_told_to_cross_validate(name: str) -> None:
    run = FIRING[name][0]
    fold = replace(run, settings={**run.settings, "cross_validation.num_folds": 5})
    before, after = (_RULE_OF[name].find(one) for one in (run, fold))
    assert before is not None
    assert after is not None
    assert (before.option, after.option) == ("cross_validation.num_folds=5", "")
    assert after.remedy.endswith(".")


def test_fault_of_most_folds_is_one_of_the_cross_validation() -> None:
    good, fallen = create_good_run(), FIRING["fall_from_probe"][0]
    whole = replace(good, curves=Curves())
    few = diagnose_folds(whole, [diagnose(run) for run in (good, good, fallen)])
    most = diagnose_folds(whole, [diagnose(run) for run in (good, fallen, fallen)])

    assert "fall_from_probe" not in {finding.rule for finding in few}
    assert most[0].rule == "fall_from_probe"
    assert most[0].title.endswith("(2 of 3 folds)")
    # each fold has few validation images, all together have enough
    small = diagnose(FIRING["small_validation"][0])
    assert not diagnose_folds(whole, [small] * 3)


def test_remedy_without_an_option_that_applies_is_a_sentence() -> None:
    run = FIRING["label_errors"][0]
    hinge = replace(run, settings={**run.settings, "loss.name": "hinge"})
    finding = _RULE_OF["label_errors"].find(hinge)

    assert finding is not None
    assert finding.option == ""
    assert finding.remedy.endswith("every label.")


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({}, "model.batch_norm=train"),
        ({"model.batch_norm": "frozen"}, "model.batch_norm=train"),
        ({"model.batch_norm": "train", "model.weights": "random"}, "model.weights=hub"),
        ({"model.batch_norm": "train", "model.weights": "hub"}, ""),
        (
            {"model.batch_norm": "train", "model.weights": "random", "model.backbone": "own:net"},
            "",
        ),
    ],
)
def test_vanishing_gradients_suggest_what_the_run_does_not_have(
    settings: dict[str, str], option: str
) -> None:
    run = FIRING["vanishing_gradients"][0]
    finding = _RULE_OF["vanishing_gradients"].find(
        replace(run, settings={**run.settings, **settings})
    )

    assert finding is not None
    assert finding.option == option
    assert finding.remedy.endswith(":" if option else ".")
