"""Matplotlib's SVG as a page takes it: no styles of its own, colours by the page's names, ids of its own, no dates."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from glm_export.reports.colours import VARIABLES

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
DROPPED = ("metadata", "style")
HREF = f"{{{XLINK}}}href"
COLOURED = ("fill", "stroke")
FONTS = ("font-family", "font")
REFERENCE = re.compile(r"url\(#([^)]+)\)")


class UnknownColourError(ValueError):
    """A plot was drawn in a colour that no theme knows: a fault of ours."""


def embedded(svg: str, prefix: str) -> str:
    """An SVG to stand in a page, without width and height: the page says how wide it is.

    Args:
        svg: of our own plots; no other is read.
        prefix: put before every id, since several stand in one page.

    Raises:
        UnknownColourError: a colour is no placeholder.
    """
    root = ET.fromstring(svg)
    for parent in root.iter():
        for child in [child for child in parent if child.tag.removeprefix(f"{{{SVG}}}") in DROPPED]:
            parent.remove(child)
    kept = {element.get(HREF, "").removeprefix("#") for element in root.iter()}
    clips = {found for element in root.iter() for found in REFERENCE.findall(element.get("clip-path", ""))}
    for element in root.iter():
        _tidy(element, prefix, kept | clips)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    ET.register_namespace("", SVG)
    text = ET.tostring(root, encoding="unicode", short_empty_elements=True)
    return re.sub(r"\n\s*", "\n", text).replace(f' xmlns:ns0="{XLINK}"', "").replace("ns0:href", "href")


def _tidy(element: ET.Element, prefix: str, kept: set[str]) -> None:
    """One element: its style as attributes, its id under the prefix where anything refers to it."""
    for part in element.attrib.pop("style", "").split(";"):
        name, _, value = (piece.strip() for piece in part.partition(":"))
        if name and name not in FONTS:
            element.set(name, value)
    for name in COLOURED:
        drawn_in = element.get(name)
        if drawn_in is not None and drawn_in != "none":
            if drawn_in not in VARIABLES:
                raise UnknownColourError(f"{drawn_in} in {element.tag}")
            element.set(name, VARIABLES[drawn_in])
    identifier = element.attrib.pop("id", None)
    if identifier in kept:
        element.set("id", prefix + identifier)
    if HREF in element.attrib:
        element.set("href", f"#{prefix}{element.attrib.pop(HREF).removeprefix('#')}")
    if "clip-path" in element.attrib:
        element.set("clip-path", REFERENCE.sub(rf"url(#{prefix}\1)", element.attrib["clip-path"]))
