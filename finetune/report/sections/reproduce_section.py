"""Section on how to reproduce a run: commands, versions, hardware and times."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.report.run_facts import RunFacts
from finetune.units import format_duration


@dataclass(frozen=True, slots=True)
class ReproduceSection:
    """Needs of a run that is repeated, and what it took.

    Attributes:
        commands: What a command does, and the command.
        versions: Package and version.
        hardware: Name and value.
        stages: Stage and its time, of all sessions together.
        figures: Name and value of what the run took.
    """

    commands: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    hardware: tuple[tuple[str, str], ...]
    stages: tuple[tuple[str, str], ...]
    figures: tuple[tuple[str, str], ...]


def build_reproduce(facts: RunFacts) -> ReproduceSection:
    """Return how to reproduce a run."""
    session: Mapping[str, Any] = facts.sessions[-1] if facts.sessions else {}
    versions = session.get("versions") or facts.card.get("versions") or {}
    return ReproduceSection(
        tuple(_list_commands(facts)),
        tuple((str(name), str(version)) for name, version in versions.items()),
        tuple(_describe_hardware(facts)),
        tuple(_sum_stages(facts)),
        tuple(_describe_cost(facts)),
    )


def _list_commands(facts: RunFacts) -> list[tuple[str, str]]:
    path = facts.path
    commands = []
    if facts.sessions and (command := facts.sessions[0].get("command")):
        folder = facts.sessions[0].get("working_dir")
        commands.append((f"The command of this run, in {folder}", str(command)))
    if facts.config:
        config = f"{path.rstrip('/')}/config.yaml"
        again = f"{path.rstrip('/')}-again"
        words = ["finetune", "fit", "--config", config, "--output", again]
        commands.append(("Train again with every setting as it was", shlex.join(words)))
    if facts.card:
        if facts.config:
            # the networks of the folds have trained on all images but for those of a test split
            is_new = facts.folds is not None and not facts.num_images.get("test")
            evaluate = shlex.join(["finetune", "evaluate", path])
            commands.append(("Evaluate", f"{evaluate} OTHER_PHOTOS" if is_new else evaluate))
        predict = shlex.join(["finetune", "predict", path])
        commands.append(("Predict new photos", f"{predict} NEW_PHOTOS --output predictions.csv"))
    return commands


def _describe_hardware(facts: RunFacts) -> list[tuple[str, str]]:
    # the session that prepares a cross-validation has one, those of its folds have all
    processes = max((int(one.get("num_processes") or 1) for one in facts.sessions), default=1)
    rows = [
        ("Device", _list_values(facts, "device_name")),
        ("Processes", "" if processes == 1 else str(processes)),
        ("CPU cores", _list_values(facts, "num_cores")),
        ("System", _list_values(facts, "platform")),
        ("Git commit of the working folder", _list_values(facts, "git_commit")),
    ]
    return [(name, value) for name, value in rows if value]


def _list_values(facts: RunFacts, key: str) -> str:
    """Return the values of the sessions, each once."""
    values = dict.fromkeys(str(one[key]) for one in facts.sessions if one.get(key))
    return ", then ".join(values)


def _sum_stages(facts: RunFacts) -> list[tuple[str, str]]:
    total: dict[str, float] = {}
    for session in facts.sessions:
        stages = session.get("stages")
        for stage, seconds in (stages if isinstance(stages, Mapping) else {}).items():
            total[stage] = total.get(stage, 0.0) + float(seconds)
    if not total:  # a run of an earlier release has the times of its epochs only
        epochs = [row["seconds"] for row in facts.rows if row["epoch"] > 0 and "seconds" in row]
        total = {"epochs": sum(epochs)} if epochs else {}
    taken = {stage: seconds for stage, seconds in total.items() if seconds >= 0.05}
    return [(stage.capitalize(), format_duration(seconds)) for stage, seconds in taken.items()]


def _describe_cost(facts: RunFacts) -> list[tuple[str, str]]:
    seconds = sum(float(session.get("seconds") or 0) for session in facts.sessions)
    cpu = sum(float(session.get("cpu_seconds") or 0) for session in facts.sessions)
    gpu = sum(
        float(session.get("seconds") or 0) * int(session.get("num_processes") or 1)
        for session in facts.sessions
        if session.get("device") == "cuda"
    )
    speeds = [row["images_per_second"] for row in facts.rows if "images_per_second" in row]
    rows = [
        (
            "Total time" if facts.folds is None else "Time of all folds together",
            format_duration(seconds) if seconds else "",
        ),
        ("CPU time", format_duration(cpu) if cpu else ""),
        ("GPU time", format_duration(gpu) if gpu else ""),
        ("Training speed", f"{sum(speeds) / len(speeds):.3g} images/s" if speeds else ""),
    ]
    if len(facts.sessions) > 1 and facts.folds is None:
        rows.append(("Sessions", f"{len(facts.sessions)} (the run was resumed)"))
    return [(name, value) for name, value in rows if value]
