"""Figures of the views, with Plotly.

Backgrounds are clear and text and grid lines are coloured by the style sheet, so that the same figure serves light and
dark pages; only scenes in three dimensions, which a style sheet cannot reach, have a grey that is readable on both.
Colours of the data are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.neighborlist import natural_cutoffs, neighbor_list
from pymatgen.analysis.phase_diagram import tet_coord
from pymatgen.core import Element
from pymatgen.util.string import unicodeify

from discovery.calibration import Reliability
from discovery.crystal import Crystal
from discovery.dashboard.views import GrowthStep, HitRate, HullDiagram, HullPoint, Overview, Parity
from discovery.store.store import CheckpointRecord
from discovery.types import State

BLUE, GREEN, ORANGE, RED, GREY, SKY, PURPLE = (
    "#0072b2",
    "#009e73",
    "#e69f00",
    "#d55e00",
    "#7d8899",
    "#56b4e9",
    "#cc79a7",
)
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GREY)
DASHES = ("solid", "dash", "dot", "dashdot")

Cost = Literal["reference_calls", "core_hours", "hours"]

COSTS: Mapping[Cost, str] = {
    "reference_calls": "reference calculations",
    "core_hours": "core-hours, all oracles",
    "hours": "hours since the first hull",
}

DRAWN_ABOVE_HULL = 0.5
"""eV/atom above the hull up to which phases are drawn."""


def escape(text: object) -> str:
    """Return text from data as Plotly shows it unchanged; Plotly would read ``<b>`` and ``<a>``."""
    return html.escape(str(text))


def formula_text(formula: str) -> str:
    """Return a formula with subscripts."""
    return escape(unicodeify(formula))


def empty(message: str) -> go.Figure:
    """Return a figure that says why there is nothing to see."""
    figure = _figure(height=220)
    figure.add_annotation(text=message, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def _figure(height: int = 320, **layout: Any) -> go.Figure:
    figure = go.Figure(
        layout={
            "height": height,
            "margin": {"l": 56, "r": 16, "t": 12, "b": 44},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": GREY},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "bgcolor": "rgba(0,0,0,0)"},
            "hoverlabel": {"font": {"family": "system-ui, sans-serif", "size": 13}, "align": "left"},
            "uirevision": "keep",
            "dragmode": False,
            "template": "none",
        }
        | layout
    )
    figure.update_xaxes(zeroline=False, ticks="outside", automargin=True, title_font_size=13)
    figure.update_yaxes(zeroline=False, automargin=True, title_font_size=13)
    return figure


# Overview -----------------------------------------------------------------------------------------------------------


def growth(steps: Sequence[GrowthStep], formulas: Mapping[str, str], cost: Cost = "reference_calls") -> go.Figure:
    """Return the number of new phases on the hull over what was spent, with what entered and left."""
    if not steps:
        return empty("No hull yet: the reference phases are being computed.")
    figure = _figure()
    at = [getattr(step, cost) for step in steps]
    count = [step.discovered for step in steps]
    figure.add_scatter(
        x=at,
        y=count,
        mode="lines",
        line={"shape": "hv", "color": GREEN, "width": 2.5},
        name="new phases on the hull",
        hovertemplate="%{y} new phases on the hull<br>after %{x:.4g} " + COSTS[cost] + "<extra></extra>",
    )
    for name, symbol, color, ids in (
        ("entered the hull", "triangle-up", GREEN, [step.entered for step in steps]),
        ("left the hull", "triangle-down", RED, [step.left for step in steps]),
    ):
        shown = [index for index, members in enumerate(ids) if members]
        if shown:
            figure.add_scatter(
                x=[at[index] for index in shown],
                y=[count[index] for index in shown],
                mode="markers",
                marker={"symbol": symbol, "size": 10, "color": color, "line": {"width": 1, "color": "white"}},
                name=name,
                customdata=[", ".join(formula_text(formulas.get(id, id)) for id in ids[index]) for index in shown],
                hovertemplate="%{customdata} " + name + "<extra></extra>",
            )
    figure.update_xaxes(title=COSTS[cost], rangemode="tozero")
    figure.update_yaxes(title="new phases on the hull", rangemode="tozero", **_whole(max(count)))
    return figure


def _whole(largest: int) -> dict[str, Any]:
    """Return axis settings without ticks between whole numbers."""
    return {"dtick": 1} if largest <= 6 else {"tickformat": "d"}


def hit_rate(rates: Sequence[HitRate]) -> go.Figure:
    """Return the share of stable verdicts per round with 95 % intervals, the metastable ones beside it."""
    if not rates:
        return empty("No verdicts yet.")
    figure = _figure(height=280)
    rounds = [rate.round + 1 for rate in rates]
    stable = [rate.stable / rate.judged for rate in rates]
    figure.add_bar(
        x=rounds,
        y=[(rate.stable + rate.metastable) / rate.judged for rate in rates],
        name="stable or metastable",
        marker={"color": ORANGE, "opacity": 0.35},
        hovertemplate="round %{x}: %{y:.0%} stable or metastable<extra></extra>",
    )
    figure.add_scatter(
        x=rounds,
        y=stable,
        mode="markers",
        name="stable, 95 % interval",
        marker={"color": GREEN, "size": 9},
        error_y={
            "type": "data",
            "array": [rate.high - share for rate, share in zip(rates, stable, strict=True)],
            "arrayminus": [share - rate.low for rate, share in zip(rates, stable, strict=True)],
            "color": GREEN,
            "thickness": 1.5,
        },
        customdata=[(rate.stable, rate.judged, rate.low, rate.high) for rate in rates],
        hovertemplate="round %{x}: %{customdata[0]} of %{customdata[1]} stable"
        "<br>%{y:.0%}, between %{customdata[2]:.0%} and %{customdata[3]:.0%}<extra></extra>",
    )
    figure.update_xaxes(title="round", **_whole(len(rounds)))
    figure.update_yaxes(title="share of verdicts", tickformat=".0%", range=[0, 1.02])
    return figure


def funnel(view: Overview) -> go.Figure:
    """Return how many candidates reached each state, down to the new phases on the hull."""
    states = (State.SAMPLED, State.ADMITTED, State.SCREENED, State.SELECTED, State.COMPUTED, State.JUDGED)
    names = [str(state) for state in states]
    counts = [view.funnel[name] for name in names]
    if not counts[0]:
        return empty("Nothing sampled yet.")
    names.append("new on the hull")
    counts.append(view.growth[-1].discovered if view.growth else 0)
    figure = _figure(height=300, margin={"l": 110, "r": 16, "t": 4, "b": 8}, showlegend=False)
    figure.add_bar(
        y=names,
        x=[math.sqrt(count) for count in counts],
        orientation="h",
        marker={"color": [BLUE] * len(states) + [GREEN]},
        text=[f"{count:,}" for count in counts],
        textposition="outside",
        cliponaxis=False,
        customdata=[(count, count / counts[0]) for count in counts],
        hovertemplate="%{y}: %{customdata[0]:,}<br>%{customdata[1]:.2%} of what was sampled<extra></extra>",
    )
    figure.update_xaxes(visible=False, range=[0, 1.15 * math.sqrt(counts[0])])
    figure.update_yaxes(autorange="reversed", ticks="")
    return figure


# Hull ---------------------------------------------------------------------------------------------------------------


def hull(diagram: HullDiagram | None) -> go.Figure:
    """Return the phase diagram of two, three or four elements; markers carry the id of their phase."""
    if diagram is None:
        return empty("No hull yet: the reference phases are being computed.")
    figure = _hull_frame(diagram)
    figure.add_traces(hull_traces(diagram))
    return figure


def hull_through_rounds(stages: Sequence[tuple[str, HullDiagram]]) -> go.Figure:
    """Return the phase diagrams of several versions in one figure, with a slider that needs no server."""
    figure = _hull_frame(stages[-1][1])
    steps, starts = [], [0]
    for _, diagram in stages:
        traces = hull_traces(diagram)
        figure.add_traces(traces)
        starts.append(starts[-1] + len(traces))
    for index, (label, _) in enumerate(stages):
        shown = [starts[index] <= trace < starts[index + 1] for trace in range(starts[-1])]
        steps.append({"label": label, "method": "restyle", "args": [{"visible": shown}]})
    for number, trace in enumerate(figure.data):
        trace.visible = number >= starts[-2]
    if len(stages) > 1:
        figure.update_layout(
            sliders=[
                {"active": len(stages) - 1, "steps": steps, "pad": {"t": 40}, "currentvalue": {"prefix": "hull: "}}
            ],
            height=figure.layout.height + 90,
        )
    return figure


def _hull_frame(diagram: HullDiagram) -> go.Figure:
    elements = diagram.elements
    match len(elements):
        case 2:
            figure = _figure(height=460)
            figure.update_xaxes(title=f"fraction of {elements[1]}", range=[-0.03, 1.03])
            figure.update_yaxes(title="formation energy (eV/atom)")
        case 3:
            axis = {"showgrid": True, "ticks": "", "showticklabels": False, "min": 0}
            corners = dict(zip(("aaxis", "baxis", "caxis"), elements, strict=True))
            # without a drag mode, Plotly hears no clicks in a ternary plot
            figure = _figure(height=520, margin={"l": 30, "r": 30, "t": 40, "b": 40}, dragmode="pan")
            figure.update_layout(
                ternary={"sum": 1, "bgcolor": "rgba(0,0,0,0)"}
                | {name: axis | {"title": {"text": f"<b>{element}</b>"}} for name, element in corners.items()}
            )
        case _:
            hidden = {"visible": False, "showspikes": False}
            figure = _figure(height=560, margin={"l": 0, "r": 0, "t": 30, "b": 0}, dragmode="orbit")
            camera = {"eye": {"x": 0.35, "y": -1.65, "z": 0.4}, "center": {"x": 0, "y": 0, "z": -0.05}}
            scene = {"xaxis": hidden, "yaxis": hidden, "zaxis": hidden, "aspectmode": "data", "camera": camera}
            figure.update_layout(scene=scene)
    return figure


def hull_traces(diagram: HullDiagram) -> list[go.Scatter]:
    """Return lines of the hull, known and discovered phases on it, and the phases above it."""
    by_id = {point.id: point for point in diagram.points}
    lines: list[HullPoint | None] = []
    for first, second in diagram.tie_lines:
        if first in by_id and second in by_id:
            lines += [by_id[first], by_id[second], None]
    above = [point for point in diagram.points if not point.on_hull and point.e_above_hull <= DRAWN_ABOVE_HULL]
    groups = (
        ("known, on the hull", BLUE, "circle", [p for p in diagram.points if p.on_hull and not p.discovered]),
        ("discovered, on the hull", GREEN, "diamond", [p for p in diagram.points if p.on_hull and p.discovered]),
        ("known, above", GREY, "circle-open", [p for p in above if not p.discovered]),
        ("discovered, above", ORANGE, "diamond-open", [p for p in above if p.discovered]),
    )
    line = {"color": GREY, "width": 2 if len(diagram.elements) == 4 else 1.2}
    traces = [_trace(diagram, lines, mode="lines", line=line, hoverinfo="skip", showlegend=False)]
    for name, color, symbol, members in reversed(groups):
        on_hull = not symbol.endswith("open")
        size = 6 if len(diagram.elements) == 4 else 12
        labelled = on_hull and len(members) <= (12 if len(diagram.elements) == 4 else 30)
        traces.append(
            _trace(
                diagram,
                list(members),
                mode="markers+text" if labelled else "markers",
                name=name,
                marker={"color": color, "symbol": symbol, "size": size if on_hull else size * 0.7},
                text=[
                    "" if len(diagram.elements) == 3 and 1.0 in point.fractions else formula_text(point.formula)
                    for point in members  # a ternary plot names its corners itself
                ],
                textposition="top center" if len(diagram.elements) > 2 else "bottom center",
                customdata=[
                    (
                        point.id,
                        point.formation_energy_per_atom,
                        point.e_above_hull,
                        escape(point.id),
                        formula_text(point.formula),
                    )
                    for point in members
                ],
                hovertemplate="<b>%{customdata[4]}</b> (%{customdata[3]})"
                "<br>formation energy %{customdata[1]:.3f} eV/atom"
                "<br>e_above_hull %{customdata[2]:.3f} eV/atom<extra></extra>",
            )
        )
    return traces


def _trace(diagram: HullDiagram, points: Sequence[HullPoint | None], **style: Any) -> Any:
    fractions = np.array([p.fractions if p is not None else [np.nan] * len(diagram.elements) for p in points])
    fractions = fractions.reshape(-1, len(diagram.elements))
    match len(diagram.elements):
        case 2:
            energies = [point.formation_energy_per_atom if point is not None else None for point in points]
            return go.Scatter(x=fractions[:, 1], y=energies, **style)
        case 3:
            return go.Scatterternary(a=fractions[:, 0], b=fractions[:, 1], c=fractions[:, 2], cliponaxis=False, **style)
    places = np.array([tet_coord(row[1:]) for row in fractions]).reshape(-1, 3)
    return go.Scatter3d(x=places[:, 0], y=places[:, 1], z=places[:, 2], connectgaps=False, **style)


# Crystal ------------------------------------------------------------------------------------------------------------


def crystal(shown: Crystal) -> go.Figure:
    """Return a crystal in three dimensions: atoms within the cell and on its faces, bonds and the cell."""
    figure = _figure(height=380, margin={"l": 0, "r": 0, "t": 24, "b": 0}, dragmode="orbit")
    numbers, places = _with_faces(shown)
    for start, stop in _bonds(numbers, places):
        figure.add_scatter3d(**_line(np.array([start, stop]), GREY, 5))
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    edges = [(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(corners[a] - corners[b]).sum() == 1]
    gap = np.full((1, 3), np.nan)
    outline = np.vstack([np.vstack([corners[[a, b]] @ shown.lattice, gap]) for a, b in edges])
    figure.add_scatter3d(**_line(outline, GREY, 2))
    for number in np.unique(numbers):
        own = places[numbers == number]
        red, green, blue = (round(255 * float(part)) for part in jmol_colors[number])
        figure.add_scatter3d(
            x=own[:, 0],
            y=own[:, 1],
            z=own[:, 2],
            mode="markers",
            name=Element.from_Z(int(number)).symbol,
            marker={
                "size": 9 + 10 * float(covalent_radii[number]),
                "color": f"rgb({red},{green},{blue})",
                "line": {"color": "#334155", "width": 1},
                "opacity": 1.0,
            },
            hovertemplate="%{fullData.name}  %{x:.2f}, %{y:.2f}, %{z:.2f} Å<extra></extra>",
        )
    hidden = {"visible": False, "showspikes": False}
    figure.update_layout(
        scene={
            "xaxis": hidden,
            "yaxis": hidden,
            "zaxis": hidden,
            "aspectmode": "data",
            "camera": {"projection": {"type": "orthographic"}, "eye": {"x": 1.5, "y": 0.9, "z": 0.6}},
        }
    )
    return figure


def _line(points: np.ndarray, color: str, width: float) -> dict[str, Any]:
    x, y, z = points.T
    line = {"color": color, "width": width}
    return {"x": x, "y": y, "z": z, "mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False}


def _with_faces(shown: Crystal) -> tuple[np.ndarray, np.ndarray]:
    """Return atomic numbers and places (Å) with the atoms on faces, edges and corners repeated."""
    numbers, places = [], []
    for number, fractional in zip(shown.atomic_numbers, shown.frac_coords, strict=True):
        wrapped = np.where(fractional > 1 - 0.02, fractional - 1, fractional)
        options = [(0, 1) if abs(value) < 0.02 else (0,) for value in wrapped]
        for shift in np.array(np.meshgrid(*options)).reshape(3, -1).T:
            numbers.append(number)
            places.append((wrapped + shift) @ shown.lattice)
    return np.array(numbers), np.array(places)


def _bonds(numbers: np.ndarray, places: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return both ends of each bond between the atoms shown, by covalent radii."""
    from ase import Atoms

    atoms = Atoms(numbers=numbers, positions=places)
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.1))
    return [(places[i], places[j]) for i, j in zip(first, second, strict=True) if i < j]


# Trust --------------------------------------------------------------------------------------------------------------


def parity(pairs: Parity) -> go.Figure:
    """Return screening against reference formation energies, one colour for each chemical system."""
    if not pairs.ids:
        return empty("No candidate has been computed by both oracles yet.")
    figure = _figure(height=420)
    low = float(min(pairs.screening.min(), pairs.reference.min()))
    high = float(max(pairs.screening.max(), pairs.reference.max()))
    pad = 0.05 * (high - low) + 0.01
    ends = [low - pad, high + pad]
    line = {"color": GREY, "dash": "dot", "width": 1}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    for index, system in enumerate(sorted(set(pairs.chemsys))):
        chosen = [row for row, own in enumerate(pairs.chemsys) if own == system]
        figure.add_scatter(
            x=pairs.reference[chosen],
            y=pairs.screening[chosen],
            mode="markers",
            name=escape(system),
            marker={
                "color": SERIES[index % len(SERIES)],
                "symbol": ("circle", "diamond", "square", "cross")[index // len(SERIES) % 4],
                "size": 8,
                "opacity": 0.8,
            },
            customdata=[(pairs.ids[row], formula_text(pairs.formulas[row])) for row in chosen],
            hovertemplate="%{customdata[1]}<br>reference %{x:.3f}, screening %{y:.3f} eV/atom<extra></extra>",
        )
    figure.update_xaxes(title="formation energy, reference oracle (eV/atom)", range=ends)
    figure.update_yaxes(title="formation energy, screening oracle (eV/atom)", range=ends)
    return figure


def calibration(found: Reliability) -> go.Figure:
    """Return the reliability curve: the share that turned out stable over the probability that was predicted."""
    if not found.predictions:
        return empty("No selected candidate has been judged yet.")
    figure = _figure(height=360)
    line = {"color": GREY, "dash": "dot", "width": 1}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, hoverinfo="skip", showlegend=False)
    bins = found.curve()
    figure.add_scatter(
        x=[one.probability for one in bins],
        y=[one.came_true for one in bins],
        mode="lines+markers",
        marker={"size": [8 + 4 * math.sqrt(one.n) for one in bins], "color": BLUE},
        line={"color": BLUE},
        showlegend=False,
        customdata=[one.n for one in bins],
        hovertemplate="predicted %{x:.0%}, came true %{y:.0%} of %{customdata}<extra></extra>",
    )
    figure.update_xaxes(title="predicted probability of being stable", range=[-0.05, 1.05], tickformat=".0%")
    figure.update_yaxes(title="share that was stable", range=[-0.05, 1.05], tickformat=".0%")
    return figure


def losses(checkpoints: Sequence[CheckpointRecord]) -> go.Figure | None:
    """Return the losses that checkpoints recorded, one line for each kind; None if there are none."""
    names = sorted({name for one in checkpoints for name in one.checkpoint.metrics if "loss" in name})
    if not names:
        return None
    figure = _figure(height=280)
    for index, name in enumerate(names):
        own = [one for one in checkpoints if name in one.checkpoint.metrics]
        figure.add_scatter(
            x=[escape(one.id) for one in own],
            y=[one.checkpoint.metrics[name] for one in own],
            mode="lines+markers",
            name=escape(name.replace("_", " ")),
            line={"color": SERIES[index % len(SERIES)], "dash": DASHES[index // len(SERIES) % 4]},
            hovertemplate="%{x}: %{y:.4g}<extra>" + escape(name) + "</extra>",
        )
    figure.update_xaxes(title="checkpoint", type="category")
    figure.update_yaxes(title="loss")
    return figure


# Compare ------------------------------------------------------------------------------------------------------------


def comparison(views: Sequence[tuple[str, Overview]], cost: Cost = "reference_calls") -> go.Figure:
    """Return the growth of several campaigns; control arms are dashed."""
    grown = [(name, view) for name, view in views if view.growth]
    if not grown:
        return empty("No campaign has a hull yet.")
    figure = _figure(height=420)
    for index, (name, view) in enumerate(grown):
        figure.add_scatter(
            x=[getattr(step, cost) for step in view.growth],
            y=[step.discovered for step in view.growth],
            mode="lines",
            name=escape(name),
            line={
                "shape": "hv",
                "width": 2.5,
                "color": SERIES[index % len(SERIES)],
                "dash": "dot" if view.summary.controls else "solid",
            },
            hovertemplate=escape(name) + ": %{y} after %{x:.4g} " + COSTS[cost] + "<extra></extra>",
        )
    figure.update_xaxes(title=COSTS[cost], rangemode="tozero")
    figure.update_yaxes(title="new phases on the hull", rangemode="tozero")
    return figure
