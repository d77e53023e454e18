"""Tests of the settings that apply to multi-label images, and of those that do not."""

import re
from typing import Any

import pytest

from finetune.config.auto import choose_auto_values
from finetune.config.facts import Facts
from finetune.config.load import build_config, replace_values
from finetune.config.multi_label import LABEL_LOSSES, resolve_task
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.losses import MULTI_LABEL_LOSSES
from finetune.units import format_yaml_value


def resolve(*, is_multi_label: bool = True, **settings: Any) -> Config:
    facts = Facts(
        class_counts=[60, 6, 30],
        is_pretrained=True,
        num_groups=6,
        image_size=32,
        has_fast_bf16=False,
        free_cores=1,
        multi_label_images=80 if is_multi_label else None,
    )
    config = build_config({}, assignments={k.replace("__", "."): v for k, v in settings.items()})
    chosen = choose_auto_values(config, facts)
    config = replace_values(config, {key: choice.value for key, choice in chosen.items()})
    return resolve_task(config, facts)


def test_facts_count_images_and_not_labels() -> None:
    facts = Facts([60, 6, 30], True, 6, 32, False, 1, multi_label_images=80)
    assert facts.num_images == 80
    assert facts.imbalance_ratio == 10


def test_multi_label_images_have_their_own_defaults() -> None:
    config = resolve()
    assert config.loss.name == "bce"
    assert config.trainer.monitor == "mean_average_precision"
    assert config.checkpoint.monitor == "calibrated_loss"
    assert config.imbalance.strategy == "none"  # post_hoc at this ratio for one class per image
    assert resolve(is_multi_label=False).imbalance.strategy == "post_hoc"


@pytest.mark.parametrize(
    "settings", [{"loss__name": "asymmetric"}, {"imbalance__strategy": "class_weights"}]
)
def test_losses_that_distort_probabilities_do_not_select_by_log_loss(
    settings: dict[str, Any],
) -> None:
    assert resolve(**settings).checkpoint.monitor == "mean_average_precision"


@pytest.mark.parametrize(
    "settings",
    [
        {"loss__name": "asymmetric"},
        {"loss__name": "my_package.losses:own"},
        {"imbalance__strategy": "class_weights"},
        {"imbalance__class_weights": "balanced"},
        {"trainer__monitor": "micro_f1"},
        {"checkpoint__monitor": "subset_accuracy"},
        {"trainer__monitor": "macro_f1"},
    ],
)
def test_settings_that_apply_to_multi_label_images(settings: dict[str, Any]) -> None:
    config = resolve(**settings)
    for key, value in settings.items():
        section, _, name = key.partition("__")
        assert getattr(getattr(config, section), name) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("loss.name", name) for name in ("cross_entropy", "focal", "logit_adjusted", "ldam")),
        *(
            ("imbalance.strategy", name)
            for name in ("weighted", "post_hoc", "crt", "ldam_drw", "focal", "drw")
        ),
        ("imbalance.sampler", "weighted"),
        ("imbalance.sampler", "my_package:sampler"),
        ("imbalance.class_weights", "effective_number"),
        ("imbalance.head_rebalancing", "tau_norm"),
        ("trainer.monitor", "accuracy"),
        ("checkpoint.monitor", "balanced_accuracy"),
        ("augment.rare_class_preset", "strong"),
        ("probe.depth", 2),
        ("probe.stages", "on"),
    ],
)
def test_settings_that_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{key}={value} cannot apply to multi-label images"):
        resolve(**{key.replace(".", "__"): value})


def test_auto_compares_no_heads_on_earlier_stages() -> None:
    assert resolve().probe.stages == "off"
    assert resolve(is_multi_label=False).probe.stages == "on"


def test_two_corrections_of_the_same_imbalance_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"class_weights=balanced cannot apply.*asymmetric"):
        resolve(loss__name="asymmetric", imbalance__strategy="class_weights")


@pytest.mark.parametrize(
    ("key", "value"),
    [("loss.name", "bce"), ("loss.name", "asymmetric"), ("trainer.monitor", "micro_f1")],
)
def test_settings_of_multi_label_images_are_refused_for_one_class(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}={value} cannot apply to images of one class"):
        resolve(is_multi_label=False, **{key.replace(".", "__"): value})


def test_label_columns_of_one_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="label_columns=a,b cannot apply to task=single_label"):
        build_config({}, assignments={"data.label_columns": "a,b", "data.task": "single_label"})
    with pytest.raises(ConfigError, match="names a column twice"):
        build_config({}, assignments={"data.label_columns": "a,A"})
    assert build_config({"data": {"label_columns": ["a", "b"]}}).data.label_format.columns == (
        "a",
        "b",
    )


def test_names_of_losses_are_those_of_the_table() -> None:
    assert LABEL_LOSSES == MULTI_LABEL_LOSSES


@pytest.mark.parametrize("found", [None, True, 1.5, ["a"]])
def test_label_columns_that_yaml_reads_as_no_text_are_refused(found: object) -> None:
    message = f"data.label_columns: found {format_yaml_value(found)} in the list"
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_config({"data": {"label_columns": ["a", found]}})
    config = build_config({"data": {"label_columns": ["a", 1]}})
    assert config.data.label_format.columns == ("a", "1")
