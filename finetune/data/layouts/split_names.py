"""Names of splits: words for train, val and test in the names of folders and in CSVs."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from finetune.errors import DataError
from finetune.lookup import suggest_name
from finetune.types import Split
from finetune.units import shorten_text

SplitSetting = Literal["auto", "none"] | Mapping[str, Split]
"""How splits are found: by their names, not at all, or by the given names."""

CLASSIC_NAMES = frozenset({"train", "val", "valid", "validation", "test"})
"""Names that need no explanation, in lower case."""

SPLIT_WORDS: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training", "trainval", "trn"), Split.TRAIN),
    **dict.fromkeys(("val", "valid", "validate", "validation", "vali"), Split.VAL),
    **dict.fromkeys(("dev", "devel", "development", "eval", "evaluation"), Split.VAL),
    **dict.fromkeys(("test", "testing", "tests", "tst"), Split.TEST),
}
"""Words that mean a split, in lower case; the guide to data layouts lists them."""

_UNLABELLED_WORDS = frozenset(
    ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "unsup",
     "unsupervised", "inference", "infer")
)  # fmt: skip
_NEUTRAL_WORDS = frozenset(
    ("set", "sets", "subset", "split", "splits", "partition", "data", "dataset", "datasets", "db",
     "image", "images", "img", "imgs", "pic", "pics", "picture", "pictures", "photo", "photos",
     "sample", "samples", "folder", "folders", "dir", "directory", "class", "classes", "seg", "cls",
     "jpg", "jpeg", "png", "raw", "crop", "crops", "cropped", "resized", "aug", "augmented", "new",
     "final", "clean", "cleaned", "orig", "original", "full", "labeled", "labelled", "the", "my",
     "of", "for", "px", "x")
)  # fmt: skip
"""Words beside the one for a split that do not change the meaning of the name."""

_FOLDERS_OF_IMAGES = frozenset(
    ("image", "images", "img", "imgs", "pic", "pics", "picture", "pictures", "photo", "photos",
     "data", "jpg", "jpeg", "jpegs", "png", "pngs", "jpegimages")
)  # fmt: skip


class _NameParts(NamedTuple):
    """Split in the name of a folder, and the words before and after it that have a meaning."""

    split: Split
    before: tuple[str, ...]
    after: tuple[str, ...]


def parse_split_name(name: str) -> Split | None:
    """Return the split that a name plainly means, such as Training or val_images; else None.

    Any case is accepted, and words like "set", "images" or a number beside the one for the split.
    """
    parts = _find_parts(name)
    return None if parts is None or parts.before or parts.after else parts.split


def build_split_parser(splits: SplitSetting) -> Callable[[str, str], Split | None]:
    """Return the function from the text of the column split and its place to the split."""
    given = {} if isinstance(splits, str) else {n.casefold(): s for n, s in splits.items()}

    def parse(name: str, where: str) -> Split | None:
        if not name or splits == "none":
            return None
        split = given.get(name.casefold()) or parse_split_name(name)
        if split is None:
            raise DataError(
                f"{where}: unknown split "
                f"'{shorten_text(name)}'.{suggest_name(name, list(Split))} If it is one, "
                f"say which, as in data.splits='{name}=val'."
            )
        return split

    return parse


def is_unlabelled_name(name: str) -> bool:
    """Return whether a name means images without labels, such as seg_pred or unlabeled."""
    words = list(_iter_words(name))
    others = [word for word in words if word not in _UNLABELLED_WORDS]
    return len(others) < len(words) and all(map(_is_neutral, others))


def is_folder_of_images_name(name: str) -> bool:
    """Return whether a name only says that a folder holds images, such as images or data."""
    return name.casefold() in _FOLDERS_OF_IMAGES


def find_split_families(names: Iterable[str]) -> list[dict[str, Split]]:
    """Return the names of splits that belong together, as dictionaries of name to split.

    Plain names form a family, even one alone; names with further words form one if they differ in
    the split only, and one of them is for training: cars_train and cars_test.
    """
    families: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, Split]] = {}
    for name in names:
        if (parts := _find_parts(name)) is not None:
            families.setdefault((parts.before, parts.after), {})[name] = parts.split
    plain = families.pop(((), ()), None)
    complete = [
        family
        for family in families.values()
        if Split.TRAIN in family.values() and len(set(family.values())) > 1
    ]
    return complete if plain is None else [plain, *complete]


def _find_parts(name: str) -> _NameParts | None:
    """Return the parts of a name with exactly one word for a split; else None."""
    words = list(_iter_words(name))
    positions = [position for position, word in enumerate(words) if word in SPLIT_WORDS]
    if len(positions) != 1:
        return None
    (position,) = positions
    before, after = (
        tuple(word for word in part if not _is_neutral(word))
        for part in (words[:position], words[position + 1 :])
    )
    return _NameParts(SPLIT_WORDS[words[position]], before, after)


def _is_neutral(word: str) -> bool:
    return word in _NEUTRAL_WORDS or word.isdecimal()


def _iter_words(name: str) -> Iterator[str]:
    """Yield the words and numbers of a name in lower case; TrainSet and trainset are two words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    for word in re.findall(r"[^\W\d_]+|\d+", spaced.casefold()):
        yield from _divide(word)


def _divide(word: str) -> tuple[str, ...]:
    """Return a word, or the two that it is written together of: trainset, testimages, imgtrain."""
    if word in SPLIT_WORDS or word in _NEUTRAL_WORDS:
        return (word,)
    for known in (*SPLIT_WORDS, *_UNLABELLED_WORDS):
        if word.removeprefix(known) in _NEUTRAL_WORDS:
            return known, word.removeprefix(known)
        if word.removesuffix(known) in _NEUTRAL_WORDS:
            return word.removesuffix(known), known
    return (word,)
