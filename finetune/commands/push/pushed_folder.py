"""Folder that is uploaded: exported files, and the README with the address on the hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.bundle.bundle import ModelBundle, load_model
from finetune.bundle.card_update import render_stored_readme
from finetune.bundle.model_card import read_card_json
from finetune.bundle.model_page.render_page import render_readme
from finetune.bundle.model_page.usage_example import FOLDER
from finetune.bundle.model_page.weights_origin import (
    WeightsOrigin,
    find_strictest,
    find_weights_origin,
)
from finetune.bundle.shared_card import remove_local_paths
from finetune.commands.distinct_messages import DistinctMessageReporter
from finetune.commands.export.export import export
from finetune.commands.push.pushed_record import write_record
from finetune.errors import ConfigError
from finetune.exporters.parity import PARITY_FILE
from finetune.types import Reporter

PUSHED_FORMATS = ("timm", "huggingface", "onnx")
"""Formats whose weights are safetensors or ONNX; weights of others may contain pickled code."""

_ROOT_FORMATS = ("timm", "huggingface")
_SUFFIXES = (".safetensors", ".onnx", ".onnx.data", ".json", ".md", ".txt", ".pbtxt")
_LIBRARIES = {"huggingface": "transformers", "onnx": "onnx"}
_README = "README.md"

_ONNX_USAGE = """```bash
hf download {repository} --local-dir {folder}
```

Use the model with `finetune predict {folder} images/`, or with ONNX Runtime. The metadata of
`{file}` says what it takes and gives (`input`, `output`), and has the class names and the
preprocessing (`input_size`, `interpolation`, `crop_pct`, `mean`, `std`).

```python
import json

import onnxruntime

session = onnxruntime.InferenceSession("{folder}/{file}")
metadata = session.get_modelmeta().custom_metadata_map
classes = json.loads(metadata["names"])
# {output} = session.run(None, {{session.get_inputs()[0].name: batch}})[0]
```
"""

_BESIDE = """
The folder `{name}/` has the same model as a file of {name}{comparison}.
"""
_COMPARISON = ", compared on the same images\n(`{name}/parity.json`)"


@dataclass(frozen=True, slots=True)
class PushedFolder:
    """Files of an upload.

    Attributes:
        path: Folder.
        files: Size in bytes by path, relative to the folder.
        readme: Content of the README.
        origin: Origin of the backbone's weights, with their licence.
    """

    path: Path
    files: Mapping[str, int]
    readme: str
    origin: WeightsOrigin


def order_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Return the formats of an upload, that of the root folder first; others have subfolders.

    Raises:
        ConfigError: One is unknown, cannot be pushed, or is given twice, or two have files of the
            same name.
    """
    for name in formats:
        if name not in PUSHED_FORMATS:
            raise ConfigError(
                f"--format {name} cannot be pushed. Choose among {', '.join(PUSHED_FORMATS)}, "
                f"whose weights are safetensors or ONNX, without pickled code."
            )
        if list(formats).count(name) > 1:
            raise ConfigError(f"--format {name} is given twice. Give it once.")
    roots = [name for name in formats if name in _ROOT_FORMATS]
    if len(roots) > 1:
        raise ConfigError(
            "--format timm and --format huggingface have files of the same name. Choose one; timm "
            "and finetune read the files of huggingface, too."
        )
    others = [name for name in formats if name not in roots]
    return (*roots, *others)


def build_pushed_folder(
    model: Path,
    folder: Path,
    *,
    repository: str,
    formats: Sequence[str],
    own_license: str | None = None,
    images: Path | None = None,
    prior: str | None = None,
    reporter: Reporter,
) -> PushedFolder:
    """Export a model into an empty folder, with the README of its repository.

    Args:
        model: Run folder, bundle folder or checkpoint.
        folder: Folder that does not exist.
        repository: Name on the hub, as user/name.
        formats: Formats as returned by ``order_formats``.
        own_license: Licence of the model; None for that of the backbone's weights.
        images: Images for the parity check; None for those of the run.
        prior: Target class prior, as for ``export``.
        reporter: Receiver of progress and notes.

    Raises:
        ConfigError: A format wrote a file that is not published.
        FinetuneError: The model cannot be exported, see ``export``.
    """
    first, *others = formats
    reporter = DistinctMessageReporter(reporter)
    export(model, folder, format=first, images=images, prior=prior, reporter=reporter)
    for name in others:
        export(model, folder / name, format=name, images=images, prior=prior, reporter=reporter)
    bundle = remove_local_paths(load_model(model))
    readme = _render_readme(bundle, folder, first, repository, own_license)
    readme += "".join(_describe_subfolder(folder, name) for name in others)
    (folder / _README).write_text(readme, encoding="utf-8")
    for nested in folder.rglob(_README):  # a member of an ensemble is a page of its own
        if nested.parent != folder and nested.parent.parent == folder:
            nested.unlink()
    write_record(folder, list(list_files(folder)))
    origin = find_strictest([find_weights_origin(one.card) for one in bundle.members or (bundle,)])
    return PushedFolder(folder, list_files(folder), readme, origin)


def _describe_subfolder(folder: Path, name: str) -> str:
    """Return a paragraph on the model in a subfolder; on its parity, where that was checked."""
    is_compared = (folder / name / PARITY_FILE).is_file()
    return _BESIDE.format(
        name=name, comparison=_COMPARISON.format(name=name) if is_compared else ""
    )


def list_files(folder: Path) -> dict[str, int]:
    """Return the size of each file in a folder by its path, relative to the folder.

    Raises:
        ConfigError: One is a link, or of a kind that is not published.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ConfigError(f"{name} is a link, and is not pushed. Export the model again.")
        if path.is_dir():
            continue
        if not name.lower().endswith(_SUFFIXES):
            raise ConfigError(
                f"{name} is not pushed: weights are safetensors or ONNX, and other files may "
                f"contain pickled code. Choose another --format."
            )
        files[name] = path.stat().st_size
    return files


def _render_readme(
    bundle: ModelBundle, folder: Path, first: str, repository: str, own_license: str | None
) -> str:
    """Return the README of a repository, with what the exporter of the format says on its use."""
    library = _LIBRARIES.get(first)
    if not (folder / "finetune.json").is_file():
        file = next(iter(sorted(path.name for path in folder.glob("*.onnx"))), "model.onnx")
        usage = _ONNX_USAGE.format(repository=repository, folder=FOLDER, file=file, output="logits")
        return render_readme(
            bundle.card,
            repository=repository,
            library=library,
            own_license=own_license,
            usage=usage,
        )
    tree = read_card_json(folder)
    written = (folder / _README).read_text(encoding="utf-8")
    added = written.removeprefix(render_stored_readme(folder, tree))
    readme = render_stored_readme(
        folder, tree, repository=repository, library=library, own_license=own_license
    )
    return readme + ("" if added == written else added.replace(FOLDER, repository))
