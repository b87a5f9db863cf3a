"""The generated rows: distinct, the same for the same seed, and right."""

import re
from calendar import month_abbr, month_name
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import RequestError
from tasks.ingestion.iso_dates import FORMS, MOST, iso_dates


def read(written: str) -> date:
    """The date in the text, found by the month's name and the size of the numbers alone."""
    numbers = [int(number) for number in re.findall(r"\d+", written)]
    names = re.findall("|".join([*month_name[1:], *month_abbr[1:]]), written)
    if not names:
        year, month, day = numbers
        return date(year, month, day)
    (month,) = (number for number in range(1, 13) if month_name[number].startswith(names[0]))
    return date(max(numbers), month, min(numbers))


@given(st.integers(0, 10**6))
@settings(max_examples=25)
def test_every_row_is_right(seed: int):
    rows = list(iso_dates(60, seed))
    assert [read(row["written"]).isoformat() for row in rows] == [row["iso"] for row in rows]


@given(seed=st.integers(0, 10**6), few=st.integers(0, 40))
@settings(max_examples=25)
def test_fewer_rows_are_the_first_of_more(seed: int, few: int):
    rows = list(iso_dates(40, seed))
    assert list(iso_dates(few, seed)) == rows[:few]
    assert list(iso_dates(40, seed + 1)) != rows


def test_the_rows_of_a_seed_stay_what_they_are():
    assert list(iso_dates(3, 0)) == [
        {"written": "2 Jul 1998", "iso": "1998-07-02"},
        {"written": "13 Aug 2030", "iso": "2030-08-13"},
        {"written": "June 19th 2022", "iso": "2022-06-19"},
    ]


def test_the_rows_are_distinct():
    rows = [row["written"] for row in iso_dates(20_000, 1)]  # some hundred are drawn twice
    assert len(set(rows)) == len(rows) == 20_000


def test_all_ways_of_writing_turn_up_with_the_right_endings():
    rows = [row["written"] for row in iso_dates(5000, 3)]
    found = {pair for text in rows for pair in re.findall(r"(\d+)(st|nd|rd|th)", text)}
    rare = {"1": "st", "2": "nd", "3": "rd", "21": "st", "22": "nd", "23": "rd", "31": "st"}
    assert found == {(str(day), rare.get(str(day), "th")) for day in range(1, 32)}
    for form in FORMS:
        pattern = re.sub(r"{mon(th)?}", "[A-Z][a-z]+", re.sub(r"{(day|year|number)[^}]*}", r"\\d+", form))
        assert any(re.fullmatch(pattern.replace("{th}", "(st|nd|rd|th)"), text) for text in rows), form


def test_more_rows_than_there_are_is_said_at_once():
    with pytest.raises(RequestError, match=f"makes at most {MOST:,} rows; limit is {MOST + 1:,}"):
        next(iso_dates(MOST + 1, 0))
