"""The README of a model: a head that the hub's library reads, and text that names cannot change."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from typing import Any

import pytest
from markdown_it import MarkdownIt

from finetune.bundle.label_card import mark_fold_thresholds
from finetune.bundle.model_card import ModelCard
from finetune.bundle.model_page.render_page import render_ensemble_readme, render_readme
from finetune.types import PreprocessSpec
from tests.support.hub_repositories import read_page_head

SPEC = PreprocessSpec((3, 224, 224), (0.5,) * 3, (0.5,) * 3)
NASTY = (
    "a | b\n---\nlicense: mit",
    "<script>alert(1)</script>",
    "![x](http://evil/x.png) $x$ :smile: **b** `c`",
    "# 1. head\u202e",
)
EVALUATION: dict[str, Any] = {
    "num_images": 153,
    "accuracy_interval": [0.91, 0.98],
    "per_class": {
        "ants": {
            "support": 70, "recall": 0.9, "recall_interval": [0.8, 0.95], "precision": 0.97,
        },
        "bees": {"support": 83, "recall": 1.0, "recall_interval": [0.95, 1.0], "precision": None},
    },
}  # fmt: skip
FACTS: dict[str, Any] = {
    "weights": "hub (resnet18.a1_in1k)",
    "train_images": {"ants": 12, "bees": 240},
    "metrics": {"val": {"accuracy": 0.9542, "macro_f1": 0.95, "loss": float("nan")}},
    "evaluations": {"val": EVALUATION},
    "calibration": {
        "temperature": 0.8,
        "num_images": 153,
        "before": {"loss": 0.2, "calibration_error": 0.05},
        "after": {"loss": 0.19, "calibration_error": 0.031},
    },
    "data": {
        "num_images": {"train": 252, "val": 153, "test": 0},
        "num_rejected": 2,
        "size_px": {"width": [100, 448, 900], "height": [90, 500, 800]},
        "duplicates": {
            "num_groups": 3, "num_images": 7, "num_across_classes": 1, "num_across_splits": 0,
        },
        "suspicious_images": {"blurred": 4},
        "num_label_errors": 0,
    },
    "diagnosis": [
        {"severity": "warning", "title": "Too few", "sentence": "Only 153 images, *say*."}
    ],
}  # fmt: skip


def build_card(**changes: Any) -> ModelCard:
    card = ModelCard("resnet18", {}, ("ants", "bees"), SPEC, FACTS, temperature=0.8)
    return replace(card, **changes)


def build_named_card(names: tuple[str, ...]) -> ModelCard:
    stats = dict.fromkeys(names, EVALUATION["per_class"]["ants"])
    facts = {
        **FACTS,
        "train_images": dict.fromkeys(names, 3),
        "evaluations": {"val": {**EVALUATION, "per_class": stats}},
    }
    return build_card(classes=names, facts=facts)


def test_head_has_the_convention_of_the_hub_and_the_measured_values() -> None:
    head = read_page_head(render_readme(build_card()))
    assert head["library_name"] == "timm"
    assert head["pipeline_tag"] == "image-classification"
    assert head["base_model"] == "timm/resnet18.a1_in1k"
    assert head["license"] == "apache-2.0"
    assert "license_name" not in head
    assert "datasets" not in head
    assert head["metrics"] == ["accuracy", "f1"]
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"]["args"] == {"num_images": 153}
    assert result["dataset"]["split"] == "validation"
    accuracy, f1 = result["metrics"]  # a loss that is no number is left out
    assert (accuracy["type"], accuracy["value"]) == ("accuracy", 0.9542)
    assert accuracy["args"] == {"interval_95_percent": [0.91, 0.98]}
    assert (f1["type"], f1["name"]) == ("f1", "macro F1")


@pytest.mark.parametrize(
    ("facts", "base_model", "licence", "text"),
    [
        ({"weights": "hub (convnext_tiny.fb_in22k)"}, "timm/convnext_tiny.fb_in22k", "apache-2.0",
         "under the licence apache-2.0"),
        ({"weights": "hub (convnextv2_atto.fcmae)"}, "timm/convnextv2_atto.fcmae", "cc-by-nc-4.0",
         "allows no commercial use"),
        ({"weights": "hub (vit_small_patch16_dinov3.lvd1689m)"},
         "timm/vit_small_patch16_dinov3.lvd1689m", "dinov3-license", "dinov3-license"),
        ({"weights": "hub (hf-hub:some/one@main)"}, "some/one", "unknown", "licence is unknown"),
        ({"weights": "hub (x)", "base_model": "a/b", "weights_license": "My Licence 2!"}, "a/b",
         "my-licence-2", "My Licence 2!"),
        ({"weights": "/home/me/secret.pth"}, None, "unknown", "came from a file, whose licence is"),
        ({"weights": "random"}, None, "unknown", "trained from random weights"),
        ({}, None, "unknown", "licence is unknown"),
    ],
)  # fmt: skip
def test_licence_is_that_of_the_weights_of_the_backbone(
    facts: dict[str, Any], base_model: str | None, licence: str, text: str
) -> None:
    readme = render_readme(build_card(facts=facts))
    head = read_page_head(readme)
    assert head.get("base_model") == base_model
    if head["license"] == "other":
        assert head["license_name"] == licence
    else:
        assert head["license"] == licence
    assert text in readme
    assert "secret" not in readme


def test_sections_state_the_data_and_the_limits_in_numbers() -> None:
    readme = " ".join(render_readme(build_card(), repository="me/insects").split())
    for text in (
        "| val | accuracy | 0.9542 | 153; 91.0% to 98.0% |",
        "| 0 | ants | 12 | 70 | 90.0% | 80.0% to 95.0% | 97.0% |",
        "| 1 | bees | 240 | 83 | 100.0% | 95.0% to 100.0% | undefined |",
        "| after | 0.1900 | 3.1% |",
        "252 training and 153 validation images of 2 classes. 2 files could not be used and were",
        "7 images are duplicates of each other in 3 groups, 1 across classes.",
        "Suspicious images: 4 blurred. No label error was found",
        "Fewest training images: ants (12).",
        "Weakest class: ants, of which 90.0% of 70 validation images are recognised; 95% interval",
        "lies between 91.0% and 98.0% (95% interval), and differences of less than about 3.5",
        "The validation images also chose the temperature",
        "no guarantee for images unlike those of the training",
        "The network sees 224 x 224 px, without the outer 12.5%",
        "were reduced 1.8 times",
        r"Diagnosis of the run, warning: Too few: Only 153 images, \*say\*.",
        'timm.create_model("hf-hub:me/insects", pretrained=True)',
        "hf download me/insects",
    ):
        assert text in readme


def test_images_of_several_labels_are_counted_once() -> None:
    card = build_card(thresholds=(0.4, 0.6))
    assert card.is_multi_label
    assert card.num_train_images == 252
    more = build_card(
        thresholds=(0.4, 0.6), facts={**FACTS, "train_images": {"ants": 200, "bees": 240}}
    )
    assert more.num_train_images == 252
    unknown = build_card(thresholds=(0.4, 0.6), facts={"train_images": {"ants": 12, "bees": 240}})
    assert unknown.num_train_images is None
    assert "Trained on" not in render_readme(unknown)
    assert "Trained on 252 images." in render_readme(
        build_card(facts={"train_images": {"ants": 12, "bees": 240}})
    )
    assert "much of what a label can look like" in render_readme(card)


def test_classes_of_one_size_have_no_smallest() -> None:
    facts = {**FACTS, "train_images": {"ants": 40, "bees": 40}}
    assert "Fewest training images" not in render_readme(build_card(facts=facts))


def test_numbers_of_folds_are_not_those_of_the_model() -> None:
    facts = {**FACTS, "metrics": {"out_of_fold": {"accuracy": 0.95}},
             "evaluations": {"out_of_fold": EVALUATION}}  # fmt: skip
    text = "The model itself was not measured: no image of the run is new to it."
    assert text in render_readme(build_card(facts=facts))
    assert text not in render_readme(build_card())


def test_page_says_that_a_fitted_temperature_is_not_used() -> None:
    calibration = {
        **FACTS["calibration"], "temperature": 1.0, "fitted_temperature": 1.0714,
        "after": {"loss": 0.21, "calibration_error": 0.061},
    }  # fmt: skip
    readme = " ".join(
        render_readme(build_card(facts={**FACTS, "calibration": calibration})).split()
    )
    assert "A temperature of 1.07 was fitted to 153 validation images, and is not used:" in readme
    assert "| before | 0.2000 | 5.0% | | after | 0.2100 | 6.1% |" in readme
    assert "also chose" not in readme


@pytest.mark.parametrize("name", NASTY)
def test_names_are_text_in_head_and_page(name: str) -> None:
    names = (name, "bees")
    readme = render_readme(build_named_card(names))
    assert read_page_head(readme) == read_page_head(
        render_readme(build_named_card(("ants", "bees")))
    )
    body = readme.split("---\n", 2)[2]
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    for markup in ("<script", "<img", "<a ", "<strong", ":smile:", "$x$", "\u202e"):
        assert markup not in body
    for markup in ("<script", "<img", "<a ", "<strong", "<h1>1"):
        assert markup not in page
    cells = re.findall(r"<td>0</td>\n<td>(.*?)</td>\n<td>3</td>", page)
    assert [html.unescape(cell) for cell in cells] == [" ".join(name.split()).rstrip("\u202e")]


def test_page_of_many_classes_is_bounded_and_one_without_facts_is_valid() -> None:
    names = tuple(f"class {number}" for number in range(20_000))
    assert len(render_readme(build_named_card(names))) < 200_000
    readme = render_readme(build_card(facts={}))
    assert "model-index" not in read_page_head(readme)
    assert "| 1 | bees |" in readme


def test_page_of_multi_label_model_names_labels() -> None:
    stats = {"support": 9, "recall": 0.5, "precision": 0.5, "average_precision": 0.7}
    details = {"num_images": 9, "per_label": dict.fromkeys(("ants", "bees"), stats)}
    facts = {
        **FACTS,
        "metrics": {"test": {"mean_average_precision": 0.7}},
        "evaluations": {"test": details},
    }
    readme = render_readme(build_card(thresholds=(0.5, 0.25), facts=facts))
    head = read_page_head(readme)
    assert head["metrics"] == ["average_precision"]
    assert "| bees | 0.2500 |" in readme
    assert "Weakest label: ants, of which 50.0% of 9 test images are recognised." in readme


def test_page_of_a_fold_leaves_out_what_was_measured_at_other_thresholds() -> None:
    stats = {"support": 9, "recall": 0.5, "precision": 0.25, "f1": 0.3, "average_precision": 0.7}
    details = {"num_images": 9, "per_label": dict.fromkeys(("ants", "bees"), stats)}
    metrics = {"mean_average_precision": 0.7, "macro_f1": 0.3, "subset_accuracy": 0.2}
    facts = {**FACTS, "metrics": {"val": metrics}, "evaluations": {"val": details}}
    own = render_readme(build_card(thresholds=(0.5, 0.25), facts=facts))
    assert "The thresholds have the highest F1 on the validation images.\n" in own
    assert "| val | macro_f1 | 0.3000 |" in own
    marked = mark_fold_thresholds(facts)
    readme = render_readme(build_card(thresholds=(0.5, 0.25), facts=marked))
    assert "The thresholds have the highest F1 on the held-out images of the folds. " in readme
    assert "of this network were not measured at them." in readme
    assert "| val | mean_average_precision | 0.7000 |" in readme
    assert "macro_f1" not in readme
    assert "subset_accuracy" not in readme
    assert "Weakest label" not in readme
    assert "50.0%" not in readme
    assert facts["metrics"] == {"val": metrics}


def test_page_of_ensemble_has_a_head_and_escapes_names() -> None:
    cards = [build_named_card(NASTY), build_named_card(NASTY)]
    readme = render_ensemble_readme(cards[0], cards, (0.5, 0.5), repository="me/both")
    assert read_page_head(readme)["library_name"] == "finetune"
    assert read_page_head(readme)["model-index"][0]["name"] == "me/both"
    assert "<script" not in readme
    assert readme.count("under the licence apache-2.0") == 1
