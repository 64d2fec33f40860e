from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from prunetune.report.figures.draw import CSS_NAMES, GONE, HEAT, INK, SERIES, Plot, blank, plot, themed


def _draw(name: str) -> Plot:
    def draw():
        figure, axes = blank(2.0)
        for colour in (*SERIES, *HEAT, GONE):
            axes.errorbar([0, 1], [0, 1], yerr=0.1, color=colour, marker="o", label=colour[1:])
        axes.set_xlabel("what")
        return figure

    return plot(name, "A title", "How to read it.", draw)


def test_a_themed_figure_has_the_pages_colours_and_its_own_ids() -> None:
    first, second = themed(_draw("one")), themed(_draw("two"))
    for svg in (first, second):
        assert not [c for c in CSS_NAMES if c in svg], "a colour that does not follow the theme"
        assert "DejaVu" not in svg
        assert "<style" not in svg

    def ids(svg: str) -> set[str]:
        return {e.attrib["id"] for e in ET.fromstring(svg).iter() if "id" in e.attrib}

    assert not ids(first) & ids(second)
    for svg in (first, second):
        targets = {v.lstrip("#") for e in ET.fromstring(svg).iter() for k, v in e.attrib.items() if k.endswith("href")}
        assert targets
        assert targets <= ids(svg)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
def test_standalone_tones_read_on_light_and_dark(page) -> None:
    for tone in (INK, *SERIES):
        light, dark = sorted((_luminance(tone), _luminance(page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3.0, tone  # WCAG 1.4.11: graphics and large text
