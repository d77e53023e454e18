"""Tests of pages in a browser: what is on them, and how it behaves."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune.commands.report.report import report
from finetune.report.section_registry import SECTIONS
from tests.support.helpers import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page

    Opener = Callable[..., Page]

OLD_RUN = ROOT / "tests" / "files" / "run_0_1_0"
FULL_RUN_SECTIONS = [
    "headline", "diagnosis", "data", "plan", "curves", "metrics", "confusion", "classes",
    "calibration", "network", "reproduce",
]  # fmt: skip
"""Sections of a run with one split in their order, but for those with photos."""

_OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"


def test_page_has_every_section_and_charts_and_no_console_message(
    page_file: Path, open_page: "Opener"
) -> None:
    page = open_page(page_file)
    names = page.eval_on_selector_all("main > section", "all => all.map(one => one.id)")
    # a run with one split has no folds; these images have no duplicates and no augmentation;
    # the few test images may all be right
    missing = ("folds", "duplicates", "augmented", "pairs")
    expected = [kind.name for kind in SECTIONS if kind.name not in missing]
    assert [name for name in names if name in expected] == [n for n in expected if n in names]
    assert set(expected) - set(names) == set()
    links = page.eval_on_selector_all(".page-nav a", "all => all.map(one => one.hash.slice(1))")
    assert links == names
    assert page.locator(".u-over").count() == page.locator("[data-chart]").count() > 2
    assert not page.locator(".chart-static").first.is_visible()
    assert page_file.stat().st_size < 5_000_000


def test_page_table_sorts_by_click_and_by_keyboard(page_file: Path, open_page: "Opener") -> None:
    page = open_page(page_file)
    table = page.locator("#classes table").first
    header = table.locator("th", has_text="Train images")

    def read_values() -> list[float]:
        column = header.evaluate("one => one.cellIndex")
        cells = table.locator("tbody tr").evaluate_all(
            f"rows => rows.map(row => row.cells[{column}].dataset.value)"
        )
        return [float(value) for value in cells]

    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert read_values() == sorted(set(read_values()), reverse=True)  # all of them differ
    header.get_by_role("button").press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert read_values() == sorted(read_values())
    name = table.locator("th", has_text="Class").first
    name.get_by_role("button").press("Space")
    assert name.get_attribute("aria-sort") == "ascending"
    assert header.get_attribute("aria-sort") == "none"


def test_page_theme_follows_the_system_and_the_toggle(page_file: Path, open_page: "Opener") -> None:
    def read_background(page: "Page") -> int:
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in color[color.index("(") + 1 : -1].split(",")[:3])

    light, dark = (open_page(page_file, color_scheme=name) for name in ("light", "dark"))
    assert read_background(light) > 600 > 150 > read_background(dark)
    # the button names what it does, so that it is not a switch which is pressed or not
    light.get_by_role("button", name="Dark theme").press("Enter")
    assert read_background(light) < 150
    dark.get_by_role("button", name="Light theme").click()
    assert read_background(dark) > 600
    for page, name in ((light, "Light theme"), (dark, "Dark theme")):
        page.reload()  # the choice stays
        toggle = page.get_by_role("button", name=name, exact=True)
        assert toggle.inner_text() == name
        assert toggle.get_attribute("aria-pressed") is None
        assert (read_background(page) < 150) == (page is light)


def test_page_theme_works_where_the_browser_keeps_nothing(
    page_file: Path, open_page: "Opener"
) -> None:
    page = open_page(page_file)
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('none'); } });"
    )
    page.reload()
    page.get_by_role("button", name="Dark theme").click()
    page.get_by_role("button", name="Light theme").click()
    page.emulate_media(color_scheme="dark")  # the choice is stronger
    page.get_by_role("button", name="Dark theme").wait_for()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("kind", ["run", "comparison", "old run"])
def test_page_does_not_scroll_sideways(
    kind: str,
    width: int,
    page_file: Path,
    comparison_file: Path,
    tmp_path: Path,
    open_page: "Opener",
) -> None:
    file = {"run": page_file, "comparison": comparison_file}.get(kind)
    if file is None:
        file = report([OLD_RUN], output=tmp_path / "old.html").output
    page = open_page(file, width=width)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate(_OVERFLOW) <= 0


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_narrow_page_shows_rows_as_cards_and_hints_at_columns_that_scroll(
    kind: str, page_file: Path, comparison_file: Path, open_page: "Opener"
) -> None:
    page = open_page({"run": page_file, "comparison": comparison_file}[kind], width=390)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    stacks = page.locator("table.stack")
    sections = {"run": ("#plan",), "comparison": ("#runs", "#differences", "#paired", "#changed")}
    for section in sections[kind]:
        assert page.locator(f"{section} table.stack").count() > 0
    # no cell of a card lies outside of the screen, and each but the first has a heading
    assert (
        stacks.evaluate_all(
            "all => all.flatMap(one => [...one.querySelectorAll('td, th')])"
            ".filter(one => one.getBoundingClientRect().right > innerWidth).length"
        )
        == 0
    )
    assert (
        stacks.evaluate_all(
            "all => all.flatMap(one => [...one.querySelectorAll('td ~ td, th ~ td')])"
            ".filter(one => one.textContent.trim() && !one.dataset.label"
            " && !one.matches('.changed-picture + td')).length"
        )
        == 0
    )
    # tables that scroll have a shadow at the edge behind which columns lie
    boxes = page.locator(".table-box")
    assert (
        boxes.evaluate_all(
            "all => all.filter(one => one.scrollWidth > one.clientWidth + 1 &&"
            " !getComputedStyle(one).backgroundAttachment.includes('local')).length"
        )
        == 0
    )


def test_page_on_paper_has_static_charts_and_no_navigation(
    page_file: Path, open_page: "Opener"
) -> None:
    page = open_page(page_file, color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.locator(".page-nav").is_visible()
    assert not page.locator("#theme-toggle").is_visible()
    assert not page.locator(".chart-canvas").first.is_visible()
    assert page.locator(".chart-static").first.is_visible()
    color = page.evaluate("getComputedStyle(document.querySelector('h2')).color")
    assert sum(int(part) for part in color[4:-1].split(",")) < 200  # dark on white


def test_page_without_script_shows_charts_and_tables(page_file: Path, open_page: "Opener") -> None:
    page = open_page(page_file, java_script_enabled=False)
    assert page.locator(".chart-static").first.is_visible()
    assert page.locator("#classes tbody tr").first.is_visible()
    assert not page.locator("#theme-toggle").is_visible()


def test_page_first_tab_stop_skips_to_the_content(page_file: Path, open_page: "Opener") -> None:
    page = open_page(page_file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip-link"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_page_legend_hides_a_line_by_keyboard(page_file: Path, open_page: "Opener") -> None:
    page = open_page(page_file)
    button = page.locator("#curves .legend button").first
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"


@pytest.mark.runs
def test_comparison_shows_differences_tests_and_changed_images(
    comparison_file: Path, open_page: "Opener"
) -> None:
    page = open_page(comparison_file)
    differences = page.locator("#differences tbody tr").all_inner_texts()
    assert [row.split() for row in differences] == [["optim.lr", "0.01", "0.02"]]
    assert page.locator("#paired tbody tr").count() == 6  # three metrics on test and on val
    assert "McNemar" in page.locator("#paired").inner_text()
    rows = page.locator("#changed tbody tr").count()
    assert page.locator("#changed tbody img").count() == rows > 0
    assert page.locator("#overlay .u-over").count() >= 2
