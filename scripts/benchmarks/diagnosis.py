"""Findings of the diagnosis on good and on faulty runs.

    uv run python scripts/benchmarks/diagnosis.py --images ../shared/data \
        --weights ../shared/weights --output /tmp/diagnosis [--only hymenoptera] [--check]

Ten runs on five folders, with ResNet-18 and MobileNetV2 at 64 pixels, have nothing wrong with them;
the others have one fault each: shuffled labels, a learning rate of 1, a backbone that is frozen for
images of another kind, leaks, and so on. Runs that are complete are not repeated, only diagnosed
again. Prints a table in Markdown.

``--check`` trains other runs, on folders, draws and seeds that no threshold was set on: eight good
ones and seven faulty ones, with EfficientNet-Lite0, too.

``--cure`` trains with learning rates of 0.05 and 1, then with the rate that the diagnosis proposes,
and so on until it finds none that is too high. Prints the validation accuracy of the linear probe
and of the last epoch.
"""

import os
import re
import subprocess
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.benchmarks.lib.diagnosis_check_folders import list_check_folders
from scripts.benchmarks.lib.diagnosis_cures import follow_proposals, list_cure_folders
from scripts.benchmarks.lib.diagnosis_folders import list_faulty_folders, list_good_folders

_NETWORKS = {
    "resnet18": "resnet18-82c76769.pth",
    "mobilenetv2_100": "mobilenetv2_100-f803422a.pth",
    "tf_efficientnet_lite0": "tf_efficientnet_lite0-ea7d9415.pth",
}
_MAIN_NETWORKS = ("resnet18", "mobilenetv2_100")
_COMMON = ("data.image_size=64", "data.num_workers=0", "trainer.precision=32-true")


@dataclass(frozen=True, slots=True)
class Case:
    """Run that is diagnosed: name, folder of images, network, and settings."""

    name: str
    folder: str
    network: str
    settings: tuple[str, ...] = ()


def list_cases(good: list[str]) -> list[Case]:
    """Return the good runs, then the faulty ones."""
    small = "resnet18"
    return [
        *(Case(f"{f}, {n}", f, n, ("trainer.epochs=4",)) for f in good for n in _MAIN_NETWORKS),
        Case("rate of 1", "hymenoptera", small, ("optim.lr=1", "trainer.epochs=3")),
        Case("rate of 0.03", "hymenoptera", small, ("optim.lr=0.03", "trainer.epochs=3")),
        Case("frozen on digits", "digits", small, ("unfreeze.name=linear_probe",)),
        Case("5% shuffled, digits", "digits-5%-shuffled", small, ("trainer.epochs=4",)),
        Case("5% shuffled, photos", "cardboard-glass-5%-shuffled", small, ("trainer.epochs=4",)),
        Case("leaks", "digits-leaks", small, ("trainer.epochs=3",)),
        Case("12 validation images", "hymenoptera-tiny-val", small, ("trainer.epochs=3",)),
        Case("4 images a class", "trashnet-4-each", small, ("trainer.epochs=4",)),
        Case(
            "rate of 1e-6, no probe",
            "hymenoptera",
            small,
            ("probe.enabled=off", "optim.lr=0.000001", "trainer.epochs=3"),
        ),
        Case(
            "random weights, 2 epochs",
            "digits",
            small,
            ("model.weights=random", "trainer.epochs=2"),
        ),
    ]


def list_check_cases() -> list[Case]:
    """Return the runs of the independent check: eight good ones, then seven faulty ones."""
    resnet, mobilenet, lite = _NETWORKS
    three, four = "trainer.epochs=3", "trainer.epochs=4"
    return [
        Case("good 1: insects, split 3", "insects", resnet, (four, "data.split_seed=3")),
        Case("good 2: insects, split 4", "insects", lite, (four, "data.split_seed=4")),
        Case("good 3: waste 1", "waste-draw-1", resnet, (four, "seed=5")),
        Case("good 4: waste 2", "waste-draw-2", lite, (four, "seed=6")),
        Case("good 5: paper, plastic", "paper-plastic", mobilenet, (three, "seed=7")),
        Case("good 6: glass, metal", "glass-metal", lite, (three, "seed=8")),
        Case("good 7: digits 100", "digits-100", mobilenet, (four, "seed=9")),
        Case("good 8: digits 80", "digits-80", resnet, (three, "seed=10")),
        Case("15% shuffled", "paper-plastic-15%-shuffled", resnet, (four,)),
        Case("5% shuffled", "digits-50-5%-shuffled", resnet, (four,)),
        Case("rate too high", "digits-50", lite, (three, "optim.lr=0.05")),
        Case("rate of 1, diverges", "digits-50", mobilenet, (three, "optim.lr=1")),
        Case(
            "rate too low",
            "digits-50",
            lite,
            (three, "probe.enabled=off", "optim.lr=0.000001"),
        ),
        Case("tiny validation", "glass-metal-tiny-val", mobilenet, (three,)),
        Case("leaks of 30%", "waste-leaks", mobilenet, (three,)),
    ]


def list_cure_cases() -> list[Case]:
    """Return runs with a learning rate that is far too high: three networks and folders."""
    resnet, mobilenet, lite = _NETWORKS
    pairs = (("hymenoptera", resnet), ("glass-metal-100", mobilenet), ("digits-26", lite))
    return [
        Case(f"{folder}, {network}, {rate}", folder, network, (f"optim.lr={rate}",))
        for rate in ("0.05", "1")
        for folder, network in pairs
    ]


def run_fit(case: Case, data: Path, run: Path, weights: Path, cache: Path) -> None:
    """Run a fit unless it is complete; a fit that diverges keeps what it wrote."""
    if (run / ".done").is_file() or (run / "failed.txt").is_file():
        return
    is_random = any(setting.startswith("model.weights=") for setting in case.settings)
    words = ["fit", str(data), *_COMMON, f"model.backbone={case.network}", f"output={run}"]
    words += [] if is_random else [f"model.weights={weights / _NETWORKS[case.network]}"]
    done = subprocess.run(
        [sys.executable, "-m", "finetune", *words, *case.settings],
        env={**os.environ, "FINETUNE_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.is_dir():
        (run / "console.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        print(f"{case.name}: exit {done.returncode}\n{done.stderr[-800:]}", file=sys.stderr)


def describe_findings(run: Path) -> str:
    """Return the severity and the rule of each finding of a run."""
    # from the run folder, so that rules may change without another run
    from finetune.commands.diagnosis.run_evidence import read_evidence
    from finetune.diagnosis.diagnose import diagnose
    from finetune.system.run_folder import RunFolder

    if not (run / "metrics.csv").is_file():
        return "no run"
    findings = diagnose(read_evidence(RunFolder(run)))
    return ", ".join(f"{one.severity}: {one.rule}" for one in findings) or "nothing"


def describe_cure(case: Case, data: Path, options: Namespace) -> str:
    """Return the rates that the diagnosis proposes one after the other, and what they lead to."""

    def fit(run: Path, settings: tuple[str, ...]) -> None:
        one = replace(case, settings=("trainer.epochs=3", "probe.stages=off", *settings))
        run_fit(one, data, run, options.weights, options.output / "cache")

    rounds = follow_proposals(case.name, case.settings[0], options.output / "cures", fit)
    return "; ".join(one.describe() for one in rounds)


def main() -> None:
    """Run what is missing and print the findings."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="regular expression for names of runs")
    parser.add_argument("--check", action="store_true", help="the runs of the independent check")
    parser.add_argument("--cure", action="store_true", help="follow proposed learning rates")
    parser.add_argument("--no-findings", action="store_true", help="only run the fits")
    options = parser.parse_args()
    good = list_good_folders(options.images)
    builders = {**good, **list_faulty_folders(options.images)}
    builders |= {**list_check_folders(options.images), **list_cure_folders(options.images)}
    cases = list_check_cases() if options.check else list_cases(list(good))
    cases = list_cure_cases() if options.cure else cases
    cases = [case for case in cases if re.search(options.only, case.name)]
    print("| run | findings |\n|---|---|", flush=True)
    for case in cases:
        data = options.output / "images" / case.folder
        if not data.is_dir():
            builders[case.folder](data)
        if options.cure:
            print(f"| {case.name} | {describe_cure(case, data, options)} |", flush=True)
            continue
        run = options.output / "runs" / re.sub(r"[,: ]+", "-", case.name)
        run_fit(case, data, run, options.weights, options.output / "cache")
        found = "" if options.no_findings else describe_findings(run)
        print(f"| {case.name} | {found} |", flush=True)


if __name__ == "__main__":
    main()
