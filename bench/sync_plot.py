"""The picture beside the figures of `bench.sync`: how first synchronisations went, as SVG by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 40, 50
TITLE = "First synchronisation: applied as the database has it (dashes: nodes that have all; dot: floor)"
COLOURS = ("#1b7837", "#2166ac", "#b2182b", "#762a83")


def drawing(seen: Mapping[int, Mapping[str, Any]]) -> str:
    """Documents in percent over seconds: as the database had them applied, and as the nodes had all."""
    shown = {nodes: what for nodes, what in seen.items() if what["progress"]}
    end_s = max((what["progress"][-1][0] for what in shown.values()), default=1.0) * 1.05
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        "<style>text { font: 12px sans-serif }</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{TITLE}</text>',
        *_axes(end_s),
    ]
    for colour, (nodes, what) in zip(COLOURS, shown.items(), strict=False):
        by_database = ((at, applied / what["documents"]) for at, _, applied in what["progress"])
        by_nodes = ((at, complete / nodes) for at, complete, _ in what["progress"])
        lines.append(_line(by_database, end_s, colour))
        lines.append(_line(by_nodes, end_s, colour, dashes=' stroke-dasharray="4 4"'))
        x, y = _at(what["floor"]["complete_s"], 1.0, end_s)
        lines.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>')
    for number, (colour, nodes) in enumerate(zip(COLOURS, shown, strict=False)):
        y_label = TOP + 20 + 20 * number
        lines.append(
            f'<text x="{WIDTH - RIGHT + 15}" y="{y_label}" fill="{colour}">{nodes:,} nodes:'
            f" {shown[nodes]['progress'][-1][0]:.1f} s</text>"
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def _at(seconds: float, share: float, end_s: float) -> tuple[float, float]:
    x = LEFT + seconds / end_s * (WIDTH - LEFT - RIGHT)
    y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    return round(x, 1), round(y, 1)


def _axes(end_s: float) -> list[str]:
    lines = []
    for tick in range(0, 101, 25):
        x, y = _at(0.0, tick / 100, end_s)
        lines.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{tick} %</text>')
    step = next((step for step in (1, 2, 5, 10, 20, 50) if end_s / step <= 12), 100)
    for tick in range(0, int(end_s) + 1, step):
        x, y = _at(tick, 0.0, end_s)
        lines.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{tick}</text>')
    lines.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">s after the commit</text>')
    return lines


def _line(points: Iterable[tuple[float, float]], end_s: float, colour: str, *, dashes: str = "") -> str:
    drawn = " ".join(f"{x},{y}" for x, y in (_at(seconds, share, end_s) for seconds, share in points))
    return f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
