"""Every page in Chromium, as a user goes through them; skipped where there is no Chromium."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pymatgen.core import Structure

from discovery.dashboard import views
from discovery.dashboard.source import Source
from discovery.report import write_report
from discovery.store import Store, sqlite_url
from tests.discovery.campaigns import tiny_config

playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser; pip install -e '.[dev]'")
expect = playwright.expect

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; install it, or name it in CHROMIUM")

PATIENCE = 180_000
"""Milliseconds to wait for what must appear; a busy machine is slow."""

INEXHAUSTIBLE = {
    "chemical_space": "Ag-Al-Au-Cu-Ni-Pd-Pt",
    "rounds": 10_000,
    "targets_per_round": 4,
    "reference_calls_per_round": 4,
    "budget": {"wall_hours": 0.2},
}
"""A search that still selects new crystals, and so moves its hull growth, however late the page looks."""


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: playwright.Browser) -> Iterator[Callable[..., playwright.Page]]:
    """Return a function that opens an address; errors on the console fail the test."""
    problems: list[str] = []
    contexts = []

    def start(address: str, width: int = 1280, scheme: str = "light") -> playwright.Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: outside(request.url))
        page.goto(address)
        return page

    def outside(url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:")):
            problems.append(f"asks for {url}")

    yield start
    for context in contexts:
        context.close()
    assert problems == []


def test_from_the_hull_to_a_download(
    serve: Callable[..., str], open_page: Callable[..., playwright.Page], run_dir: Path, source: Source
) -> None:
    page = open_page(serve(run_dir))
    page.get_by_role("link", name="tiny").click()
    page.get_by_text("new phases on the hull", exact=True).first.wait_for()
    page.locator("#plot-growth .main-svg").first.wait_for()
    page.get_by_role("link", name="Hull").click()
    page.locator("#hull .scatterlayer").first.wait_for()
    diagram = views.hull_diagram(source, "reference", ("Al", "Au", "Cu"))
    assert diagram is not None
    found = [point for point in diagram.points if point.on_hull and point.discovered]
    green = "rgb(0, 158, 115)"  # of discovered phases on the hull, which are drawn in the order of the diagram
    marks = page.locator(f"#hull .points path[style*='fill: {green}']")
    assert marks.count() == len(found)
    box = marks.first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.get_by_role("heading", name=found[0].id).wait_for()
    assert page.url.endswith(f"/ternary/crystal/{found[0].id}")
    page.locator("#plot-shape-0 .gl-container canvas").first.wait_for()
    page.get_by_text("asked for because").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="CIF").click()
    text = Path(download.value.path()).read_text()
    structure = Structure.from_str(text, fmt="cif")
    assert structure.reduced_formula == found[0].formula
    assert download.value.suggested_filename.endswith(".cif")


def test_the_slider_goes_back_to_what_was_known(
    serve: Callable[..., str], open_page: Callable[..., playwright.Page], run_dir: Path
) -> None:
    page = open_page(f"{serve(run_dir)}/ternary/hull")
    page.get_by_role("cell", name="discovered").first.wait_for()
    handle = page.get_by_role("slider")
    handle.focus()
    page.keyboard.press("Home")
    page.get_by_text("hull version 1:").wait_for()
    assert page.get_by_role("cell", name="discovered").count() == 0
    page.keyboard.press("End")
    page.get_by_role("cell", name="discovered").first.wait_for()
    page.get_by_label("screening oracle").check()
    page.get_by_role("cell", name="discovered").first.wait_for()


def test_tables_sort_filter_and_open_by_keyboard(
    serve: Callable[..., str], open_page: Callable[..., playwright.Page], run_dir: Path, source: Source
) -> None:
    page = open_page(f"{serve(run_dir)}/ternary/candidates")
    page.locator(".ag-row").first.wait_for()
    page.locator(".ag-floating-filter-input input").first.fill("au")
    wanted, total = source.queries.page(where=[("formula", "contains", "au")])
    page.wait_for_function(
        "formulas => [...document.querySelectorAll('.ag-pinned-left-cols-container .ag-cell')].length > 0 &&"
        " [...document.querySelectorAll('.ag-pinned-left-cols-container .ag-cell')]"
        ".every(cell => formulas.includes(cell.innerText))",
        arg=sorted({row["formula"] for row in wanted}),
    )
    assert total
    page.get_by_role("link", name="Discoveries").click()
    page.locator(".ag-row").first.wait_for()
    rows = views.discoveries(source)
    assert page.locator(".ag-pinned-left-cols-container .ag-row").first.inner_text() == rows[0].formula
    page.locator(".ag-center-cols-container .ag-cell").first.focus()
    page.keyboard.press("Space")
    page.get_by_role("heading", name=rows[0].id).wait_for()


@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_fits_and_is_labelled(
    serve: Callable[..., str], open_page: Callable[..., playwright.Page], run_dir: Path, source: Source, width: int
) -> None:
    address = serve(run_dir)
    page = open_page(address, width, "dark")
    crystal = views.discoveries(source)[0].id
    awaited = {
        "/": ".campaign",
        "/ternary": "#plot-growth .main-svg",
        "/ternary/hull": "#hull .main-svg",
        "/ternary/discoveries": ".ag-row",
        "/ternary/candidates": ".ag-row",
        "/ternary/trust": "#plot-parity .main-svg",
        f"/ternary/crystal/{crystal}": "#plot-shape-0 canvas",
        "/compare": "#plot-comparison .main-svg",
    }
    for path, selector in awaited.items():
        page.goto(address + path)
        page.locator(selector).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 19, 28)"
        assert page.locator("[role=img]:not([aria-label])").count() == 0, path
        assert page.locator("h1").count() >= 1, path
    page.get_by_label("light", exact=True).check()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"


def test_an_unknown_page_and_an_empty_folder_say_so(
    serve: Callable[..., str], open_page: Callable[..., playwright.Page], tmp_path: Path, run_dir: Path
) -> None:
    open_page(serve(tmp_path)).get_by_text("There is no campaign here yet").wait_for()
    page = open_page(f"{serve(run_dir)}/nothing/here")
    page.get_by_role("heading", name="Not found").wait_for()


def test_text_from_data_is_shown_as_text(
    serve: Callable[..., str], open_page: Callable[..., playwright.Page], tmp_path: Path
) -> None:
    evil = "<img src=x onerror=document.title='hacked'>"
    store = Store.create(
        sqlite_url(tmp_path / "campaign.sqlite"),
        name=evil,
        seed=0,
        config=tiny_config(tmp_path).model_dump(mode="json"),
        config_hash="",
    )
    store.set_state("failed", evil)
    store.close()
    page = open_page(serve(tmp_path))
    page.get_by_text(evil).first.click()
    page.get_by_text(f"failed: {evil}").wait_for()
    assert page.title() != "hacked"


def test_the_report_is_drawn_without_a_server(open_page: Callable[..., playwright.Page], run_dir: Path) -> None:
    write_report(run_dir)
    page = open_page((run_dir / "report.html").as_uri())
    figures = page.locator("[role=img]")
    assert figures.count() >= 6
    for figure in figures.all():
        figure.locator(".main-svg, canvas").first.wait_for()


def test_a_running_campaign_is_followed_and_paused(
    serve: Callable[..., str], open_page: Callable[..., playwright.Page], tmp_path: Path
) -> None:
    folder = tmp_path / "live"
    config = tiny_config(folder, campaign=INEXHAUSTIBLE)
    config.save(tmp_path / "config.yaml")
    code = (
        "import sys; from pathlib import Path; from discovery import config; from discovery.campaign import Campaign\n"
        "with Campaign.launch(config.read(Path(sys.argv[1]))) as campaign: campaign.run()"
    )
    page = open_page(serve(tmp_path, token="secret"))  # noqa: S106
    page.get_by_text("There is no campaign here yet").wait_for()
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "config.yaml")])
    try:
        page.get_by_role("link", name="tiny").click()
        badge = page.locator("#badge")
        growth = page.locator("#plot-growth path.js-line").first
        badge.filter(has_text=re.compile(r"^running, round ([2-9]|\d\d)")).wait_for()
        before = growth.get_attribute("d")
        assert before
        page.get_by_label("Control token").fill("secret")
        page.get_by_role("button", name="Pause").click()
        page.get_by_text(f"Asked process {driver.pid} to pause.").wait_for()
        badge.filter(has_text=re.compile("^paused")).wait_for()
        page.get_by_role("button", name="Resume").click()
        badge.filter(has_text=re.compile("^running")).wait_for()
        expect(growth).not_to_have_attribute("d", before, timeout=PATIENCE)
        page.get_by_role("button", name="Stop").click()
        driver.wait(timeout=PATIENCE / 1000)
        badge.filter(has_text=re.compile("^interrupted")).wait_for()
    finally:
        driver.kill()
        driver.wait()
