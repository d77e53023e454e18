"""``scripts/benchmarks/recipe.py``: the drawn images, resumed comparisons, and the totals."""

import itertools
import json
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score

from scripts.benchmarks import recipe
from scripts.benchmarks.lib.comparison import image_folders, processes, results, summary, tools
from scripts.benchmarks.lib.comparison.study import Case, Study, Weights, load_study
from tests.support.runs import write_photos, write_weights

Drawn = image_folders.DrawnImages


def write_files(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index:03}.png").touch()
    return root


def list_names(files: image_folders.Files) -> dict[str, set[str]]:
    return {name: {"/".join(f.parts[-3:]) for f in found} for name, found in files.items()}


def test_draw_fixes_test_images_and_nests_training_images(tmp_path: Path) -> None:
    folder = write_files(tmp_path, cat=40, dog=25)

    def draw(seed: int, number: int | None) -> Drawn:
        case = Case(name="x", folder=folder, train_per_class=number, test_per_class=5)
        return image_folders.draw_images(case, seed=seed)

    few, more, other, every = draw(0, 6), draw(0, 12), draw(1, 6), draw(1, None)
    assert few.test == more.test == other.test
    assert [len(files) for files in few.test.values()] == [5, 5]
    assert [len(files) for files in every.train.values()] == [35, 20]
    for name in ("cat", "dog"):
        assert set(few.train[name]) < set(more.train[name])
        assert set(few.train[name]) != set(other.train[name])
        assert not set(every.train[name]) & set(few.test[name])


def test_draw_uses_val_as_test_if_there_is_none(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_files(tmp_path / split, cat=4, dog=3)
    drawn = image_folders.draw_images(Case(name="x", folder=tmp_path), seed=0)
    assert {f.split("/")[0] for f in list_names(drawn.test)["cat"]} == {"val"}
    assert {f.split("/")[0] for f in list_names(drawn.train)["cat"]} == {"train"}
    write_files(tmp_path / "test", cat=2, dog=2)
    drawn = image_folders.draw_images(Case(name="x", folder=tmp_path), seed=0)
    assert {f.split("/")[0] for f in list_names(drawn.test)["cat"]} == {"test"}
    assert len(drawn.train["cat"]) == 8  # train and val


def test_draw_rejects_class_without_test_images(tmp_path: Path) -> None:
    write_files(tmp_path / "train", cat=4, dog=3)
    write_files(tmp_path / "test", cat=4)
    with pytest.raises(SystemExit, match="both need the same"):
        image_folders.draw_images(Case(name="x", folder=tmp_path), seed=0)


def test_class_sizes_follow_exponential_profile_within_available_images() -> None:
    available = {"a": 93, "b": 550, "c": 360, "d": 450}
    sizes = image_folders.compute_class_sizes(available, ratio=30)
    ordered = [sizes[name] for name in ("b", "d", "c", "a")]
    assert ordered[0] == 550
    assert ordered[0] / ordered[-1] == pytest.approx(30, rel=0.05)
    for larger, smaller in itertools.pairwise(ordered):
        assert larger / smaller == pytest.approx(30 ** (1 / 3), rel=0.05)
    sizes = image_folders.compute_class_sizes(available, ratio=2)
    assert all(sizes[name] <= available[name] for name in available)
    assert sizes["b"] == 186  # the smallest class has 93


def test_linked_folders_hold_same_images_and_a_disjoint_validation_set(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "images", cat=20, dog=3)
    drawn = image_folders.draw_images(Case(name="x", folder=folder, test_per_class=1), seed=0)
    tools.link_case(drawn, tmp_path / "links", seed=0)

    def read(part: str) -> set[Path]:
        files = [f for f in (tmp_path / "links" / part).rglob("*") if f.is_symlink()]
        return {file.resolve() for file in files}

    assert read("all/train") == {f for files in drawn.train.values() for f in files}
    assert read("all/test") == read("selecting/test")
    assert read("selecting/train") | read("selecting/val") == read("all/train")
    assert not read("selecting/train") & read("selecting/val")
    assert len(list((tmp_path / "links/selecting/val/dog").iterdir())) == 1


def test_results_survive_an_incomplete_last_line(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    results.append_result(file, {"a": 1})
    with file.open("a") as stream:
        stream.write('{"a": 2, "b')
    assert results.read_results(file) == [{"a": 1}]
    results.append_result(file, {"a": 3})
    assert results.read_results(file) == [{"a": 1}, {"a": 3}]
    file.write_text('{"a"\n{"a": 3}\n')
    with pytest.raises(SystemExit, match=r"jsonl:1 is no JSON"):
        results.read_results(file)


def test_process_has_one_thread_and_core_and_its_cpu_time_is_measured(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "end = time.process_time() + 0.2\n"
        "while time.process_time() < end: pass\n"
        "work = 'import time\\nwhile time.process_time() < 0.2: pass'\n"
        "if len(sys.argv) == 1: subprocess.run([sys.executable, '-c', work])\n"
        "print(os.environ['OMP_NUM_THREADS'])"
    )
    output, usage = processes.run_process([sys.executable, "-c", code], folder=tmp_path, env={})
    assert output == "1\n"
    assert 0.4 <= usage.cpu < 2  # its own and that of its child process
    assert usage.memory_mb > 1
    with pytest.raises(processes.ToolError, match=r"(?s)exit code 3.*no such thing"):
        processes.run_process(
            [sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"],
            folder=tmp_path,
            env={},
        )


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_pinned_thread_starts_processes_on_its_core_and_leaves_other_threads(
    tmp_path: Path,
) -> None:
    before, core = os.sched_getaffinity(0), processes.list_cores()[-1]
    code = "import os; print(os.sched_getaffinity(0))"

    def run() -> str:
        command = [sys.executable, "-c", code]
        return processes.run_process(command, folder=tmp_path, env={})[0]

    with ThreadPoolExecutor(1, initializer=processes.pin_to_core, initargs=(core,)) as pool:
        assert pool.submit(run).result() == f"{{{core}}}\n"
    assert os.sched_getaffinity(0) == before


def test_scores_equal_those_of_scikit_learn() -> None:
    predicted = {"a/1.png": "a", "a/x/2.png": "b", "b/3.png": "b", "c/4.png": "a"}
    scores = tools.score_predictions(predicted)
    assert scores["accuracy"] == 0.5
    assert scores["balanced_accuracy"] == pytest.approx((0.5 + 1 + 0) / 3)
    expected = f1_score(["a", "a", "b", "c"], ["a", "b", "b", "a"], average="macro")
    assert scores["macro_f1"] == expected


def test_comparison_runs_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = write_files(tmp_path / "images", cat=9, dog=9), tmp_path / "results.jsonl"
    ran: list[tuple[str, int]] = []

    def run_tool(run: tools.Run, images: Path, folder: Path) -> tuple[dict[str, Any], Any]:
        if run.tool == "timm" and ("timm", run.seed) not in ran:
            ran.append((run.tool, run.seed))
            raise processes.ToolError("out of memory")
        ran.append((run.tool, run.seed))
        scores = tools.score_predictions({"cat/1": "cat", "dog/2": "dog", "dog/3": "cat"})
        return {"test": scores}, processes.Usage(2.0, 1.0, 100.0, 0.5)

    monkeypatch.setattr(recipe, "run_tool", run_tool)
    arguments = [str(file), f"--case=pets={folder}", "--weights=resnet18=w.pth"]
    assert recipe.main([*arguments, "--tools=finetune,timm", "--seeds=0"]) == 1
    assert ran == [("finetune", 0), ("timm", 0)]
    assert "out of memory" in capsys.readouterr().err
    assert recipe.main([*arguments, "--tools=finetune,timm", "--seeds=0,1"]) == 1
    assert sorted(ran[2:]) == [("finetune", 1), ("timm", 0), ("timm", 1)]
    del ran[:]
    assert recipe.main([*arguments, "--tools=finetune", "--seeds=0", "--label=new"]) == 0
    assert recipe.main([*arguments, "--tools=finetune", "--seeds=0", "--settings", "seed=3"]) == 0
    assert recipe.main([*arguments, "--tools=fastai-4", "--seeds=0", "--label=new"]) == 0
    assert ran == [("finetune", 0), ("finetune", 0), ("fastai-4", 0)]
    # no peer runs again for another state of finetune
    assert recipe.main([*arguments, "--tools=finetune,fastai-4", "--seeds=0", "--label=new"]) == 0
    assert len(ran) == 3
    assert "best peer (1 cases): mean error 0.3333, of finetune 0.3333" in capsys.readouterr().out


def build_result(tool: str, seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    return {
        "case": "pets", "backbone": "resnet18", "weights": "w.pth", "tool": tool, "seed": seed,
        "imbalance_ratio": 1.0, "cpu": 10.0, "wall": 20.0, "round": f"r{seed}",
        "test": {"accuracy": accuracy, "balanced_accuracy": 0.0, "macro_f1": accuracy / 2},
        **changes,
    }  # fmt: skip


STUDY = Study(
    cases=(Case(name="pets", folder=Path("pets")),),
    weights=(Weights(backbone="resnet18", file=Path("w.pth")),),
)


def test_totals_pair_seeds_and_choose_the_better_peer() -> None:
    rows = [
        *(build_result("finetune", s, a) for s, a in enumerate((0.8, 0.9, 0.94))),
        *(build_result("finetune-probe", s, a, cpu=4.0) for s, a in enumerate((0.8, 0.85, 0.78))),
        *(build_result("fastai-4", s, a, cpu=20.0) for s, a in enumerate((0.7, 0.7, 0.73))),
        *(build_result("fastai-8", s, a, cpu=40.0) for s, a in enumerate((0.74, 0.8, 0.77))),
        build_result("fastai-8", 7, 0.1),  # a seed that finetune lacks
    ]
    (case,) = summary.summarise_cases(summary.build_cells(rows, STUDY))
    assert case.peer is not None
    assert case.peer.tool == "fastai-8"
    assert case.peer.error == pytest.approx(0.23)
    assert case.own.error == pytest.approx(0.12)
    assert case.own.spread == pytest.approx(statistics.stdev([0.8, 0.9, 0.94]))
    pairs = summary.compute_pairs(case.own, case.peer)
    assert pairs.differences == pytest.approx([0.06, 0.1, 0.17])
    assert pairs.cpu_ratios == [0.25] * 3
    text = "\n".join(summary.describe_totals([case]))
    assert "36.8% of the probe's errors gone" in text  # 1 - 0.12 / 0.19
    assert "ratio 0.52" in text  # 0.12 / 0.23
    assert "geometric mean 0.25" in text
    assert "peer ahead by more than its spread: none" in text


def test_totals_name_cases_in_which_a_peer_is_ahead_by_more_than_its_spread() -> None:
    peers = [build_result("fastai-4", s, a) for s, a in enumerate((0.78, 0.80, 0.82))]
    own = [build_result("finetune", s, 0.77) for s in range(3)]
    (case,) = summary.summarise_cases(summary.build_cells([*own, *peers], STUDY))
    assert case.peer_is_ahead  # by 0.03, with a deviation of 0.02
    own = [build_result("finetune", s, 0.785) for s in range(3)]
    (case,) = summary.summarise_cases(summary.build_cells([*own, *peers], STUDY))
    assert not case.peer_is_ahead


def test_times_are_compared_within_rounds_if_there_are_any() -> None:
    own = [build_result("finetune", s, 0.8, cpu=5.0) for s in range(2)]
    peers = [
        build_result("fastai-4", 0, 0.8, cpu=10.0),
        build_result("fastai-4", 1, 0.8, cpu=50.0, round="later"),
    ]
    first, second = summary.build_cells([*own, *peers], STUDY)
    pairs = summary.compute_pairs(first, second)
    assert (pairs.cpu_ratios, pairs.num_same_round) == ([0.5], 1)
    assert len(pairs.differences) == 2
    first, second = summary.build_cells([*own, peers[1]], STUDY)
    pairs = summary.compute_pairs(first, second)
    assert (pairs.cpu_ratios, pairs.num_same_round) == ([0.1], 0)


def test_imbalanced_case_is_compared_by_macro_f1() -> None:
    rows = [build_result("finetune", 0, 0.8, imbalance_ratio=30.0)]
    (cell,) = summary.build_cells(rows, STUDY)
    assert (cell.metric, cell.values) == ("macro_f1", [0.4])


def test_study_file_resolves_paths_and_options_select_from_it(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "weights: [{backbone: resnet18, file: w.pth, kwargs: {pad_type: same}}]\n"
        "cases: [{name: a, folder: pets}, {name: b, folder: pets, ratio: 30}]\n"
        "seeds: [4]\n"
    )
    study = load_study(file, cases=["b", "c=other"], others={"tools": "timm,hf", "seeds": None})
    assert [case.name for case in study.cases] == ["b", "c"]
    assert study.cases[0].folder == tmp_path / "pets"
    assert study.cases[0].selection == "ratio=30 test_fraction=0.2"
    assert study.weights[0].file == tmp_path / "w.pth"
    assert study.weights[0].kwargs == {"pad_type": "same"}
    assert (study.tools, study.seeds) == (("timm", "hf"), (4,))
    with pytest.raises(SystemExit, match="No cases named 'z' in the study"):
        load_study(file, cases=["z"])
    with pytest.raises(SystemExit, match=r"cases\.0\.train_per_klass"):
        load_study(file, cases=["{name: a, folder: pets, train_per_klass: 3}"])
    with pytest.raises(SystemExit, match="case named twice: a"):
        load_study(file, cases=["a", "a"])


@pytest.mark.slow
def test_run_of_finetune_is_judged_on_test_images(tmp_path: Path) -> None:
    folder, weights = write_photos(tmp_path / "photos"), write_weights(tmp_path / "w.pth")
    file = tmp_path / "results.jsonl"
    entry = {"backbone": "test_resnet", "file": str(weights)}
    code = recipe.main(
        [
            str(file), f"--case=photos={folder}", f"--weights={json.dumps(entry)}",
            "--tools=finetune,finetune-probe", "--seeds=0", "--image-size=32", "--epochs=2",
        ]
    )  # fmt: skip
    assert code == 0
    tuned, probe = sorted(results.read_results(file), key=lambda row: str(row["tool"]))
    assert (tuned["num_train"], tuned["num_test"]) == (24, 15)
    assert tuned["test"]["accuracy"] * 15 == pytest.approx(round(tuned["test"]["accuracy"] * 15))
    assert [row["epoch"] for row in tuned["epochs"]][-1] == 2
    assert all("val/loss" in row for row in tuned["epochs"])
    assert tuned["recipe"]["optim.lr"]
    assert len(probe["epochs"]) == 1
