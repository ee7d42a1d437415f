"""Plots: no style of their own, colours by the page's names, ids of their own, and what they show."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from glm_export.reports.colours import HEAT, OVER, PLACEHOLDERS, VARIABLES, colour
from glm_export.reports.plots import draw, draw_claims, heat_name
from glm_export.reports.records import Bars, Claim, HeatMap, Lines, Spans
from glm_export.reports.svg import UnknownColourError, embedded
from tests.reports.examples import HOSTILE, items, report

PLOTS = [item for item in items("名 $x$ <b>") if isinstance(item, HeatMap | Lines | Bars | Spans)]
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt" viewBox="0 0 1 1">{}</svg>'


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.kind)
def test_a_plot_stands_in_a_page(plot: HeatMap | Lines | Bars | Spans) -> None:
    drawn = draw(plot, "p7")
    for text in (drawn.wide, drawn.narrow):
        root = ET.fromstring(text)
        assert not {"width", "height"} & root.attrib.keys()
        for element in root.iter():
            assert "style" not in element.attrib
            for name in ("fill", "stroke"):
                assert element.get(name, "none") == "none" or re.fullmatch(r"var\(--[\w-]+\)", element.attrib[name])
            assert element.get("id", "p7").startswith("p7")
            assert element.get("href", "#p7").startswith("#p7")
        assert not re.search("#[0-9a-f]{6}|metadata|<style|20[0-9]{2}-", text)
    assert drawn == draw(plot, "p7")
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (drawn.wide, drawn.narrow)]
    assert not ids[0] & ids[1]


def test_names_that_are_no_mathematics_are_text() -> None:
    (bars,) = [plot for plot in items(HOSTILE) if isinstance(plot, Bars)]
    text = "".join(ET.fromstring(draw(bars, "p").wide).itertext())
    assert "$x$" in text
    assert "script>" in text


def test_a_heat_maps_cells_are_coloured_by_their_bound() -> None:
    assert [heat_name(error, 1.0) for error in (0.0, 1e-9, 0.99, 1.0, 1.01, 10.0, 11.0, float("inf"))] == [
        HEAT[0], HEAT[0], HEAT[-1], HEAT[-1], OVER[0], OVER[0], OVER[1], OVER[1],
    ]  # fmt: skip
    # Half a power of ten each.
    assert [heat_name(10**-power, 1.0) for power in (0.25, 0.75, 1.25)] == [HEAT[7], HEAT[6], HEAT[5]]
    (plot,) = [plot for plot in PLOTS if isinstance(plot, HeatMap)]
    drawn = draw(plot, "p").wide
    assert "var(--over-1)" in drawn
    assert "var(--heat-7)" not in drawn


def test_a_heat_map_of_a_large_model_is_small() -> None:
    """Neighbours of one colour are one mark: 40 layers and 256 columns in two sizes."""
    (plot,) = [plot for plot in PLOTS if isinstance(plot, HeatMap)]
    from dataclasses import replace

    values = tuple(tuple(10.0 ** -(5 + (row * column % 7) / 2) for column in range(256)) for row in range(40))
    names = tuple(map(str, range(256)))
    drawn = draw(replace(plot, rows=names[:40], columns=names, values=values), "p")
    assert len(drawn.wide) < 900_000


def test_claims_without_numbers_are_not_drawn() -> None:
    assert draw_claims([Claim(name="a", definition="", said="12 of 12")], "c") is None
    drawn = draw_claims(report().claims, "c")
    assert drawn is not None
    assert "planted" in drawn.wide


def test_a_colour_nobody_named_is_a_fault() -> None:
    with pytest.raises(UnknownColourError, match="#123456"):
        embedded(SVG.format('<path style="fill: #123456"/>'), "p")
    assert "var(--ink)" in embedded(SVG.format(f'<path style="fill: {colour("ink")}; stroke: none"/>'), "p")
    assert len(VARIABLES) == len(PLACEHOLDERS)


def test_a_users_own_settings_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import rc_context

    before = draw(PLOTS[1], "p")
    with rc_context({"font.size": 30, "axes.grid": True, "lines.linewidth": 9}):
        assert draw(PLOTS[1], "p") == before
