"""Class priors from files: accepted formats, and one message per mistake."""

import unicodedata
from pathlib import Path

import pytest

from finetune.errors import ConfigError
from finetune.evaluation.prior_file import check_prior, read_prior

CLASSES = ("bée", "fly", "wasp, red")

GOOD = {
    "a.json": '{"fly": 1, "wasp, red": 2.5, "bée": 0.5}',
    "b.JSON": '{"fly": 0.25, "wasp, red": 0.625, "bée": 0.125}',
    "c.csv": 'class,prior\nfly,1\n"wasp, red",2.5\n\nbée,0.5\n',
    # the header of version 0.1
    "d.csv": '\ufeffClass, Share\r\nbée,2\r\nfly,4\r\n"wasp, red",10\r\n',
    "e.csv": unicodedata.normalize("NFD", 'class,prior\nbée,2\nfly,4\n"wasp, red",1e1\n'),
}


@pytest.mark.parametrize("name", GOOD)
def test_read_prior_returns_class_order_with_sum_one(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(GOOD[name], encoding="utf-8")
    check_prior(str(file), CLASSES)
    check_prior(str(file), None)
    assert read_prior(file, CLASSES) == pytest.approx((0.125, 0.25, 0.625))


def test_read_prior_accepts_zero(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"fly": 0, "wasp, red": 1, "bée": 1}', encoding="utf-8")
    assert read_prior(file, CLASSES) == (0.5, 0.0, 0.5)


def json_with_fly(value: str) -> str:
    return f'{{"fly": {value}, "wasp, red": 1, "bée": 1}}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"fly": 1}', r"2 of 3 classes .*: bée, wasp, red\."),
        ("a.json", "{}", "3 of 3 classes"),
        ("a.json", json_with_fly("1").replace("fly", "flyy"), r"class 'flyy'\..*'fly'"),
        ("a.json", json_with_fly('1, "fly": 2'), "class 'fly' occurs twice"),
        ("a.json", json_with_fly("-1"), "class 'fly' is -1;.* 0"),
        ("a.json", json_with_fly("NaN"), "class 'fly' is nan"),
        ("a.json", json_with_fly("Infinity"), "class 'fly' is inf"),
        ("a.json", json_with_fly("true"), "class 'fly' is True"),
        ("a.json", json_with_fly("1" + 399 * "0"), r"class 'fly' is 10{39}…;"),
        ("a.json", json_with_fly("null"), "class 'fly' is None"),
        ("a.json", json_with_fly('{"a": 1}'), "class 'fly' is .*'a'"),
        ("a.json", '{"fly": 0, "wasp, red": 0, "bée": 0}', "all values are 0"),
        ("a.json", "{", "JSON"),
        ("a.json", "[1, 2]", "JSON object"),
        ("a.json", "3", "JSON object"),
        ("a.csv", "", "first line .*class,prior"),
        ("a.csv", "fly,1\nbée,2\n", "first line .*class,prior"),
        ("a.csv", "class,prior\nfly,1\nwasp, red,1\n", "line 3 .*3 .*2"),
        ("a.csv", "class,prior\nfly,many\n", "class 'fly' is many"),
        ("a.csv", "class,share\nfly,1\nfly,1\n", "class 'fly' occurs twice"),
    ],
)
def test_read_prior_invalid_file_raises_one_line_that_names_it(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_prior(file, CLASSES)
    assert str(caught.value).startswith(f"--prior {file}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_check_prior_file_with_and_without_classes(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"fly": 1}', encoding="utf-8")
    check_prior(str(file), None)
    with pytest.raises(ConfigError, match="2 of 3 classes"):
        check_prior(str(file), CLASSES)
    file.write_text('{"fly": -1}', encoding="utf-8")
    for classes in (None, CLASSES):
        with pytest.raises(ConfigError, match="class 'fly' is -1"):
            check_prior(str(file), classes)


def test_read_prior_binary_file_raises_config_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfec\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_prior(tmp_path / "a.csv", CLASSES)


@pytest.mark.parametrize("name", ["uniform", "train", "model"])
def test_check_prior_accepts_names(name: str) -> None:
    check_prior(name, None)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ("balanced", r"--prior balanced: .*uniform, train, model.*\.json.*\.csv"),
        ("gone.csv", "--prior gone.csv: .*not exist"),
        (".", r"--prior \.: .*uniform"),
    ],
)
def test_check_prior_unknown_value_raises_config_error(prior: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_prior(prior, CLASSES)
