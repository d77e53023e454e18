"""Shares from a file: what is understood, and one message for each mistake."""

import unicodedata
from pathlib import Path

import pytest

from finetune.errors import ConfigError
from finetune.evaluation.prior_file import check_prior, read_prior

CLASSES = ("bée", "fly", "wasp, red")

GOOD = {
    "a.json": '{"fly": 1, "wasp, red": 2.5, "bée": 0.5}',
    "b.JSON": '{"fly": 0.25, "wasp, red": 0.625, "bée": 0.125}',
    "c.csv": 'class,share\nfly,1\n"wasp, red",2.5\n\nbée,0.5\n',
    "d.csv": '\ufeffClass, Share\r\nbée,2\r\nfly,4\r\n"wasp, red",10\r\n',
    "e.csv": unicodedata.normalize("NFD", 'class,share\nbée,2\nfly,4\n"wasp, red",1e1\n'),
}


@pytest.mark.parametrize("name", GOOD)
def test_shares_are_read_in_class_order_and_add_up_to_one(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(GOOD[name], encoding="utf-8")
    check_prior(str(file), CLASSES)
    check_prior(str(file), None)
    assert read_prior(file, CLASSES) == pytest.approx((0.125, 0.25, 0.625))


def test_a_share_may_be_zero(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"fly": 0, "wasp, red": 1, "bée": 1}', encoding="utf-8")
    assert read_prior(file, CLASSES) == (0.5, 0.0, 0.5)


def of_fly(value: str) -> str:
    return f'{{"fly": {value}, "wasp, red": 1, "bée": 1}}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"fly": 1}', r"2 of 3 classes have no share: bée, wasp, red\. .*0 for one"),
        ("a.json", "{}", "3 of 3 classes have no share"),
        ("a.json", of_fly("1").replace("fly", "flyy"), "knows no class 'flyy'. Did you mean 'fly'"),
        ("a.json", of_fly('1, "fly": 2'), "class 'fly' is there twice"),
        ("a.json", of_fly("-1"), "the share of class 'fly' is -1; it must be a number, 0 or more"),
        ("a.json", of_fly("NaN"), "share of class 'fly' is nan"),
        ("a.json", of_fly("Infinity"), "share of class 'fly' is inf"),
        ("a.json", of_fly("true"), "share of class 'fly' is True"),
        ("a.json", of_fly("1" + 399 * "0"), r"share of class 'fly' is 10{39}…; it must be"),
        ("a.json", of_fly("null"), "share of class 'fly' is None"),
        ("a.json", of_fly('{"a": 1}'), "share of class 'fly' is .*it must be a number"),
        ("a.json", '{"fly": 0, "wasp, red": 0, "bée": 0}', "all shares are 0"),
        ("a.json", "{", "is no JSON"),
        ("a.json", "[1, 2]", "must be one JSON object"),
        ("a.json", "3", "must be one JSON object"),
        ("a.csv", "", "first line must be class,share"),
        ("a.csv", "fly,1\nbée,2\n", "first line must be class,share"),
        ("a.csv", "class,share\nfly,1\nwasp, red,1\n", "line 3 has 3 cells, not 2"),
        ("a.csv", "class,share\nfly,many\n", "share of class 'fly' is many"),
        ("a.csv", "class,share\nfly,1\nfly,1\n", "class 'fly' is there twice"),
    ],
)
def test_each_mistake_is_one_message_that_names_the_file(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_prior(file, CLASSES)
    assert str(caught.value).startswith(f"--prior {file}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_is_checked_with_classes_and_without(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"fly": 1}', encoding="utf-8")
    check_prior(str(file), None)
    with pytest.raises(ConfigError, match="2 of 3 classes have no share"):
        check_prior(str(file), CLASSES)
    file.write_text('{"fly": -1}', encoding="utf-8")
    for classes in (None, CLASSES):
        with pytest.raises(ConfigError, match="share of class 'fly' is -1"):
            check_prior(str(file), classes)


def test_what_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfec\x00")
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        read_prior(tmp_path / "a.csv", CLASSES)


@pytest.mark.parametrize("name", ["uniform", "train", "model"])
def test_names_are_known(name: str) -> None:
    check_prior(name, None)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ("balanced", "there are uniform, train, model, or a .json or .csv file"),
        ("gone.csv", "--prior gone.csv: there is no such file"),
        (".", "--prior .: there are uniform"),
    ],
)
def test_what_is_neither_a_name_nor_a_file_is_refused(prior: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_prior(prior, CLASSES)
