"""Tests of the sections with photos: which images they choose, and what they say of them."""

from dataclasses import replace
from typing import Any

import numpy as np

from finetune.report.page import render_report
from finetune.report.photos.photo_facts import PhotoFacts
from finetune.report.run_facts import RunFacts
from finetune.report.sections.photos.duplicates_section import NUM_IMAGES, build_duplicates
from finetune.report.sections.photos.mistakes_section import NUM_SHOWN, build_mistakes
from finetune.report.sections.photos.pairs_section import build_pairs
from tests.support.reports import build_predictions

PICTURE = "data:image/webp;base64,AAAA"


def build_facts(target: Any, table: Any, **fields: Any) -> RunFacts:
    """Return facts of a run with classes a, b and c, whose pictures are all missing."""
    base = RunFacts(
        name="run",
        path="runs/run",
        card={"facts": {"metrics": {"val": {"accuracy": 0.5}}}},
        classes=("a", "b", "c"),
        predictions={"val": build_predictions(np.array(target), table)},
        photos=PhotoFacts(),
    )
    return replace(base, **fields)


def test_worst_mistakes_are_those_of_the_largest_loss() -> None:
    table = [[0.3, 0.6, 0.1], [0.01, 0.09, 0.9], [0.98, 0.01, 0.01], [0.3, 0.35, 0.35]]
    audit = {"label_errors": [{"path": "1.png", "label": "a", "predicted_label": "c"}]}
    section = build_mistakes(build_facts([0, 0, 0, 2], table, audit=audit))
    assert section is not None
    assert section.num_wrong == 3
    assert [card.path for card in section.worst] == ["1.png", "0.png", "3.png"]
    assert section.worst[0].lines == (("true", "a 1%"), ("predicted", "c 90%"))
    assert section.worst[0].hint == "Label to check: the audit expects c."
    assert section.worst[1].hint == ""
    assert [card.path for card in section.uncertain][:2] == ["3.png", "0.png"]
    certain = section.uncertain[-1]
    assert certain.path == "2.png"
    assert not certain.is_wrong
    assert certain.lines == (("true", "a 98%"), ("then", "b 1%"))


def test_mistakes_are_limited_and_survive_a_perfect_network() -> None:
    many = np.tile([0.2, 0.8, 0.0], (50, 1))
    section = build_mistakes(build_facts([0] * 50, many))
    assert section is not None
    assert len(section.worst) == NUM_SHOWN
    perfect = build_facts([1] * 50, many)
    section = build_mistakes(perfect)
    assert section is not None
    assert section.worst == ()
    assert "No validation image is wrong." in render_report(perfect, version="1")
    assert build_pairs(perfect) is None


def test_mistakes_of_several_labels_name_the_missed_and_the_added() -> None:
    target = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]], np.float32)
    table = [[0.9, 0.1, 0.7], [0.2, 0.1, 0.1], [0.1, 0.1, 0.62]]
    card = {"facts": {"metrics": {"val": {}}}, "thresholds": [0.5, 0.5, 0.6]}
    section = build_mistakes(build_facts(target, table, card=card))
    assert section is not None
    assert [one.path for one in section.worst] == ["0.png"]
    assert section.worst[0].lines == (("missed", "b 10%"), ("added", "c 70%"), ("right", "a 90%"))
    assert section.uncertain[0].lines == (
        ("label", "c 62.0%"), ("threshold", "60.0%"), ("true", "yes"),
    )  # fmt: skip


def test_mistakes_of_folds_are_judged_at_the_thresholds_of_each_image() -> None:
    target = np.array([[1, 0, 0], [1, 0, 0]])
    table = [[0.4, 0.1, 0.1], [0.4, 0.1, 0.1]]
    limits = np.array([[0.39, 0.5, 0.5], [0.45, 0.5, 0.5]])  # those of two folds
    found = replace(build_predictions(target, table), thresholds=limits)
    card = {"facts": {"metrics": {"val": {}}}, "thresholds": [0.2, 0.2, 0.2]}
    section = build_mistakes(build_facts(target, table, card=card, predictions={"val": found}))
    assert section is not None
    assert [one.path for one in section.worst] == ["1.png"]
    assert section.worst[0].lines == (("missed", "a 40%"),)
    shown = {one.path: one.lines[1] for one in section.uncertain}
    assert shown == {"0.png": ("threshold", "39.0%"), "1.png": ("threshold", "45.0%")}


def test_pairs_show_both_directions_with_the_most_certain_mistakes_first() -> None:
    table = [[0.4, 0.6, 0], [0.1, 0.9, 0], [0.8, 0.2, 0], [0.9, 0, 0.1], [0, 0.1, 0.9]]
    section = build_pairs(build_facts([0, 0, 1, 2, 2], table))
    assert section is not None
    assert [pair.names for pair in section.pairs] == [("a", "b"), ("a", "c")]
    there, back = section.pairs[0].directions
    assert (there.label, there.predicted, there.count, there.num_class) == ("a", "b", 2, 2)
    assert [card.path for card in there.cards] == ["1.png", "0.png"]
    assert [card.path for card in back.cards] == ["2.png"]
    (only,) = section.pairs[1].directions
    assert (only.label, only.num_class) == ("c", 2)


def test_duplicates_show_leaks_first_and_the_images_that_conflict() -> None:
    group = {"kind": "near", "conflicts": [], "paths": ["x", "y"], "labels": ["a", "a"]}
    leak = {
        "kind": "exact",
        "conflicts": ["splits"],
        "paths": [f"{number}.png" for number in range(6)],
        "labels": ["a"] * 6,
        "splits": ["train"] * 5 + ["val"],
    }
    audit = {"duplicates": [{**group, "splits": [None, None]}, leak]}
    photos = PhotoFacts(thumbnails={"0.png": PICTURE}, unreadable={"5.png": "file not found"})
    facts = build_facts([0], [[1, 0, 0]], audit=audit, photos=photos)
    section = build_duplicates(facts)
    assert section is not None
    assert (section.num_groups, section.num_leaks, section.num_conflicts) == (2, 1, 0)
    first = section.groups[0]
    assert first.title == "Identical files in several splits"
    assert [card.path for card in first.cards[:2]] == ["0.png", "5.png"]
    assert len(first.cards) == NUM_IMAGES
    assert first.num_hidden == 2
    page = render_report(facts, version="1")
    assert f'<img src="{PICTURE}" alt="0.png, class: a, split: training"' in page
    assert "<span>file not found</span>" in page


def test_names_of_files_and_classes_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    facts = build_facts([0, 1], [[0.1, 0.9, 0], [0.9, 0.1, 0]], classes=(evil, "b", "c"))
    page = render_report(facts, version="1")
    assert evil not in page
    assert "&lt;script&gt;alert(1)" in page
