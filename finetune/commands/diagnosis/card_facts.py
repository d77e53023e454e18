"""Facts that the end of a run adds to its model card: its images, its diagnosis, and choices.

They are numbers and names of classes, without names of files: a card is published with its model.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.bundle.card_update import add_card_facts
from finetune.bundle.ensemble_card import is_ensemble
from finetune.bundle.model_card import ModelCard, read_card_json
from finetune.bundle.model_page.data_paragraph import DATA_KEY
from finetune.bundle.model_page.limits_section import DIAGNOSIS_KEY
from finetune.bundle.validation_choices import list_validation_choices
from finetune.commands.diagnosis.fit_diagnosis import read_diagnosis
from finetune.commands.report.run_files import read_audit
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.data.manifest import Manifest
from finetune.diagnosis.diagnose import ACCUSATIONS
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter, Split


def record_card_facts(run: RunFolder, *, reporter: Reporter) -> None:
    """Add to the card of a run's bundle what was found on its images and on the run.

    Any failure is a warning: the model is complete.

    Args:
        run: Run folder with its bundle and diagnosis.
        reporter: Receiver of the warning.
    """
    try:
        add_card_facts(run.bundle_dir, _build_facts(run))
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".") or repr(error)
        reporter.warn(
            f"The audit and the diagnosis are not on the model card: {reason}. The model is "
            f"complete."
        )


def _build_facts(run: RunFolder) -> dict[str, Any]:
    manifest = read_stored_manifest(run, read_stored_config(run))
    facts: dict[str, Any] = {}
    if (audit := read_audit(run)) is not None:
        facts[DATA_KEY] = describe_images(audit, manifest)
    findings = read_diagnosis(run)
    if findings is not None:
        names = {Path(sample.path).name for sample in manifest.samples}
        facts[DIAGNOSIS_KEY] = [
            _describe_finding(one, names) for one in findings if one["severity"] in ACCUSATIONS
        ]
    tree = read_card_json(run.bundle_dir)
    if not is_ensemble(tree):
        choices = list_validation_choices([ModelCard.from_json(tree)])
        facts["validation_choices"] = list(choices)
    return facts


def describe_images(audit: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Return the number of images and the findings of their audit, as counts.

    Args:
        audit: Content of ``audit.json``.
        manifest: Images of the run.
    """
    counts = {split.value: len(manifest.get_samples(split)) for split in Split}
    sizes = audit["size_quantiles"]
    groups = audit["duplicates"]
    errors = audit["label_errors"]
    return {
        "num_images": counts,
        "num_rejected": len(audit["unreadable"]),
        "size_px": {
            side: [values[0], values[len(values) // 2], values[-1]]
            for side, values in sizes.items()
            if side in ("width", "height")
        }
        or None,
        "duplicates": None
        if groups is None
        else {
            "num_groups": len(groups),
            "num_images": sum(len(group["paths"]) for group in groups),
            "num_across_classes": sum("classes" in group["conflicts"] for group in groups),
            "num_across_splits": sum("splits" in group["conflicts"] for group in groups),
        },
        "suspicious_images": dict(Counter(one["kind"] for one in audit["suspicious_images"])),
        "num_label_errors": None if errors is None else len(errors),
    }


def _describe_finding(finding: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Return a finding for a card; without its sentence if that names image files."""
    sentence = str(finding["sentence"])
    has_files = any(name in sentence for name in names)
    return {
        "rule": finding["rule"],
        "severity": finding["severity"],
        "title": finding["title"],
        "sentence": "" if has_files else sentence,
    }
