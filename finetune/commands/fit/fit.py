"""Fine-tune a backbone on a folder of images: start, resume, or join as another process."""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from finetune.audit.report import write_audit, write_findings
from finetune.builders import Training, build_training
from finetune.bundle.model_card import Card, read_card
from finetune.commands.fit.launch_check import check_launch
from finetune.commands.fit.plan import describe
from finetune.commands.fit.prepare import of_statistics, planned
from finetune.commands.fit.resume import (
    asked_again,
    asked_for,
    goes_on_from,
    moved_parts,
    rebuilt,
    with_changes,
)
from finetune.commands.fit.train import (
    halved_batch,
    hand_out_run,
    is_complete,
    train,
    where,
)
from finetune.commands.stored_run import stored_config, stored_manifest
from finetune.config.load import changes, dump_config
from finetune.config.schema import Config
from finetune.data.manifest import write_manifest, write_rejected
from finetune.distributed import signals
from finetune.distributed.launch import outer_launch
from finetune.distributed.rendezvous import Meeting, meeting
from finetune.distributed.reporter import Watchful
from finetune.errors import OutOfMemoryError, RunFolderError
from finetune.system import run_folder
from finetune.system.files import remove_leftovers, write_text
from finetune.system.hardware import release_memory
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter

_DISK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a finished run comes to.

    Attributes:
        run_dir: The run folder.
        seconds: Wall time of this call.
        metrics: Split to metrics of the best model: "val", and "test" where there is one; None
            for what its images do not define.
        plan: What was done.
        calibration: The model's temperature and what it is worth; None without one.
        evaluations: Split to what else is known of the best model: intervals, classes.
    """

    run_dir: Path
    seconds: float
    metrics: Mapping[str, Mapping[str, float | None]]
    plan: Mapping[str, Any]
    calibration: Mapping[str, Any] | None = None
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "run_dir": str(self.run_dir),
            "seconds": round(self.seconds, 3),
            "metrics": {split: dict(values) for split, values in self.metrics.items()},
            "evaluations": {split: dict(found) for split, found in self.evaluations.items()},
            "calibration": None if self.calibration is None else dict(self.calibration),
            "plan": dict(self.plan),
        }


def fit(config: Config, *, reporter: Reporter | None = None) -> FitResult:
    """Train a new run and return what it comes to.

    Under torchrun or srun every process calls this; rank 0 prepares the run folder and the others
    join it. With ``resume: auto`` a run that lies in ``output`` already goes on.

    Raises:
        FinetuneError: Anything that the user can mend.
        KeyboardInterrupt: It was asked to stop; the run folder can be resumed.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    with signals.interruptible(), _met(config) as met:
        if met is not None:
            if met.launch.rank > 0:
                return _joined(met, start)
            met.arrived()  # before anything is planned or written
            reporter = Watchful(reporter, met)
        if (run := asked_again(config)) is not None:
            return _resumed(
                run, with_changes(run, assignments=asked_for(run, config)), met, reporter, start
            )
        training, plan, data = planned(config, reporter)
        run = run_folder.create(
            Path(plan["run_dir"]),
            config=dump_config(training.config),
            manifest=write_manifest(training.manifest),
            rejected=write_rejected(data.rejected),
            audit=write_audit(data.audit),
            findings=write_findings(data.audit),
        )
        with _occupied(run, training.config, met):
            facts = _trained(run, training, reporter=reporter, met=met)
        return _result(run, start, facts, plan)


def plan_fit(config: Config, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Return the plan of a run and show it; kept is only what was seen of the images."""
    return planned(config, reporter or Reporter())[1]


def resume(
    path: Path,
    *,
    assignments: Mapping[str, Any] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    reporter: Reporter | None = None,
) -> FitResult:
    """Go on with a run from its last checkpoint, to the same end as if it had not stopped.

    Args:
        path: The run folder.
        assignments: Dotted key to value that differ from the run's config.
        flags: The same from options; only ``CHANGEABLE`` keys may differ.
        reporter: Told of everything.

    Raises:
        FinetuneError: Anything that the user can mend.
        KeyboardInterrupt: It was asked to stop; the run folder can be resumed.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    run = run_folder.existing(path)
    config = with_changes(run, assignments=assignments, flags=flags)
    with signals.interruptible(), _met(config) as met:
        if met is not None:
            if met.launch.rank > 0:
                return _joined(met, start)
            reporter = Watchful(reporter, met)
        return _resumed(run, config, met, reporter, start)


def plan_resume(
    path: Path,
    *,
    assignments: Mapping[str, Any] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Return the plan of ``resume``, show it, and write nothing."""
    run = run_folder.existing(path)
    config = with_changes(run, assignments=assignments, flags=flags)
    return _planned_again(run, config, reporter or Reporter())[1]


def join(path: Path) -> None:
    """Take part in a run that another process of this machine started."""
    config = stored_config(run_folder.existing(path))
    with signals.interruptible(), _met(config) as met:
        assert met is not None, "called by finetune alone"
        _joined(met, 0.0)


@contextmanager
def _met(config: Config) -> Iterator[Meeting | None]:
    """Meet the other processes of a launch; None stands alone.

    Raises:
        ConfigError: The launcher started other processes than were asked for.
        TrainingError: The others are not reached.
    """
    launch = check_launch(config, outer_launch())
    if launch is None or launch.world_size == 1:
        yield None
        return
    timeout = timedelta(seconds=config.trainer.collective_timeout_seconds)
    with meeting(launch, timeout=timeout) as met:
        yield met


def _joined(met: Meeting, start: float) -> FitResult:
    """Take part in the run that rank 0 tells of."""
    told = met.receive("run")
    if told is None:
        return FitResult(Path(), 0.0, {}, {})
    run = RunFolder(Path(told["run_dir"]))
    _check_shared(run, told["position"])
    config = Config.model_validate(told["config"])
    training = build_training(
        config,
        stored_manifest(run, config),
        resumed=Card.from_json(told["card"]),
        going_on=True,
    )
    try:
        train(run, training, reporter=Watchful(Reporter(), met), met=met)
    except OutOfMemoryError as error:
        halved_batch(training, error)  # raises: the other processes cannot know of it
        raise
    return FitResult(run.path, time.monotonic() - start, {}, {})


def _check_shared(run: RunFolder, position: list[int] | None) -> None:
    """Wait until this machine sees what rank 0 sees: a network disk may be some seconds late.

    Raises:
        RunFolderError: It does not.
    """
    end = time.monotonic() + _DISK_SECONDS
    while not run_folder.is_run(run.path) or where(run) != position:
        if time.monotonic() > end:
            raise RunFolderError(
                f"{run.path} is not the same here as for rank 0, on another machine. The run "
                f"folder must lie on storage that all machines see: choose another --output."
            )
        time.sleep(0.2)


def _resumed(
    run: RunFolder, config: Config, met: Meeting | None, reporter: Reporter, start: float
) -> FitResult:
    """Go on with a run, as rank 0 of its processes."""
    if is_complete(run, config):
        if met is not None:
            met.hand_out("run", None)
        reporter.note("The run is complete; nothing is left to do. Longer: add --epochs.")
        return _result(run, start, read_card(run.bundle)["facts"], {})
    with _occupied(run, config, met):
        remove_leftovers(run.path)
        training, plan = _planned_again(run, config, reporter)
        write_text(run.config, dump_config(training.config))
        run_folder.point_latest_at(run)
        facts = _trained(run, training, reporter=reporter, met=met)
    return _result(run, start, facts, plan)


def _occupied(run: RunFolder, config: Config, met: Meeting | None) -> AbstractContextManager[None]:
    """Keep others from the run; one that a cut link keeps alive is waited for until it gives up."""
    patience = 0.0 if met is None else config.trainer.collective_timeout_seconds
    return run_folder.occupied(run, patience=patience)


def _planned_again(
    run: RunFolder, config: Config, reporter: Reporter
) -> tuple[Training, dict[str, Any]]:
    """Return the training of a run that goes on, and its plan; nothing is written yet."""
    training = rebuilt(run, config)
    changed = {
        key: after for key, (_, after) in changes(stored_config(run), training.config).items()
    }
    plan = describe(training, changed=changed, num_rejected=0, run_dir=run.path)
    reporter.plan(plan)
    for moved in moved_parts(run, training):
        reporter.warn(moved)
    reporter.note(goes_on_from(run, training.config))
    return training, plan


def _trained(
    run: RunFolder, training: Training, *, reporter: Reporter, met: Meeting | None
) -> dict[str, Any]:
    """Train, and return what the bundle says of it.

    After running out of memory it goes on from the last checkpoint with half the batch.
    """
    if met is not None:
        hand_out_run(met, run, training)
    while True:
        try:
            measured = train(run, training, reporter=reporter, met=met)
            return {} if measured is None else measured.facts
        except OutOfMemoryError as error:
            config = halved_batch(training, error)
            parts = int(config.trainer.accumulate)
        # outside of the handler: there the error would keep the tensors of the failed step alive
        release_memory()
        reporter.note(
            f"Out of memory: the batch of {training.batch_size} now runs in {parts} parts, whose "
            f"gradients make one step; the epoch begins again.{of_statistics(training)}"
        )
        write_text(run.config, dump_config(config))
        training = rebuilt(run, config)


def _result(
    run: RunFolder, start: float, facts: Mapping[str, Any], plan: Mapping[str, Any]
) -> FitResult:
    """Return what a run came to, from the facts of its bundle."""
    seconds = time.monotonic() - start
    found = (facts["metrics"], plan, facts.get("calibration"), facts.get("evaluations", {}))
    return FitResult(run.path, seconds, *found)
