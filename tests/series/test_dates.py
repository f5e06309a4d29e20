"""Dates in names, and the periods of a series."""

from __future__ import annotations

import itertools
from datetime import date, timedelta

import pandas
import pytest

from landfuse.errors import SettingsError
from landfuse.series.dates import Period, days_of, other_period, parse_day, parse_period, periods_of, seasons_of


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("20230401", "2023-04-01"),
        ("2023-04-01", "2023-04-01"),
        ("2023_04_01", "2023-04-01"),
        ("2023091", "2023-04-01"),
        ("2023-091", "2023-04-01"),
        ("2024366", "2024-12-31"),
        ("20230401T101031", "2023-04-01"),
        ("20230401_101031", "2023-04-01"),
        ("2023-04-01T10:10:31.024Z", "2023-04-01"),
        ("2023-04-01T01:30+02:00", "2023-03-31"),  # in UTC
        ("20230401T2330-0100", "2023-04-02"),
    ],
)
def test_a_date_in_any_of_its_forms(text: str, day: str) -> None:
    assert str(parse_day(text, "here")) == day
    assert parse_day(text, "here") == pandas.to_datetime(day).date()


@pytest.mark.parametrize("text", ["20231301", "20230230", "2023366", "230401", "2023-4-1", "20230401T2561", "may", ""])
def test_what_is_no_date_is_named(text: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_day(text, "s2_x.tif")
    assert error.value.found.startswith(f"s2_x.tif: {text!r} is no date")


def test_periods_as_words_and_back() -> None:
    for text in ("2023-04", "2023-04-03", "2023-04-01/2023-06-30", "2023-12-27/2024-01-11"):
        assert str(parse_period(text, "")) == text
    assert parse_period("2023-04/2023-06", "") == Period(date(2023, 4, 1), date(2023, 6, 30))
    assert str(parse_period("2024", "")) == "2024-01-01/2024-12-31"
    with pytest.raises(SettingsError, match="ends before it begins"):
        parse_period("2023-04/2023-03", "`between`")


DAYS = [date(2023, 2, 11), date(2023, 3, 31), date(2023, 4, 1), date(2023, 6, 17)]


@pytest.mark.parametrize("every", ["1 month", "3 months", "16 days", "2 weeks", "year"])
def test_every_date_is_in_one_period_and_periods_follow_each_other(every: str) -> None:
    found = periods_of(every, None, DAYS)
    assert [sum(day in period for period in found) for day in DAYS] == [1, 1, 1, 1]
    assert DAYS[0] in found[0]
    assert DAYS[-1] in found[-1]
    for one, other in itertools.pairwise(found):
        assert other.first - one.last == timedelta(1)


def test_periods_are_those_of_the_calendar_or_begin_with_between() -> None:
    assert [*map(str, periods_of("1 month", None, DAYS))] == ["2023-02", "2023-03", "2023-04", "2023-05", "2023-06"]
    sixteen = periods_of("16 days", None, DAYS)
    assert (sixteen[0].first.timetuple().tm_yday - 1) % 16 == 0  # of the year, as MODIS has them
    span = "2023-03-10/2023-05-20"
    assert [*map(str, periods_of("1 month", span, DAYS))] == [
        "2023-03-10/2023-03-31",
        "2023-04",
        "2023-05-01/2023-05-20",
    ]
    assert [*map(str, periods_of("10 days", span, ()))][:2] == ["2023-03-10/2023-03-19", "2023-03-20/2023-03-29"]
    assert [*map(str, periods_of(None, span, DAYS))] == ["2023-03-31", "2023-04-01"]
    assert periods_of((span,), None, ()) == (parse_period(span, ""),)
    with pytest.raises(SettingsError, match="more than 1000 periods"):
        periods_of("1 day", "2000/2023", ())
    assert [*map(str, periods_of("9999 years", None, DAYS))] == ["2023-01-01/9999-12-31"]  # and no year 10,000
    assert [*map(str, periods_of("1 month", "9999-11/9999-12", ()))] == ["9999-11", "9999-12"]


def test_periods_of_another_year_are_the_same_and_others_are_named() -> None:
    def words(every: str, span: str) -> list[str]:
        return [*map(str, periods_of(every, span, ()))]

    known = words("1 month", "2023-03/2023-10")
    assert other_period(known, words("1 month", "2024-03/2024-10")) == ""
    assert other_period(words("16 days", "2023"), words("16 days", "2024")) == ""
    assert other_period(known, words("1 month", "2024-04/2024-11")) == "2024-04 in place of 2023-03"
    assert other_period(known, words("1 month", "2024-03/2024-09")) == "7 in place of 8"
    assert other_period(known, []) == "one has dates, and the other none"


def test_days_are_counted_from_the_first_year_and_seasons_are_quarters() -> None:
    words = ("2023-01-01", "2023-03", "2023-07-09", "2023-12-16/2024-01-10", "2024-03-01")
    assert days_of(words) == (0, 59 + 15, 181 + 8, 349 + 12.5, 365 + 60)
    assert seasons_of(words) == {
        "January-March": ("2023-01-01", "2023-03", "2024-03-01"),
        "July-September": ("2023-07-09",),
        "October-December": ("2023-12-16/2024-01-10",),
    }
