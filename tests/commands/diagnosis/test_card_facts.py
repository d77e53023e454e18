"""Facts on the model card of a finished run: its images, its diagnosis, and choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.bundle.bundle import load_model
from finetune.bundle.card_update import add_card_facts
from finetune.bundle.ensemble import save_ensemble
from finetune.bundle.model_card import read_card_json
from finetune.commands.diagnosis.card_facts import _describe_finding
from tests.support.hub_repositories import read_page_head

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


def test_card_of_a_run_has_its_images_diagnosis_and_choices_without_file_names(
    trained: FitResult, insects: Path
) -> None:
    facts = load_model(trained.run_dir).card.facts
    counts = facts["data"]["num_images"]
    assert sum(counts.values()) == 38
    assert counts == {s: trained.plan["data"]["num_images"][s] for s in ("train", "val", "test")}
    assert facts["data"]["size_px"] == {"width": [40.0] * 3, "height": [36.0] * 3}
    assert facts["data"]["num_rejected"] == 0
    stored = json.loads((trained.run_dir / "diagnosis.json").read_text(encoding="utf-8"))
    wrong = [f["rule"] for f in stored["findings"] if f["severity"] in ("problem", "warning")]
    assert wrong  # so few images: the validation set is too small
    assert [finding["rule"] for finding in facts["diagnosis"]] == wrong
    assert isinstance(facts["validation_choices"], list)
    text = (trained.run_dir / "bundle" / "finetune.json").read_text(encoding="utf-8")
    assert str(insects) not in text
    assert not [file.name for file in insects.rglob("*.png") if file.name in text]
    readme = (trained.run_dir / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "images of 3 classes. Their size is 40 to 40 px in width" in readme
    assert read_page_head(readme)["license"] == "other"


def test_findings_that_name_image_files_lose_their_sentence() -> None:
    finding = {"rule": "r", "severity": "warning", "title": "T", "sentence": "Such as a/b 1.png."}
    assert _describe_finding(finding, {"b 1.png"})["sentence"] == ""
    assert _describe_finding(finding, {"c.png"})["sentence"] == "Such as a/b 1.png."


def test_facts_are_added_to_the_card_of_an_ensemble(trained: FitResult, tmp_path: Path) -> None:
    save_ensemble([trained.run_dir, trained.run_dir], tmp_path / "both")
    add_card_facts(tmp_path / "both", {"data": {"num_images": {"train": 7}, "duplicates": None}})
    assert load_model(tmp_path / "both").card.facts["data"]["num_images"] == {"train": 7}
    readme = (tmp_path / "both" / "README.md").read_text(encoding="utf-8")
    assert "7 training images of 3 classes." in readme
    assert read_card_json(tmp_path / "both")["kind"] == "ensemble"
