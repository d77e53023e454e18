"""The documentation: generated pages equal the code, links lead somewhere, commands run."""

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile

from finetune.data.layouts.split_names import SPLIT_WORDS
from finetune.types import Split
from scripts.generate_reference import REFERENCE_DIR, build_pages
from tests.support.helpers import ROOT
from tests.support.server_process import start_server

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
EXECUTED = [page for page in PAGES if "```bash" in page.read_text(encoding="utf-8")]
MAX_README_LINES = 200
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


@pytest.mark.parametrize("name", ["cli.md", "config.md"])
def test_generated_reference_page_equals_code(name: str) -> None:
    written = (REFERENCE_DIR / name).read_text(encoding="utf-8")
    assert written == build_pages()[name], "run: uv run python scripts/generate_reference.py"


def test_command_page_has_no_hidden_options() -> None:
    page = build_pages()["cli.md"]
    assert "`--resume`" in page
    assert "`--worker`" not in page  # for the processes that tune starts


def test_links_and_anchors_exist() -> None:
    broken = []
    for page in PAGES:
        for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
            if target.startswith(("http:", "https:", "mailto:")):
                continue
            file = (page.parent / target).resolve() if target else page
            if not file.exists() or (anchor and anchor[1:] not in _list_anchors(file)):
                broken.append(f"{page.relative_to(ROOT)}: {target}{anchor}")
    assert not broken


def test_every_page_is_reachable_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / target).resolve() for target, _ in _LINK.findall(index)}
    assert {page.name for page in DOCS if page.name != "index.md" and page not in linked} == set()


def test_guide_lists_all_words_for_splits() -> None:
    guide = (ROOT / "docs/guides/data-layouts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(train|val|test)` \| (.+) \|$", guide, re.MULTILINE)
    words = {word: Split(split) for split, listed in rows for word in listed.split(", ")}
    assert words == SPLIT_WORDS


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_README_LINES


def test_messages_that_troubleshooting_quotes_exist() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^\*\*(.+?)\*\*", text, re.MULTILINE | re.DOTALL)
    quoted = [message for heading in headings for message in re.findall(r'"([^"]+)"', heading)]
    assert quoted
    messages = [_list_words(message) for message in _iter_messages()]
    unknown = [one for one in quoted if not any(_list_words(one) <= m for m in messages)]
    assert not unknown, "quote messages that the program has"


def _list_words(text: str) -> set[str]:
    """Return the words of a message that are not values of it."""
    words = re.findall(r"[A-Za-z_.\-]{2,}", text.lower())
    return {word.strip(".-") for word in words} - {""}


def _iter_messages() -> Iterator[str]:
    """Yield the texts in the package, those of one function together, without docstrings."""
    for file in sorted((ROOT / "finetune").rglob("*.py")):
        texts: dict[int, list[str]] = {}
        _collect_texts(ast.parse(file.read_text(encoding="utf-8")), 0, texts)
        yield from map(" ".join, texts.values())


def _collect_texts(node: ast.AST, owner: int, texts: dict[int, list[str]]) -> None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        texts.setdefault(owner, []).append(node.value)
    is_function = isinstance(node, ast.FunctionDef)
    for child in ast.iter_child_nodes(node):
        is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        if not is_docstring:
            _collect_texts(child, id(node) if is_function else owner, texts)


def _list_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the forges make them, and its explicit ones."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return anchors | set(re.findall(r'<a id="([^"]+)">', text))


def _iter_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every ``finetune`` line in the page's bash blocks."""
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["finetune"]:
                yield words[1:]


@pytest.mark.slow
@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.stem)
def test_commands_of_page_run(page: Path, docs_place: "DocsPlace") -> None:
    for command in _iter_commands(page):
        docs_place.run(command)


class DocsPlace:
    """A working folder with small photos and weights, where the commands of the docs run.

    Backbones are replaced by a small one with local weights, and models of the hub by a folder,
    since neither a hub nor minutes of training are at hand; every other word of a command is run as
    it stands. A server is ended as soon as it answers.
    """

    BACKBONE = "test_resnet"
    SETTINGS = ("data.image_size=32", "trainer.batch_size=8", "trainer.accelerator=cpu")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, words: list[str]) -> None:
        """Run a command; it must exit with 0."""
        from finetune.cli.main import run

        adapted = self.adapt(words)
        code = self._serve(adapted[1:]) if words[0] == "serve" else run(adapted)
        assert code == 0, f"finetune {' '.join(words)}"

    def _serve(self, words: list[str]) -> int:
        """Start a server, ask for its health, end it and return its exit code."""
        with start_server(words[0], self.folder, *words[1:]) as (process, url):
            assert httpx.get(f"{url}/health").status_code == 200
            process.terminate()
            return process.wait(timeout=60)

    def adapt(self, words: list[str]) -> list[str]:
        """Return the command with a small backbone, small images and one short epoch."""
        verb, words = words[0], list(words)
        if verb in ("fit", "submit") and "--resume" not in words:
            words = _set_option(words, "--backbone", self.BACKBONE)
            words = _set_option(words, "--weights", str(self.folder / "weights.pth"))
            if "linear_probe" not in words and not any(w.startswith("probe.") for w in words):
                words = _set_option(words, "--epochs", "2", keep=True)
            words += self.SETTINGS
        if verb == "inspect" and "--backbone" in words:
            words = _set_option(words, "--backbone", self.BACKBONE)
            words = _set_option(words, "--weights", str(self.folder / "weights.pth"))
        if verb == "compare":
            words = _set_option(words, "--backbones", f"{self.BACKBONE},test_resnet.r160_in1k")
            words = _set_option(words, "--weights", str(self.folder / "weights"))
            words += self.SETTINGS[:1]
        return ["downloaded_folder/" if word.startswith("hf-hub:") else word for word in words]


def _set_option(words: list[str], option: str, value: str, *, keep: bool = False) -> list[str]:
    """Return the words with an option's value; ``keep`` leaves a value that is there."""
    if option not in words:
        return [*words, option, value]
    at = words.index(option) + 1
    return words if keep else [*words[:at], value, *words[at + 1 :]]


def _write_scans(root: Path) -> None:
    """Write two classes of grey TIFFs of signed 16-bit values, as of computed tomography."""
    random = np.random.default_rng(0)
    for name, level in (("bone", 0), ("lung", -800)):
        (root / name).mkdir(parents=True)
        for number in range(8):
            values = random.normal(level, 150, (32, 32)).astype(np.int16)
            tifffile.imwrite(root / name / f"{number}.tif", values)


def _write_multi_label_csv(file: Path) -> None:
    """Write a CSV of the photos beside it, each with its class and another label or none."""
    rows = [
        f"{path.relative_to(file.parent)},{'|'.join([path.parent.name, 'new'][: number % 3])}\n"
        for number, path in enumerate(sorted((file.parent / "photos").rglob("*.png")))
    ]
    file.write_text("path,labels\n" + "".join(rows), encoding="utf-8")


def _write_hub_folder(folder: Path) -> None:
    """Write a network as timm stores it for the hub."""
    import timm
    from timm.models import save_for_hf

    network = timm.create_model("test_resnet", pretrained=False, num_classes=3)
    save_for_hf(network, str(folder), safe_serialization=True)


@pytest.fixture(scope="module")
def finished_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working folder with photos, weights and a finished run at ``runs/latest``."""
    from tests.support.runs import CLASSES, write_photos, write_weights

    folder = tmp_path_factory.mktemp("docs")
    # class folders without splits, as in the quickstart
    (write_photos(folder / "given", num_train=16) / "train").rename(folder / "photos")
    (folder / "given" / "val").rename(folder / "new_photos")
    for photo in sorted((folder / "photos" / CLASSES[-1]).iterdir())[3:]:
        photo.unlink()  # one class is rare
    write_weights(folder / "weights.pth")
    (folder / "weights").mkdir()
    write_weights(folder / "weights" / "test_resnet.pth")
    rows = "".join(f"{name},1\n" for name in CLASSES)
    (folder / "prior.csv").write_text(f"class,prior\n{rows}", encoding="utf-8")
    _write_scans(folder / "scans")
    _write_multi_label_csv(folder / "labels.csv")
    _write_hub_folder(folder / "downloaded_folder")
    shutil.copytree(folder / "new_photos", folder / "labelled_photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        DocsPlace(folder).run(["fit", "photos/", "--epochs", "1"])
    return folder


@pytest.fixture
def docs_place(finished_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DocsPlace:
    """Return a copy of the working folder, for one page."""
    folder = shutil.copytree(finished_place, tmp_path / "place", symlinks=True)
    monkeypatch.setenv("FINETUNE_TOKEN", "0" * 32)
    monkeypatch.chdir(folder)
    return DocsPlace(folder)
