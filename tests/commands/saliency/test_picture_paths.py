"""Tests of the paths of pictures, of which no two are the same."""

from pathlib import Path

from finetune.commands.saliency.picture_paths import PicturedImage, plan_pictures

OUT = Path("maps")


def plan(root: str, *images: tuple[str, str | None]) -> list[str]:
    """Return the pictures of images below the folder of maps; without a path, one is in a table."""
    pictured = [
        PicturedImage(name, Path(path or "/tmp/0"), is_copy=path is None) for name, path in images
    ]
    return [path.relative_to(OUT).as_posix() for path in plan_pictures(pictured, OUT, Path(root))]


def test_distinct_names_stay_short() -> None:
    assert plan("in", ("in/x/1.png", "in/x/1.png"), ("/far/2.png", "/far/2.png")) == [
        "x/1.png.png", "2.png.png"
    ]  # fmt: skip


def test_equal_names_get_the_folders_that_tell_them_apart() -> None:
    found = plan("l.txt", *((p, p) for p in ("/a/k/x.png", "/b/k/x.png", "/c/x.PNG", "/c/y.png")))
    assert found == ["a/k/x.png.png", "b/k/x.png.png", "c/x.PNG.png", "y.png.png"]


def test_pictures_stay_in_their_folder() -> None:
    found = plan("in", ("in/../own/x.png", "in/../own/x.png"), ("../x.png", "../x.png"))
    assert len(set(found)) == 2
    assert not any(".." in path for path in found)


def test_images_given_twice_have_one_picture() -> None:
    assert plan("l.txt", ("/a/x.png", "/a/x.png"), ("/a/./x.png", "/a/x.png")) == ["x.png.png"] * 2


def test_rows_of_tables_of_one_name_are_numbered() -> None:
    rows = [("t.csv/row1", None), ("t.csv/row1", None)]
    found = plan("a/t.csv", *rows, ("t.csv/row1 (2)", None))
    assert len({path.rsplit("/", 1)[-1] for path in found}) == 3
    assert found[1].endswith("t.csv/row1 (3).png")
    twice = [("x.png", "/a/x.png"), ("x.png", "/b/x.png")]
    assert plan("l.txt", *twice) == ["a/x.png.png", "b/x.png.png"]
