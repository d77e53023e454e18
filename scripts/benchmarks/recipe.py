"""Accuracy and time of finetune with its defaults, compared with its peers with theirs.

    uv run --with fastai python scripts/benchmarks/recipe.py results.jsonl \
        --case photos=photos/ --case 'few={folder: photos/, train_per_class: 30}' \
        --weights resnet18=resnet18.pth

or with a study in YAML (scripts/benchmarks/README.md has an example), from which --case and
--weights select by name:

    ... recipe.py results.jsonl --study study.yaml --case few --tools finetune,fastai-4

Each tool gets the same weights file and the same training images, and is judged on test images that
chose nothing: finetune draws its validation images from the training images, as do the peers that
keep their best epoch (hf, tutorial); fastai and timm's loop keep their last epoch and train on all.
Test images are fixed; the seed is that of the tool and of the training images drawn from a thinned
folder. Each run is a process, including imports, from files to predictions, with one thread on one
core and, for finetune, empty caches. The tools of a round (case, weights, seed) run one after the
other, each round beginning with another one.

Each result is appended to the file at once and not computed again, so that a comparison can be
interrupted, and extended by cases, seeds and tools; several processes may append to one file. A run
that fails is reported and left out. Prints for each case the metric over the seeds (mean, standard
deviation, minimum and maximum), CPU and wall time (medians), and paired differences and ratios of
times within rounds; then the probe, finetune and the best peer of each case, and the means.
"""

import datetime
import shutil
import signal
import sys
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

from scripts.benchmarks.lib.comparison.image_folders import draw_images
from scripts.benchmarks.lib.comparison.processes import (
    ToolError,
    list_cores,
    pin_to_core,
    stop_processes,
)
from scripts.benchmarks.lib.comparison.results import (
    append_result,
    build_key,
    find_result,
    read_results,
    select_results,
)
from scripts.benchmarks.lib.comparison.study import Case, Study, Weights, load_study
from scripts.benchmarks.lib.comparison.summary import (
    build_cells,
    print_cells,
    print_totals,
    summarise_cases,
)
from scripts.benchmarks.lib.comparison.tools import TOOLS, Run, link_case, read_version, run_tool

Round = tuple[int, int, Case, Weights]  # index, seed, case, weights


def iter_rounds(study: Study) -> Iterator[Round]:
    """Yield all rounds, seed by seed, so that an interrupted comparison covers all cases."""
    index = 0
    for seed in study.seeds:
        for case in study.cases:
            for weights in study.weights:
                yield index, seed, case, weights
                index += 1


def order_tools(tools: Sequence[str], index: int) -> list[str]:
    """Return the tools, beginning with another one in each round."""
    first = index % len(tools)
    return [*tools[first:], *tools[:first]]


def run_round(this: Round, study: Study, options: Namespace) -> int:
    """Run the missing tools of a round, and return the number of failures."""
    index, seed, case, weights = this
    started, failures = datetime.datetime.now().isoformat(timespec="seconds"), 0
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="recipe-") as name:
        images = Path(name) / "images"
        for tool in order_tools(study.tools, index):
            run = Run(tool, seed, weights, study, options.source)
            key = build_key(case, run, label=options.label)
            if find_result(read_results(options.results), key) is not None:
                continue
            drawn = draw_images(case, seed=seed)
            if not images.exists():
                link_case(drawn, images, seed=seed)
            folder = Path(name) / tool
            title = f"{case.name}, {weights.label}, seed {seed}, {tool}"
            try:
                found, usage = run_tool(run, images, folder)
            except ToolError as error:
                print(f"FAILED {title}: {error}", file=sys.stderr, flush=True)
                failures += 1
                continue
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            result = {
                **key,
                **asdict(usage),
                "round": started,
                "version": read_version(options.source) if run.is_finetune else "",
                "num_train": sum(map(len, drawn.train.values())),
                "num_test": sum(map(len, drawn.test.values())),
                "imbalance_ratio": drawn.imbalance_ratio,
                **found,
            }
            append_result(options.results, result)
            shown = ", ".join(f"{m} {v:.4f}" for m, v in result["test"].items())
            print(f"{title}: {shown}, CPU {usage.cpu:.0f} s, wall {usage.wall:.0f} s", flush=True)
    return failures


def run_study(study: Study, options: Namespace) -> int:
    """Run all missing rounds on one core per job, and return the number of failures."""
    cores: SimpleQueue[int] = SimpleQueue()
    for core in options.cores:
        cores.put(core)
    with ThreadPoolExecutor(
        len(options.cores), initializer=lambda: pin_to_core(cores.get())
    ) as pool:
        try:
            return sum(pool.map(lambda one: run_round(one, study, options), iter_rounds(study)))
        except KeyboardInterrupt:
            stop_processes()
            raise SystemExit("Stopped; the same command runs what is missing.") from None


def parse_options(arguments: Sequence[str] | None = None) -> Namespace:
    """Return the options of the command line, with the cores to be used."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON lines file of all results")
    parser.add_argument("--study", type=Path, help="YAML file of cases, weights, tools and seeds")
    parser.add_argument(
        "--case", action="append", default=[], help="NAME=FOLDER, a case of --study or YAML"
    )
    parser.add_argument(
        "--weights", action="append", default=[], help="BACKBONE=FILE, weights of --study or YAML"
    )
    parser.add_argument("--tools", help=f"any of {','.join(TOOLS)}")
    parser.add_argument("--seeds", help="such as 0,1,2")
    parser.add_argument("--image-size", type=int, help="for all tools, to try the script")
    parser.add_argument("--epochs", type=int, help="for all tools, to try the script")
    parser.add_argument(
        "--settings", nargs="*", help="config keys of finetune, such as optim.lr=1e-4"
    )
    parser.add_argument("--label", default="", help="name of a state of finetune; stored with it")
    parser.add_argument("--source", type=Path, help="run finetune from another checkout")
    parser.add_argument("--jobs", type=int, help="processes side by side, one per core [1]")
    parser.add_argument("--cores", help="cores to be used, such as 0,1 [the first ones]")
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    parser.add_argument("--summary", action="store_true", help="print results only")
    options = parser.parse_args(arguments)
    free = list_cores()
    if options.cores is not None:
        options.cores = [int(core) for core in options.cores.split(",")]
    else:
        options.cores = free[: options.jobs or 1]
    if unknown := set(options.cores) - set(free):
        parser.error(f"cores {sorted(unknown)} cannot be used; these can: {free}")
    if len(options.cores) != (options.jobs or len(options.cores)):
        parser.error(f"--jobs {options.jobs} needs as many cores; there are {options.cores}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and print all results; return 1 if a run failed."""
    options = parse_options(arguments)
    others = ("tools", "seeds", "image_size", "epochs", "settings")
    study = load_study(
        options.study,
        cases=options.case,
        weights=options.weights,
        others={name: getattr(options, name) for name in others},
    )
    if unknown := set(study.tools) - TOOLS.keys():
        raise SystemExit(f"unknown tools {sorted(unknown)}; known are {', '.join(TOOLS)}")
    if not (study.cases and study.weights):
        raise SystemExit("nothing to compare: name cases and weights, or a study")
    failures = 0 if options.summary else run_study(study, options)
    results = select_results(read_results(options.results), study, label=options.label)
    cells = build_cells(results, study)
    print_cells(cells)
    print_totals(summarise_cases(cells))
    if failures:
        print(f"{failures} runs failed; the same command runs them again.", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise SystemExit(main())
