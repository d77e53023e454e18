"""What a pretrained backbone finds wrong in a data set: labels in doubt, and cut copies."""

import shlex
from collections.abc import Sequence
from dataclasses import replace

from finetune.audit.audit import CopyGroup, LabelSuspect, label_suspects
from finetune.audit.duplicate_cache import know_copies, known_crops
from finetune.audit.duplicate_groups import noted_copies, with_copies, with_further_copies
from finetune.audit.leakage import describe_leaks, describe_rest, leaked
from finetune.audit.report import amended
from finetune.builders import Training, build_training
from finetune.commands.prepare_data import Inspected, seen_of
from finetune.config.load import replaced
from finetune.config.schema import Config
from finetune.data.manifest import Manifest, write_manifest
from finetune.errors import DataError
from finetune.probe.linear_probe import Probe
from finetune.probe.out_of_fold import out_of_fold
from finetune.system.files import write_text
from finetune.system.hardware import process_device
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter, Sample, Split


def asked(
    config: Config, found: Inspected, reporter: Reporter
) -> tuple[Inspected, tuple[LabelSuspect, ...]]:
    """Return images with the copies that a backbone adds, and the labels that it doubts.

    The copies are known to later runs on the same images, as if they had looked for them. Each
    label is judged by a head that was fitted to the others' features, which are kept for later
    runs; the most doubtful comes first.

    Args:
        config: The backbone, its weights and how it is asked.
        found: The images; their splits do not matter.
        reporter: Told of the progress.

    Raises:
        FinetuneError: Anything that the user can mend.
    """
    alone = {"unfreeze.name": "linear_probe", "probe.enabled": "on", "probe.views": 0}
    alone |= {"trainer.devices": 1, "trainer.num_nodes": 1}
    samples = tuple(replace(sample, split=Split.TRAIN) for sample in found.samples)
    classes = tuple(sorted({sample.label for sample in samples}))
    training = build_training(replaced(config, alone), Manifest(found.root, classes, samples))
    assert training.probe is not None, "asked for"
    said = out_of_fold(
        training.module.classifier,
        training.probe,
        device=process_device(training.config.trainer.accelerator, 0),
        reporter=reporter,
    )
    judged = [found.samples[row] for row in said.rows.tolist()]
    reporter.start("looking for cut copies", len(samples))
    copies = known_crops(
        found.looks,
        [found.root / sample.path for sample in samples],
        found.copies or (),
        [said.features],
        made_by=said.features.made_by,
        on_searched=reporter.advance,
    )
    reporter.finish()
    know_copies(found.looks, copies)  # for whoever asked will want to act on it
    more = replace(found, copies=copies, samples=with_copies(found.samples, copies))
    return more, label_suspects(judged, classes, said.beliefs.numpy())


def note_findings(run: RunFolder, training: Training, probe: Probe, reporter: Reporter) -> None:
    """Put down what the probe's features tell of training and validation images, and say it.

    Labels in doubt and cut copies stand beside what else was found. The manifest notes the copies,
    so that validation is measured without those that train, too; the splits stay as they are.

    Raises:
        DataError: A copy leaks, and ``data.leaks`` is "error".
    """
    manifest = training.manifest
    samples = [*manifest.of(Split.TRAIN), *manifest.of(Split.VAL)]
    doubts = label_suspects(
        [samples[row] for row in probe.judged.tolist()], manifest.classes, probe.beliefs.numpy()
    )
    more = _with_crops(training, samples, probe, reporter)
    groups = _grown(manifest, more)
    is_written = _amend(run, doubts, groups)
    where = f", the most doubtful first in {run.findings}" if is_written else ""
    _tell_of_doubts(doubts, where, reporter)
    if groups:
        _tell_of_crops(training.config, manifest, more, len(groups), reporter)
        # at last: what it holds is no longer news to a run that goes on
        write_text(run.manifest, write_manifest(more))


def _amend(run: RunFolder, doubts: Sequence[LabelSuspect], groups: Sequence[CopyGroup]) -> bool:
    """Write what was found beside the rest; tell whether there is a place for it."""
    try:
        audit, findings = amended(
            run.audit.read_text(encoding="utf-8"), labels=doubts, copies=groups
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # of an earlier release, or somebody has changed it
    write_text(run.audit, audit)
    if not run.findings.is_file():  # whoever removed it does not want it
        return False
    write_text(run.findings, findings)
    return True


def _with_crops(
    training: Training, samples: Sequence[Sample], probe: Probe, reporter: Reporter
) -> Manifest:
    """Return a run's images with the copies that features add."""
    config, manifest = training.config, training.manifest
    if config.data.leaks == "ignore":
        return manifest
    good, looks, _ = seen_of(config, manifest.root, samples, reporter=reporter)
    if len(good) < len(samples):  # one has changed meanwhile; whoever needs it will say so
        return manifest
    reporter.start("looking for cut copies", len(samples))
    found = known_crops(
        looks,
        manifest.paths(samples),
        noted_copies(samples),
        probe.features,
        made_by=probe.features[0].made_by,
        on_searched=reporter.advance,
    )
    reporter.finish()
    return with_further_copies(manifest, [[samples[row] for row in one.rows] for one in found])


def _grown(before: Manifest, after: Manifest) -> list[CopyGroup]:
    """Return the groups of copies that are larger than they were, or new."""
    pairs = zip(before.samples, after.samples, strict=True)
    words = {new.copies for old, new in pairs if new.copies != old.copies}
    return [
        CopyGroup(tuple(s for s in after.samples if s.copies == word), exact=False)
        for word in sorted(words)
    ]


def _tell_of_doubts(doubts: Sequence[LabelSuspect], where: str, reporter: Reporter) -> None:
    if doubts:
        first = doubts[0]
        labels = "label is" if len(doubts) == 1 else "labels are"
        reporter.note(
            f"{len(doubts)} {labels} in doubt{where} (as {first.path}: rather {first.likely}, "
            f"{first.likely_probability:.2f} against {first.probability:.2f})."
        )


def _tell_of_crops(
    config: Config, before: Manifest, after: Manifest, num_groups: int, reporter: Reporter
) -> None:
    """Say which copies a run's manifest will learn of.

    Raises:
        DataError: Held-out images are among them, and ``data.leaks`` is "error".
    """
    known, policy = leaked(before), config.data.leaks
    all_leaks = leaked(after)
    leaks = {path: copy for path, copy in all_leaks.items() if path not in known}
    if not leaks:
        groups = "group" if num_groups == 1 else "groups"
        reporter.note(f"The backbone's features show {num_groups} {groups} of copies more.")
        return
    words = (
        f"{describe_leaks(after, leaks)}. They are cut so much that only the backbone's features "
        f"show it, after the split"
    )
    remedy = f"Later runs know them after: {_command(config)}"
    if policy == "error":
        raise DataError(f"{words}. {remedy}")
    late = "" if policy == "warn" else f" and too late for data.leaks={policy}"
    reporter.warn(
        f"{words}{late}: what is measured on them flatters the model. "
        f"{describe_rest(after, all_leaks)}. {remedy}"
    )


def _command(config: Config) -> str:
    """Return what makes known to later runs which copies the backbone of a run shows."""
    model, data = config.model, config.data
    words = ["finetune", "inspect", str(data.path), "--backbone", model.backbone]
    if model.weights != "hub":
        words += ["--weights", model.weights]
    if data.cache not in ("auto", "on", "off"):
        words.append(f"data.cache={data.cache}")
    if data.max_megapixels != Config().data.max_megapixels:
        words.append(f"data.max_megapixels={data.max_megapixels:g}")
    return shlex.join(words)
