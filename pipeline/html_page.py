"""Parts of a self-contained html page: tables and inline SVG charts, no scripts, nothing from a network.

Every text is escaped here. Colours follow the reader's light or dark setting.
"""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 44
"""Size of a chart and its margins, in SVG units."""
GOLDEN_ANGLE = 137.508
SMALLEST_CELL = 28
"""That a number of four digits fits into."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6577; --line: #d8dde6; --paper: #fff;
  --bar: #2f6fd0; --mark: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #9aa5b8; --line: #333c4c; --paper: #12161d;
    --bar: #6aa2f5; --mark: #fb923c; }
}
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 46rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p { color: var(--soft); margin: .2rem 0 .6rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 500; } th:first-child, td:first-child { text-align: left; }
.heat td { padding-left: .9rem; }
.pairs td { text-align: left; } .pairs td:first-child { white-space: nowrap; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
svg .code { fill: #1c2330; }
.bar { fill: var(--bar); } .mark { stroke: var(--mark); stroke-width: 2; } .grid { stroke: var(--line); }
"""


def html_page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """Whole page around sections that are html already."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f"<h1>{escape(title)}</h1><p>{escape(subtitle)}</p>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def section(heading: str, explanation: str, body: str) -> str:
    """Heading, a sentence for people, and html below."""
    return f"<h2>{escape(heading)}</h2><p>{escape(explanation)}</p>{body}"


def paragraph(text: str) -> str:
    """Text that goes over as many lines as it needs."""
    return f"<p>{escape(text)}</p>"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Table of names and values."""
    lines = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<div class="wide"><table class="pairs">{lines}</table></div>'


def heat_table(corner: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Table of numbers, shaded from the smallest to the largest."""
    values = [value for _, line in rows for value in line]
    low, span = min(values), max(values) - min(values)
    lines = ["".join(f"<th>{escape(name)}</th>" for name in (corner, *columns))]
    for name, line in rows:
        cells = [_shaded(value, (value - low) / span if span else 0.0) for value in line]
        lines.append(f"<th>{escape(name)}</th>{''.join(cells)}")
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table class="heat">{body}</table></div>'


def bar_chart(values: Sequence[float], x_label: str, y_label: str, mark: float | None = None) -> str:
    """Bars at x = 1, 2, …; `mark` draws a dashed line at that height."""
    top = max([*values, mark or 0.0, 1e-12])
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    slot, floor = plot_width / max(1, len(values)), HEIGHT - BOTTOM
    gap = slot * 0.2 if slot > 4 else 0.0
    heights = [value / top * plot_height for value in values]
    bars = "".join(
        f"M{LEFT + index * slot:.2f} {floor}v-{height:.2f}h{slot - gap:.2f}V{floor}z"
        for index, height in enumerate(heights)
    )
    parts = [_y_axis(top, plot_height), f'<path class="bar" d="{bars}"/>']
    for tick in _ticks(len(values))[1:]:
        parts.append(_text(LEFT + (tick - 0.5) * slot, floor + 16, f"{tick:g}", "middle"))
    if mark is not None:
        y = floor - mark / top * plot_height
        parts.append(f'<path class="mark" stroke-dasharray="5 4" d="M{LEFT} {y:.2f}H{WIDTH - RIGHT}"/>')
    parts.append(_text(LEFT + plot_width / 2, HEIGHT - 6, x_label, "middle"))
    return _svg(f"{y_label} by {x_label}", "".join(parts), HEIGHT)


def share_chart(rows: Sequence[tuple[str, float, float]]) -> str:
    """One bar from 0 to 1 for each name and value, with a mark where a reference lies."""
    left, step = 150, 40
    parts = []
    for index, (name, value, reference) in enumerate(rows):
        y, scale = 10 + index * step, WIDTH - left - 70
        parts.append(_text(left - 10, y + 17, name, "end"))
        parts.append(f'<path class="grid" fill="none" d="M{left} {y}h{scale}v24h-{scale}z"/>')
        parts.append(f'<path class="bar" d="M{left} {y}h{value * scale:.2f}v24H{left}z"/>')
        parts.append(f'<path class="mark" d="M{left + reference * scale:.2f} {y - 4}v32"/>')
        parts.append(_text(WIDTH - 60, y + 17, f"{value:.3f}", "start"))
    return _svg("shares and their references", "".join(parts), 10 + len(rows) * step)


def code_grid(codes: Sequence[int], num_columns: int) -> str:
    """Grid of numbers, row by row; each number has a colour of its own, as far as colours go."""
    size = WIDTH / max(1, num_columns)
    parts = []
    for place, code in enumerate(codes):
        row, column = divmod(place, num_columns)
        hue = code * GOLDEN_ANGLE % 360  # neighbours in number are far apart in colour
        parts.append(
            f'<path fill="hsl({hue:.0f} 60% 78%)" d="M{column * size:.2f} {row * size:.2f}'
            f'h{size:.2f}v{size:.2f}h-{size:.2f}z"><title>{code}</title></path>'
        )
        if size >= SMALLEST_CELL:
            x, y = (column + 0.5) * size, (row + 0.5) * size + 4
            parts.append(f'<text class="code" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{code}</text>')
    return _svg("codes of the image", "".join(parts), round(size * -(-len(codes) // max(1, num_columns))))


def _shaded(value: float, share: float) -> str:
    colour = f"color-mix(in srgb, var(--bar) {share * 45:.0f}%, transparent)"
    return f'<td style="background:{colour}">{value:#.3g}</td>'


def _y_axis(top: float, plot_height: int) -> str:
    parts = []
    for tick in _ticks(top):
        y = HEIGHT - BOTTOM - tick / top * plot_height
        parts.append(f'<path class="grid" d="M{LEFT} {y:.2f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{tick:g}", "end"))
    return "".join(parts)


def _ticks(top: float) -> list[float]:
    """0 and the multiples of 1, 2 or 5 times a power of ten up to `top`: three to six in all, or fewer."""
    if top <= 0:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(top / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if top / (power * factor) <= 5)
    return [round(index * step, 12) for index in range(int(top / step + 1e-9) + 1)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(label: str, content: str, height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{content}</svg>'
