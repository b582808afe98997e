"""What pages are made of, without saying how it is drawn: the dashboard and the report draw the same blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

import plotly.graph_objects as go

Width = Literal["full", "half", "third"]
Tone = Literal["plain", "good", "fair", "bad"]


LONG = 40
"""Characters from which on the text of a table's cell may be broken into lines."""


@dataclass(frozen=True)
class Link:
    """Text that opens a crystal; the report, which has no such page, shows the text alone."""

    text: str
    id: str


Cell: TypeAlias = "str | Link"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Tile:
    """A number that is read at a glance, with its meaning and a note."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Tiles:
    """Numbers side by side."""

    tiles: Sequence[Tile]


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure, and what it shows in words for those who cannot see it."""

    name: str
    figure: go.Figure
    description: str


@dataclass(frozen=True)
class Table:
    """A table of text; ``numbers`` names the columns that are aligned as numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class Meter:
    """How much of a limit is used: fractions of it, and the words beside the bar."""

    label: str
    used: float
    reserved: float
    text: str


@dataclass(frozen=True)
class Downloads:
    """A crystal in the formats of other programs."""

    id: str


Block: TypeAlias = "Text | Tiles | Plot | Table | Meter | Downloads"


@dataclass(frozen=True)
class Card:
    """Blocks under one heading, and how many such cards stand beside each other on a wide screen."""

    title: str
    blocks: Sequence[Block]
    width: Width = "half"


def rows(cards: Sequence[Card]) -> list[tuple[Width, list[Card]]]:
    """Return the cards in groups that are set together: neighbours of the same width."""
    return [(width, list(group)) for width, group in groupby(cards, key=lambda card: card.width)]
