"""A chart's SVG for a page that holds several: small, in the page's colours, readable by who can't see it."""

import re

from markupsafe import Markup

COLOURS = {"#000000": "currentColor", "#ffffff": "var(--back)"}
"""Black and white follow the page, light or dark."""
GONE = r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>|<clipPath.*?</clipPath>| clip-path=\"[^\"]*\""
SAID = r"font-family: [^;\"]*;? ?|; stroke-linecap: square|; stroke-linejoin: (?:miter|round)"
"""What the page's own style says, or what can't be seen."""


def _tag(found: re.Match[str]) -> str:
    """A tag with coordinates to a tenth of a point and no more spaces than it needs; text between tags stays."""
    tag = re.sub(r"^<g id=\"[^\"]*\"", "<g", found[0])
    tag = re.sub(rf"{SAID}| transform=\"rotate\(-0 [^\"]*\"", "", tag)
    tag = re.sub(r"(\d+\.\d)\d+", r"\1", tag).replace(".0 ", " ")
    return re.sub(r"(?<=[:;]) +| *\n *(?=[A-Z\"])", "", tag)


def _flat(svg: str) -> str:
    """The same without groups that say nothing."""
    kept: list[bool] = []

    def group(found: re.Match[str]) -> str:
        if found[0] != "</g>":
            kept.append(found[0] != "<g>")
            return found[0] * kept[-1]
        return found[0] * kept.pop()

    return re.sub(r"<g>|<g [^>]*>|</g>", group, svg)


def inline(svg: str, name: str, title: str) -> Markup:
    """Matplotlib's SVG with ids of its own and a class a style, without prologue, metadata and clipping: no chart draws
    beyond its axes. ``name``: what ids and classes start with, another for each chart.
    """
    svg = re.sub(GONE, "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = _flat(re.sub(r"<[^>]*>", _tag, re.sub(r"(?<=>)\s+(?=<)", "", svg)).replace("xlink:href", "href"))
    for colour, own in COLOURS.items():
        svg = svg.replace(colour, own)
    ids = {old: f"{name}i{i}" for i, old in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]*)"', svg)))}
    svg = re.sub(r'(?<=\bid=")[^"]*|(?<=href="#)[^"]*', lambda found: ids[found[0]], svg)
    names = {style: f"{name}s{i}" for i, style in enumerate(dict.fromkeys(re.findall(r'style="([^"]*)"', svg)))}
    svg = re.sub(r'style="([^"]*)"', lambda found: f'class="{names[found[1]]}"', svg)
    rules = "".join(f".{own}{{{style}}}" for style, own in names.items())
    about = f'<svg role="img" aria-label="{Markup.escape(title)}"'
    return Markup(svg.replace("<svg", about, 1).replace(">", f"><style>{rules}</style>", 1))
