"""Tests of reading facts of model cards that version 0.1 wrote."""

from typing import Any

from finetune.bundle.renamed_facts import rename_facts

STORED: dict[str, Any] = {
    "seed": 0,
    "train_images": {"ants": 123, "bees": 121},
    "mirrored": True,
    "mirrored_by": "augment.name=medium",
    "metrics": {"val": {"loss": 0.4}},
    "evaluations": {
        "val": {
            "prior": {"asked": None, "adjusted": False, "answers_are_for": "…", "shares": None},
            "num_images": 153,
            "rarest_third": {"classes": ["bees"], "by": "training images"},
            "means_are_over": {"macro_f1": 2},
            "per_class": {"ants": {"support": 70, "predicted": 71}, "bees": {"predicted": 82}},
        },
        "test": {"rarest_third": {"classes": ["bees"], "by": "images here"}},
    },
    "calibration": {"temperature": 1.0, "fitted": 1.2},
}
PRESENT: dict[str, Any] = {
    "seed": 0,
    "train_images": {"ants": 123, "bees": 121},
    "flipped": True,
    "flipped_by": "augment.name=medium",
    "metrics": {"val": {"loss": 0.4}},
    "evaluations": {
        "val": {
            "prior": {
                "requested": None,
                "adjusted": False,
                "target_prior": "…",
                "class_prior": None,
            },
            "num_images": 153,
            "rarest_third": {"classes": ["bees"], "ranked_by": "train_images"},
            "num_classes_averaged": {"macro_f1": 2},
            "per_class": {
                "ants": {"support": 70, "num_predicted": 71},
                "bees": {"num_predicted": 82},
            },
        },
        "test": {"rarest_third": {"classes": ["bees"], "ranked_by": "eval_images"}},
    },
    "calibration": {"temperature": 1.0, "fitted_temperature": 1.2},
}


def test_rename_facts_of_version_0_1_gives_present_names() -> None:
    assert rename_facts(STORED) == PRESENT


def test_rename_facts_keeps_present_names() -> None:
    assert rename_facts(PRESENT) == PRESENT
    assert rename_facts({}) == {}
    assert rename_facts({"calibration": None}) == {"calibration": None}
