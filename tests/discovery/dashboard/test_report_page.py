"""The report as one HTML file: it needs nothing else, and text from data stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from discovery.report import make_page, write_report
from discovery.status import read_status
from discovery.store import Store, sqlite_url
from tests.discovery.campaigns import tiny_config


class Tags(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return make_page(run_dir)


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    tags = Tags(page).tags
    assert not [attributes for tag, attributes in tags if tag in ("script", "img", "iframe") and "src" in attributes]
    assert not [tag for tag, _ in tags if tag == "link"]
    assert all((a.get("href") or "#").startswith("#") for tag, a in tags if tag == "a")
    assert page.count("plotly.js v") == 1


def test_the_page_names_every_stable_discovery_and_describes_every_plot(page: str, run_dir: Path) -> None:
    stable = read_status(run_dir).stable
    assert stable
    for found in stable:
        assert found.phase.id in page
    images = [attributes for tag, attributes in Tags(page).tags if attributes.get("role") == "img"]
    assert len(images) >= 6
    assert all(attributes["aria-label"] for attributes in images)
    sections = [attributes["aria-label"] for tag, attributes in Tags(page).tags if tag == "section"]
    assert sections == ["Overview", "Hull", "Discoveries", "Crystals", "Trust"]


def test_identifiers_of_the_page_are_unique(page: str) -> None:
    ids = [attributes["id"] for _, attributes in Tags(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_both_forms_are_written(run_dir: Path) -> None:
    text = write_report(run_dir)
    assert (run_dir / "report.md").read_text() == text
    assert (run_dir / "report.html").read_text().startswith("<!doctype html>")


def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    store = Store.create(
        sqlite_url(tmp_path / "campaign.sqlite"),
        name=evil,
        seed=0,
        config=tiny_config(tmp_path).model_dump(mode="json"),
        config_hash="",
    )
    store.set_state("failed", f"'{evil}\"")
    store.close()
    page = make_page(tmp_path)
    assert evil not in page
    assert "&lt;script&gt;alert(1)" in page
    assert len(re.findall("alert", page)) == page.count("&lt;script&gt;alert")
