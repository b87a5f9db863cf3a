"""A fleet as one picture: a row for each adapter, what it gained and what came nearest to being lost.

SVG by hand, in words and shapes as well as colours (a disc PASS, a cross FAIL, a ring INCONCLUSIVE), on a ground of its
own, so that it reads the same in light and dark. No script and nothing from outside: it is shown as an image. Gains are
drawn to the largest of their unit; drops in shares of the margin, since tasks have different ones.
"""

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from infra.redaction import without_secrets
from tasks.reporting.figures import change, interval, is_fraction
from tasks.reporting.headline import better, target_of, used, worst_of

WIDTH, HEAD, ROW, FOOT = 920, 74, 48, 26  # pixels
GAINS, DROPS = (236, 500), (560, 890)  # pixels, from left to right
FULL = 2.0  # of its margin: what uses up more is drawn at the end, with an arrow
COLOURS = {"PASS": "#12692c", "FAIL": "#b3261e", "INCONCLUSIVE": "#7a5200"}
NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:12px;fill:#1b1b1f}.small{fill:#55555c;font-size:11px}"
    ".name{font-weight:600;font-size:13px}.zero,.margin{stroke:#55555c}.margin{stroke-dasharray:3 3}"
    ".rule{stroke:#dcdce0}"
)


def fleet_picture(summary: Mapping[str, Any], most: int | None = None) -> str:
    """SVG of the first `most` adapters of a summary, or all."""
    adapters = summary["adapters"][:most]
    more = len(summary["adapters"]) - len(adapters)
    height = HEAD + ROW * len(adapters) + FOOT
    title = f"{summary['recipe']['name']}, run {summary['run_id']}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img"><title>{_safe(title)}</title><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
        _text(16, 24, title, "name"),
        _text(16, 60, "adapter and verdict", "small"),
        _text(GAINS[0], 44, "gain on its own task, with its interval"),
        _text(GAINS[0], 60, "right of the line is better than the base", "small"),
        _text(DROPS[0], 44, "general task that came nearest to its margin"),
        _text(DROPS[0], 60, "share of the drop that is allowed; dashed: all of it", "small"),
        *_rows(adapters),
        _text(16, height - 8, f"and {more} more adapters: see the dashboard" if more else "", "small"),
        "</svg>",
    ]
    return "".join(parts)


def _rows(adapters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    largest = {True: 0.0, False: 0.0}  # of points, and of nats
    for task in filter(None, map(target_of, adapters)):
        fraction = is_fraction(task["metric"])
        ends = [abs(one) for one in (task["delta"], task["ci_low"], task["ci_high"]) if _real(one)]
        largest[fraction] = max([largest[fraction], *ends])
    for index, adapter in enumerate(adapters):
        top = HEAD + ROW * index
        verdict = adapter["verdict"]
        said = ", ".join(filter(None, [verdict, None if verdict and not adapter["error"] else adapter["status"]]))
        yield f'<line class="rule" x1="16" x2="{WIDTH - 16}" y1="{top - 4}" y2="{top - 4}"/>'
        yield _text(34, top + 16, _clipped(adapter["name"], 24), "name")
        yield _text(34, top + 33, said, "small", COLOURS.get(verdict or "")) + _shape(verdict, 22, top + 12)
        if (target := target_of(adapter)) is not None:
            yield _gain(target, top, largest[is_fraction(target["metric"])])
        else:
            why = " ".join(without_secrets(adapter["error"] or "not measured").split())  # it is shown in Prefect, too
            yield _text(GAINS[0], top + 16, _clipped(why, 52), "small")
        if (worst := worst_of(adapter)) is not None:
            yield _drop(worst, top)


def _gain(task: Mapping[str, Any], top: int, largest: float) -> str:
    gain, *ends = _turned(task, better)
    marks = _marks(task, top, GAINS, gain, ends, (-largest, largest))
    fraction = is_fraction(task["metric"])
    around = f" ({interval(ends[0], ends[1], fraction)})" if ends else ""
    return marks + _text(GAINS[0], top + 33, f"{change(gain, fraction)}{around} {_unit(task)}, n {task['n']}", "small")


def _drop(task: Mapping[str, Any], top: int) -> str:
    share, *ends = _turned(task, used)
    marks = _marks(task, top, DROPS, share, ends, (-FULL, FULL))
    at = _place(1.0, DROPS, (-FULL, FULL))
    marks += f'<line class="margin" x1="{at}" x2="{at}" y1="{top}" y2="{top + 22}"/>'
    fraction = is_fraction(task["metric"])
    allowed = change(-better(task, task["margin"]), fraction)
    difference = f"{change(task['delta'], fraction)}, allowed {allowed} {_unit(task)}"
    return marks + _text(DROPS[0], top + 33, f"{_clipped(task['task'], 22)} {difference}, n {task['n']}", "small")


def _turned(task: Mapping[str, Any], turn: Callable[[Mapping[str, Any], float], float]) -> list[float]:
    """The difference, and both ends of its interval if they are known."""
    ends = [task["ci_low"], task["ci_high"]]
    return [turn(task, task["delta"]), *(sorted(turn(task, one) for one in ends) if all(map(_real, ends)) else [])]


def _marks(
    task: Mapping[str, Any],
    top: int,
    panel: tuple[int, int],
    value: float,
    ends: Sequence[float],
    reach: tuple[float, float],
) -> str:
    """The line at zero; estimate and interval on it; an arrow where the estimate does not fit."""
    y = top + 11
    zero, middle, *sides = (_place(one, panel, reach) for one in (0.0, value, *ends))
    drawn = f'<line class="zero" x1="{zero}" x2="{zero}" y1="{top}" y2="{top + 22}"/>'
    colour = COLOURS.get(task["verdict"], "#1b1b1f")
    if sides:
        left, right = sides
        drawn += (
            f'<path d="M{left},{y}H{right}M{left},{y - 4}v8M{right},{y - 4}v8" stroke="{colour}" stroke-width="2"/>'
        )
    if reach[0] <= value <= reach[1]:
        return drawn + _shape(task["verdict"], middle, y)
    return drawn + _text(middle - 4, y + 4, "▶" if value > reach[1] else "◀", "small", colour)


def _place(value: float, panel: tuple[int, int], reach: tuple[float, float]) -> float:
    """Pixels from the left; the panel's edge for what lies outside."""
    low, high = reach
    if not isfinite(value) or high <= low:
        return sum(panel) / 2
    share = (min(max(value, low), high) - low) / (high - low)
    return round(panel[0] + share * (panel[1] - panel[0]), 1)


def _shape(verdict: str | None, x: float, y: float) -> str:
    colour = COLOURS.get(verdict or "", "#1b1b1f")
    if verdict == "PASS":
        return f'<circle cx="{x}" cy="{y}" r="6" fill="{colour}"/>'
    if verdict == "FAIL":
        return f'<path d="M{x - 6},{y - 6}l12,12m0,-12l-12,12" stroke="{colour}" stroke-width="3"/>'
    if verdict == "INCONCLUSIVE":
        return f'<circle cx="{x}" cy="{y}" r="5" fill="#fff" stroke="{colour}" stroke-width="2.5"/>'
    return f'<rect x="{x - 4}" y="{y - 4}" width="8" height="8" fill="{colour}"/>'


def _text(x: float, y: float, words: str, kind: str = "", colour: str | None = None) -> str:
    style = f' style="fill:{colour}"' if colour else ""
    return f'<text x="{x}" y="{y}" class="{kind}"{style}>{_safe(words)}</text>' if words else ""


def _safe(words: str) -> str:
    """As text of XML: escaped, and without the characters that XML does not have."""
    return html.escape(NO_XML.sub("\ufffd", words))


def _clipped(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _unit(task: Mapping[str, Any]) -> str:
    return "points" if is_fraction(task["metric"]) else "nats"


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)
