"""Which labels of a data set are probably wrong, by what a pretrained backbone says."""

from dataclasses import replace

from finetune.build import build_training
from finetune.config.load import replaced
from finetune.config.schema import Config
from finetune.data.audit import LabelSuspect, label_suspects
from finetune.data.findings import add_labels
from finetune.data.manifest import Manifest
from finetune.machine import process_device
from finetune.run_folder import RunFolder
from finetune.storage import write_text
from finetune.training.probe import Probe, out_of_fold
from finetune.types import Reporter, Split


def doubtful(config: Config, manifest: Manifest, reporter: Reporter) -> tuple[LabelSuspect, ...]:
    """Return the images whose label is in doubt, the most doubtful first.

    Each is judged by a head that was fitted to the others' features, which are kept for later runs.

    Args:
        config: The backbone, its weights and how it is asked.
        manifest: The images; their splits do not matter.
        reporter: Told of the progress.

    Raises:
        FinetuneError: Anything that the user can mend.
    """
    alone = {"unfreeze.name": "linear_probe", "probe.enabled": "on", "probe.views": 0}
    alone |= {"trainer.devices": 1, "trainer.num_nodes": 1}
    samples = tuple(replace(sample, split=Split.TRAIN) for sample in manifest.samples)
    training = build_training(replaced(config, alone), replace(manifest, samples=samples))
    assert training.probe is not None, "asked for"
    judged, beliefs = out_of_fold(
        training.module.classifier,
        training.probe,
        device=process_device(training.config.trainer.accelerator, 0),
        reporter=reporter,
    )
    seen = [samples[row] for row in judged.tolist()]
    return label_suspects(seen, manifest.classes, beliefs.numpy())


def note_labels(run: RunFolder, manifest: Manifest, found: Probe, reporter: Reporter) -> None:
    """Put down which labels the probe holds to be wrong, beside what else was found."""
    samples = [*manifest.of(Split.TRAIN), *manifest.of(Split.VAL)]
    judged = [samples[row] for row in found.judged.tolist()]
    doubts = label_suspects(judged, manifest.classes, found.beliefs.numpy())
    try:
        audit, findings = add_labels(
            run.audit.read_text(encoding="utf-8"), run.findings.read_text(encoding="utf-8"), doubts
        )
    except (OSError, ValueError):  # of an earlier release, or somebody has changed it
        return
    write_text(run.audit, audit)
    write_text(run.findings, findings)
    if doubts:
        first = doubts[0]
        reporter.note(
            f"{len(doubts)} labels are in doubt, the most doubtful first in {run.findings} (as "
            f"{first.path}: rather {first.likely}, {first.likely_probability:.2f} against "
            f"{first.probability:.2f})."
        )
