"""Plan and result of a search on the console, at most 80 columns wide."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from finetune.units import format_count, format_duration

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter
    from finetune.commands.tune.study_plan import StudyPlan

MAX_ROWS = 12
"""Trials in the table; ``trials.csv`` has all."""

Tree = Mapping[str, Any]


def show_study_plan(reporter: "ConsoleReporter", plan: "StudyPlan") -> None:
    """Print what a study is about to do, and its search space."""
    from finetune.commands.tune.study_plan import build_plan_rows, build_space_rows

    reporter.print_pairs(build_plan_rows(plan))
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("searched setting", no_wrap=True)
    table.add_column("values", overflow="fold")
    table.add_column("default", no_wrap=True)
    for row in build_space_rows(plan):
        table.add_row(*map(escape, row))
    reporter.console.print(table)


def show_tune_result(reporter: "ConsoleReporter", tree: Tree) -> None:
    """Print the best trials, the importance of the settings and the gain."""
    from finetune.commands.tune.gain import describe_differences

    reporter.note("")
    reporter.console.print(_build_trial_table(tree))
    if len(tree["trials"]) > MAX_ROWS:
        more = format_count(len(tree["trials"]) - MAX_ROWS, "further trial")
        reporter.note(f"{more} in trials.csv")
    if tree["importance"]:
        shown = list(tree["importance"].items())[:5]
        parts = ", ".join(f"{_shorten(key)} {value:.0%}" for key, value in shown)
        reporter.note(f"Importance, a rough estimate (fANOVA): {parts}")
    reporter.note("")
    if tree["gain"] is not None:
        gain = tree["gain"]
        images = format_count(gain["held_out"]["num_images"], "image")
        reporter.note(f"Best trial against the default settings, on {images} that chose nothing:")
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for name in ("", "default", "best", "difference (95% interval)", "verdict"):
            table.add_column(name, no_wrap=True)
        for row in describe_differences(gain["held_out"], decisive=gain["metric"]):
            table.add_row(*row)
        reporter.console.print(table)
        reporter.console.print(tree["summary"], markup=False)
        if gain["num_leaked_left_out"]:
            count = format_count(gain["num_leaked_left_out"], "held-out image")
            reporter.note(f"Without {count} with a duplicate in training or validation.")
    else:
        reporter.console.print(tree["summary"], markup=False)
    reporter.note(f"Study: {tree['study_dir']} ({format_duration(tree['seconds'])})")
    next_trials = ["finetune", "tune", "--resume", tree["study_dir"]]
    # a study that a time limit has ended has trials left
    ended = [trial for trial in tree["trials"] if trial["state"] != "running"]
    if len(ended) >= tree["num_trials"]:
        next_trials += ["--trials", str(len(ended) + 10)]
    commands = [command for command in (tree["next_command"], next_trials) if command]
    reporter.print_commands("Next:", commands)


def _build_trial_table(tree: Tree) -> Table:
    """Return the trials, best first; pruned and failed ones last."""
    sign = 1 if tree["monitor"].endswith("loss") else -1
    order = {"completed": 0, "running": 1, "pruned": 2, "failed": 3}
    rows: Sequence[Tree] = sorted(
        tree["trials"],
        key=lambda row: (order[row["state"]], sign * (row["value"] or 0.0), row["number"]),
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column(tree["monitor"].replace("_", " "), justify="right")
    table.add_column("epochs", justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for row in rows[:MAX_ROWS]:
        epochs = "" if row["epochs"] is None else f"{row['epochs']}/{row['num_epochs']}"
        value = row["state"] if row["value"] is None else f"{row['value']:.4f}"
        table.add_row(str(row["number"]), value, epochs, escape(_describe_settings(row, tree)))
    return table


def _describe_settings(row: Tree, tree: Tree) -> str:
    from finetune.commands.tune.space.search_space import format_value, is_same_value

    if row["default"]:
        return "default"
    if row["state"] == "failed":
        return str(row["reason"])
    if row["same_as"] is not None:
        (same,) = (other for other in tree["trials"] if other["number"] == row["same_as"])
        return "as default" if same["default"] else f"as trial {same['number']}"
    return " ".join(
        f"{_shorten(key)}={format_value(value)}"
        for key, value in row["values"].items()
        if not is_same_value(value, tree["defaults"].get(key))
    )


def _shorten(key: str) -> str:
    section, _, name = key.rpartition(".")
    return "augment" if key == "augment.name" else name if name != "name" else section
