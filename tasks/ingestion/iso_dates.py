"""Rows for the demo's task: dates as people write them, and the same dates as YYYY-MM-DD (ISO 8601)."""

import random
from calendar import month_name, monthrange
from collections.abc import Iterator

from infra.errors import RequestError

MOST = 400_000  # rows; there are about 584,000 different ones, and the last would take for ever to find
# None of them leaves open which number is the day and which the month.
FORMS = (
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "{day}{th} of {month} {year}",
    "{month} {day}{th} {year}",
    "{day} {mon} {year}",
    "{mon} {day}, {year}",
    "{day}-{mon}-{year}",
    "{year}/{number}/{day}",
)


def iso_dates(count: int, seed: int) -> Iterator[dict[str, str]]:
    """`count` distinct rows {"written", "iso"}, the same ones for the same seed."""
    if count > MOST:
        raise RequestError(f"generate: iso-dates makes at most {MOST:,} rows; limit is {count:,}.")
    draw = random.Random(seed)
    seen: set[str] = set()
    while len(seen) < count:
        year, number = draw.randint(1900, 2099), draw.randint(1, 12)
        day = draw.randint(1, monthrange(year, number)[1])
        month = month_name[number]
        written = draw.choice(FORMS).format(
            year=year, number=number, month=month, mon=month[:3], day=day, th=_ordinal_suffix(day)
        )
        if written not in seen:
            seen.add(written)
            yield {"written": written, "iso": f"{year:04d}-{number:02d}-{day:02d}"}


def _ordinal_suffix(day: int) -> str:
    return "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
