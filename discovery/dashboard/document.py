"""Blocks as one HTML file that needs nothing but a browser: the report that can be mailed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import NamedTuple

from plotly.offline import get_plotlyjs

from discovery.dashboard.blocks import (
    LONG,
    Block,
    Card,
    Downloads,
    Link,
    Meter,
    Plot,
    Table,
    Text,
    Tile,
    Tiles,
    Width,
    rows,
)

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""What a browser may load for the file: nothing that is not in it."""


class Section(NamedTuple):
    """A heading with its cards."""

    title: str
    cards: Sequence[Card]


def document(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the HTML of a whole file; every text is escaped."""
    links = "".join(f"<a href='#{_anchor(one.title)}'>{escape(one.title)}</a>" for one in sections)
    body = "".join(
        f"<section id='{_anchor(one.title)}' aria-label='{escape(one.title)}'>"
        f"<h1 class='title'>{escape(one.title)}</h1>{''.join(_group(*group, one.title) for group in rows(one.cards))}"
        "</section>"
        for one in sections
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{_style()} section {{ margin-top: 2rem; }}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>"
        f"<header class='bar'><span class='brand'>{escape(title)}</span>"
        f"<nav aria-label='Sections'>{links}</nav></header>"
        f"<main><p class='soft'>{escape(lead)}</p>{body}</main></body></html>\n"
    )


def _style() -> str:
    return resources.files("discovery.dashboard").joinpath("assets/style.css").read_text()


def _anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def _group(width: Width, cards: Sequence[Card], section: str) -> str:
    return f"<div class='cards {width}'>{''.join(_card(card, section) for card in cards)}</div>"


def _card(card: Card, section: str) -> str:
    inside = "".join(_block(block, f"{_anchor(section)}-{_anchor(card.title)}") for block in card.blocks)
    return f"<article class='card'><h2>{escape(card.title)}</h2>{inside}</article>"


def _block(block: Block, place: str) -> str:
    match block:
        case Text():
            return f"<p class='{block.tone}'>{escape(block.text)}</p>"
        case Tiles():
            return f"<dl class='tiles'>{''.join(_tile(tile) for tile in block.tiles)}</dl>"
        case Plot():
            figure = block.figure.to_html(
                full_html=False,
                include_plotlyjs=False,
                div_id=f"{place}-{block.name}",
                config={"displayModeBar": False, "responsive": True},
            )
            return f"<div role='img' aria-label='{escape(block.description)}'>{figure}</div>"
        case Table():
            return _table(block)
        case Meter():
            return (
                f"<div class='meter'><div class='words'><span>{escape(block.label)}</span>"
                f"<span>{escape(block.text)}</span></div><div class='track'>"
                f"<span class='used' style='width:{_percent(block.used)}'></span>"
                f"<span class='reserved' style='width:{_percent(block.reserved)}'></span></div></div>"
            )
        case Downloads():
            return ""


def _tile(tile: Tile) -> str:
    return (
        f"<div class='tile'><dt>{escape(tile.label)}</dt><dd><div class='value {tile.tone}'>{escape(tile.value)}</div>"
        f"<div class='note'>{escape(tile.note)}</div></dd></div>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th scope='col'{_number(i, table)}>{escape(name)}</th>" for i, name in enumerate(table.header))
    body = "".join(f"<tr>{''.join(_cells(row, table))}</tr>" for row in table.rows)
    head = f"<thead><tr>{head}</tr></thead>" if any(table.header) else ""
    return f"<div class='scroll'><table class='plain'>{head}<tbody>{body}</tbody></table></div>"


def _cells(row: Sequence[str | Link], table: Table) -> Iterator[str]:
    for index, cell in enumerate(row):
        text = cell.text if isinstance(cell, Link) else cell
        long = " class='long'" if len(text) > LONG else ""
        yield f"<td{_number(index, table) or long}>{escape(text)}</td>"


def _number(index: int, table: Table) -> str:
    return " class='number'" if index in table.numbers else ""


def _percent(fraction: float) -> str:
    return f"{100 * min(1.0, max(0.0, fraction)):.1f}%"
