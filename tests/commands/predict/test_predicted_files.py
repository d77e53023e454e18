"""Tests of the rows of predictions: formats, columns, order, and the same ones for all inputs."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import finetune
from finetune.bundle.bundle import load_model, save_bundle
from finetune.errors import ConfigError, DataError, RunFolderError
from finetune.evaluation.priors import Priors
from finetune.inference.predictor import Predictor
from tests.cli.conftest import Cli
from tests.commands.predict.conftest import write_bundle
from tests.support.helpers import list_names
from tests.support.parquet import write_hub_file

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a runner of command lines whose messages are not wrapped."""
    monkeypatch.setenv("COLUMNS", "1000")
    return Cli(capsys)


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_rows_are_in_the_order_of_the_input_with_bad_images_in_their_place(
    tiny: Path, many: Path, tmp_path: Path
) -> None:
    output = tmp_path / "p.csv"
    result = finetune.predict(tiny, many, output=output, device="cpu", batch_size=7)
    rows = read_csv(output.read_text())
    files = sorted(many.iterdir())
    assert [row["path"] for row in rows] == [str(file) for file in files]
    assert {Path(row["path"]).name: row["error"] for row in rows if row["error"]} == {
        "07.png": "not an image: text", "31.png": "truncated PNG"
    }  # fmt: skip
    good = [file for file in files if file.name not in ("07.png", "31.png")]
    expected = Predictor(load_model(tiny), device="cpu").predict_proba(good)
    actual = [float(row["probability"]) for row in rows if not row["error"]]
    assert actual == pytest.approx(expected.max(dim=1).values.tolist(), abs=1e-6)
    assert (result.num_images, result.num_unreadable) == (38, 2)
    assert result.to_json()["num_unreadable"] == 2


def test_formats_hold_the_same_values(tiny: Path, many: Path, tmp_path: Path) -> None:
    values: dict[str, list[Any]] = {}
    probabilities: dict[str, list[float]] = {}
    for suffix in ("csv", "jsonl", "parquet"):
        file = tmp_path / f"p.{suffix}"
        finetune.predict(tiny, many, output=file, device="cpu", top_k=2, all_probabilities=True)
        if suffix == "csv":
            rows: list[dict[str, Any]] = [dict(row) for row in read_csv(file.read_text())]
        elif suffix == "parquet":
            rows = parquet.read_table(file).to_pylist()
            assert list(rows[0]) == [
                "path", "label", "probability", "label_2", "probability_2",
                *(f"probability_{name}" for name in CLASSES), "error",
            ]  # fmt: skip
        else:
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for row in rows:
                row |= {f"probability_{k}": v for k, v in row.pop("probabilities", {}).items()}
                row["label_2"] = row["top"][1]["label"] if "top" in row else None
        keys = ("path", "error", "label", "label_2")
        values[suffix] = [tuple(row.get(key) or None for key in keys) for row in rows]
        probabilities[suffix] = [
            float(row.get(f"probability_{name}") or 0) for row in rows for name in CLASSES
        ]
    assert values["csv"] == values["jsonl"] == values["parquet"]
    assert probabilities["csv"] == pytest.approx(probabilities["jsonl"], abs=1e-6)
    assert probabilities["parquet"] == pytest.approx(probabilities["jsonl"], abs=1e-6)
    assert len(values["csv"]) == 40
    assert sum(probabilities["jsonl"]) == pytest.approx(38, abs=1e-3)
    assert list_names(tmp_path) == ["p.csv", "p.jsonl", "p.parquet"]


def test_all_inputs_give_the_same_predictions(
    cli: Cli, tiny: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(many.iterdir())
    (tmp_path / "list.txt").write_text("\n".join(map(str, files)))
    (tmp_path / "table.csv").write_text("photo\n" + "\n".join(map(str, files)))
    write_hub_file(tmp_path / "hub/0.parquet", [(f.read_bytes(), f.name, 0) for f in files])
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
    inputs: list[tuple[object, ...]] = [
        (many,), tuple(files), (tmp_path / "list.txt",),
        (tmp_path / "table.csv", "--column", "photo"), (tmp_path / "hub",),
        (tmp_path / "all.tar",), ("--list", tmp_path / "list.txt"), ("-",),
    ]  # fmt: skip
    found = []
    for words in inputs:
        data = io.BytesIO((tmp_path / "list.txt").read_bytes())
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(data))
        out = cli.ok("predict", tiny, *words, "--device", "cpu").out
        found.append([(r["label"], r["probability"], r["error"]) for r in read_csv(out)])
    assert all(one == found[0] for one in found)
    assert len(found[0]) == 40


def test_temperature_divides_the_logits(tiny: Path, many: Path) -> None:
    file = many / "00.png"
    logits = Predictor(load_model(tiny), device="cpu").predict_logits([file])[0, 0]
    result = finetune.predict(tiny, file, device="cpu", temperature=0.1)
    expected = (logits / 0.1).softmax(0).max()
    assert result.predictions[0].probabilities[0] == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(ConfigError, match="--temperature 0 is not a number above 0"):
        finetune.predict(tiny, file, device="cpu", temperature=0)


def test_stream_predictions_yields_rows_and_reads_few_images_ahead(
    tiny: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []
    load = Predictor.load_views

    def count(self: Predictor, source: Any, row: int) -> Any:
        loaded.append(row)
        return load(self, source, row)

    monkeypatch.setattr(Predictor, "load_views", count)
    monkeypatch.setattr("finetune.commands.predict.prediction_job.count_available_cores", lambda: 2)
    rows = finetune.stream_predictions(tiny, many, device="cpu", batch_size=2)
    first = next(rows)
    assert (Path(first.name).name, first.reason) == ("00.png", None)
    assert len(loaded) <= 8
    rest = list(rows)
    assert len(rest) == 39
    assert [Path(row.name).name for row in rest if row.reason] == ["07.png", "31.png"]
    abandoned = finetune.stream_predictions(tiny, many, device="cpu", batch_size=2)
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]


def test_without_a_readable_image_nothing_is_printed_or_written(
    cli: Cli, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text(f"{folder}/0.png\n{folder}/gone.png\n")
    for images, part in ((folder, "not an image (3"), (tmp_path / "list.txt", "does not exist")):
        output = tmp_path / "p.csv"
        message = cli.fails("predict", tiny, images, "--output", output, code=DataError.exit_code)
        assert "No readable image in" in message
        assert part in message
        assert not output.exists()
        assert list_names(tmp_path) == ["list.txt", "new"]
        cli.fails("predict", tiny, images, code=DataError.exit_code)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--output", "a.xlsx"), "no format is known for .xlsx"),
        (("--output", "a.json"), ".jsonl"),
        (("--output-format", "parquet"), "--output predictions.parquet"),
        (("--output-format", "xml"), "Choose one of csv, jsonl, parquet"),
        (("--part-size", "4"), "Add --shards"),
        (("--shards", "x", "--output", "a.csv"), "Leave out one of them"),
        (("--column", "x"), "has no columns"),
    ],
)
def test_options_that_cannot_apply_are_refused(
    cli: Cli, tiny: Path, many: Path, words: tuple[str, ...], part: str
) -> None:
    assert part in cli.fails("predict", tiny, many, *words, code=ConfigError.exit_code)


def test_several_processes_without_shards_are_refused(
    cli: Cli, tiny: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
                       "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    assert "Add --shards FOLDER" in cli.fails("predict", tiny, many, code=ConfigError.exit_code)


def test_columns_of_ranks_and_of_classes_that_are_numbers_are_not_mixed_up(
    cli: Cli, many: Path, tmp_path: Path
) -> None:
    model = write_bundle(tmp_path / "digits", seed=0, classes=("1", "2", "3"))
    words = ("predict", model, many / "00.png", "--device", "cpu", "--all-probabilities")
    assert list(read_csv(cli.ok(*words).out)[0])[3:] == [
        "probability_1", "probability_2", "probability_3", "error"
    ]  # fmt: skip
    outputs = [("--output", tmp_path / f"p.{suffix}") for suffix in ("csv", "parquet")]
    for output in ((), *outputs, ("--shards", tmp_path / "parts")):
        message = cli.fails(*words, "--top-k", 2, *output, code=ConfigError.exit_code)
        assert "two columns probability_2: that of rank 2" in message
        assert ("JSON lines" in message) == ("--shards" not in output)
    assert list_names(tmp_path) == ["digits"]
    lines = tmp_path / "p.jsonl"
    cli.ok(*words, "--top-k", 2, "--output", lines)
    row = json.loads(lines.read_text())
    assert (len(row["top"]), sorted(row["probabilities"])) == (2, ["1", "2", "3"])


def test_outputs_are_distinct_and_replace_no_input(
    cli: Cli, tiny: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = many / "00.png"
    Path("t.csv").write_text(f"path\n{image}\n")
    Path("x.txt").write_text(f"{image}\n")
    write_hub_file(tmp_path / "hub/0.parquet", [(image.read_bytes(), "0.png", 0)])
    Path("photos").mkdir()
    Path("photos/a.png").write_bytes(image.read_bytes())
    Path("link.csv").symlink_to("t.csv")
    Path("own").mkdir()
    for name in ("b.png", "a.csv"):
        (Path("own") / name).write_bytes(image.read_bytes())
    Path("own.txt").write_text(f"{image}\n./own/../own/b.png\nown/a.csv\n")
    Path("own.csv").write_text(f"path\n{image}\nown/b.png\n")
    parquet.write_table(pa.table({"path": [str(image), "own/b.png"]}), "own.parquet")
    Path("prior.csv").write_text("class,prior\nant,1\nbee,1\ncat,1\n")
    model = load_model(tiny)
    with_prior = tmp_path / "with prior"
    priors = Priors((0.2, 0.3, 0.5), (0.2, 0.3, 0.5))
    save_bundle(model.network, replace(model.card, priors=priors), with_prior)
    as_image = ("--output", "own/b.png", "--output-format", "csv")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    same = "are the same file"
    replaced = "would replace an input"
    cases: list[tuple[tuple[object, ...], str]] = [
        ((image, "--output", "x.csv", "--embeddings", "./x.csv"), same),
        (("t.csv", "--output", "t.csv"), replaced),
        (("t.csv", "--output", "link.csv"), replaced),
        (("photos", "t.csv", "--output", tmp_path / "t.csv"), replaced),
        (("--list", "x.txt", "--output", "x.txt", "--output-format", "csv"), replaced),
        (("hub", "--output", "hub/0.parquet"), replaced),
        (("hub/*.parquet", "--embeddings", "hub/0.parquet"), replaced),
        (("photos/a.png", "--output", "photos/a.png", "--output-format", "csv"), replaced),
        (("photos", "--output", "photos/a.png", "--output-format", "csv"), replaced),
        (("--list", "own.txt", *as_image), replaced),
        (("own.csv", *as_image), replaced),
        (("own.parquet", "--column", "path", *as_image), replaced),
        (("photos", "--list", "own.txt", *as_image), replaced),
        (("--list", "own.txt", "--embeddings", "own/a.csv"), replaced),
    ]
    for words, part in cases:
        message = cli.fails("predict", tiny, *words, code=ConfigError.exit_code)
        assert part in message, words
    piped = io.TextIOWrapper(io.BytesIO(f"{image}\nown/b.png\n".encode()))
    monkeypatch.setattr("sys.stdin", piped)
    words = ("predict", tiny, "-", *as_image, "--device", "cpu")
    assert replaced in cli.fails(*words, code=ConfigError.exit_code)
    words = ("predict", with_prior, "photos", "--prior", "prior.csv", "--output", "prior.csv")
    assert replaced in cli.fails(*words, code=ConfigError.exit_code)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    cli.ok(
        "predict", tiny, "t.csv", "--output", "p.csv", "--embeddings", "e.csv", "--device", "cpu"
    )


def test_saliency_maps_replace_no_image(tiny: Path, many: Path, tmp_path: Path) -> None:
    content = (many / "00.png").read_bytes()
    for name in ("a.png", "a.png.png"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"would replace an image .*a\.png\.png"):
        finetune.predict(tiny, tmp_path, device="cpu", saliency=tmp_path, output=tmp_path / "p.csv")
    assert {file.name for file in tmp_path.iterdir()} == {"a.png", "a.png.png"}
    assert (tmp_path / "a.png.png").read_bytes() == content


def test_predictions_replace_no_file_of_a_run(tiny: Path, many: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "manifest.csv", "metrics.csv", "val_predictions.npz"):
        (run / name).write_text("")
    (tmp_path / "link.csv").symlink_to("run/metrics.csv")
    files = {"output": tmp_path / "link.csv", "embeddings": run / "val_predictions.npz"}
    for option, file in files.items():
        with pytest.raises(ConfigError, match="would replace a file of the run in"):
            finetune.predict(tiny, many / "00.png", device="cpu", **{option: file})  # type: ignore[arg-type]
    assert all(file.read_text() == "" for file in run.iterdir())
    for _ in range(2):  # its own earlier output
        finetune.predict(tiny, many / "00.png", device="cpu", output=run / "p.csv")
    assert "00.png" in (run / "p.csv").read_text()


@pytest.mark.parametrize("name", ["p.txt", "p", "p.jpg"])
def test_output_of_unknown_format_is_refused_before_the_model_is_loaded(
    cli: Cli, tiny: Path, many: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / name
    message = cli.fails("predict", tiny, many, "--output", output, code=ConfigError.exit_code)
    assert "Name the file .csv, .jsonl or .parquet" in message
    assert not output.exists()


def test_output_to_a_pipe_is_refused(cli: Cli, tiny: Path, many: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    message = cli.fails(
        "predict", tiny, many, "--output", tmp_path / "pipe.csv", code=RunFolderError.exit_code
    )
    assert "device or a pipe" in message
    assert (tmp_path / "pipe.csv").is_fifo()
