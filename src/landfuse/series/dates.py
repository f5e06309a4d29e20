"""Days in the names of files and bands, and the periods that they are brought to."""

from __future__ import annotations

import calendar
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from landfuse.errors import SettingsError

_TIME = r"[T_ -]\d\d[:-]?\d\d(?:[:-]?\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?"
DATE = rf"\d{{4}}(?:\d{{4}}|[-_.]\d\d[-_.]\d\d|-?\d{{3}}(?!\d))(?:{_TIME})?"
"""What looks like a date, as a regular expression without groups."""

FORMS = "YYYYMMDD, YYYY-MM-DD or YYYYDDD, with or without a time, as 20230401T101031"
"""The forms of a date, in words."""

_PARTS = re.compile(
    r"(\d{4})(?:[-_.]?(\d\d)[-_.]?(\d\d)|-?(\d{3}))"
    r"(?:[T_ -](\d\d)[:-]?(\d\d)(?:[:-]?(\d\d)(?:\.\d+)?)?(?:Z|([+-]\d\d:?\d\d))?)?"
)
_EVERY = re.compile(r"\s*(\d{1,4})?\s*(day|week|month|year)s?\s*")
_QUARTERS = ("January-March", "April-June", "July-September", "October-December")
_YEAR = 365.2425
_SAME = 2
"""Days by which periods of two years may differ and yet be the same: of leap days, and of steps counted in days."""
_MOST = 1000
"""Periods of a series."""


@dataclass(frozen=True, order=True)
class Period:
    """Some days in a row, or one."""

    first: date
    last: date

    def __str__(self) -> str:
        first, last = self.first, self.last
        whole = first.day == 1 and last == first.replace(day=calendar.monthrange(first.year, first.month)[1])
        return f"{first:%Y-%m}" if whole else f"{first}/{last}" if first < last else str(first)

    def __contains__(self, day: date) -> bool:
        return self.first <= day <= self.last

    @property
    def middle(self) -> float:
        """The middle of it, in days."""
        return (self.first.toordinal() + self.last.toordinal()) / 2

    @property
    def season(self) -> float:
        """When in the year its middle is, from 0 to 1."""
        start = date.fromordinal(int(self.middle)).replace(month=1, day=1)
        return (self.middle - start.toordinal()) / (366 if calendar.isleap(start.year) else 365)


def parse_day(text: str, where: str) -> date:
    """A date in one of `FORMS`, in UTC: a time with another zone is converted; a SettingsError if there is none."""
    match = _PARTS.fullmatch(text)
    try:
        if not match:
            raise ValueError("its form is none of these")
        year, month, day, of_year, hour, minute, second, zone = match.groups()
        start = datetime(int(year), int(month or 1), int(day or 1))
        moment = start.replace(hour=int(hour or 0), minute=int(minute or 0), second=int(second or 0))
        if of_year:
            moment += timedelta(int(of_year) - 1)
            if moment.year != int(year):
                raise ValueError(f"{year} has no day {of_year}")
        if zone:
            moment -= datetime.strptime(zone, "%z").utcoffset() or timedelta(0)
        return moment.date()
    except (ValueError, OverflowError) as error:
        raise SettingsError(f"{where}: {text!r} is no date: {error}", FORMS, "correct it") from None


def parse_period(text: str, where: str) -> Period:
    """A day, month or year, or a first and a last of them: `2023-04`, `2023-04/2023-09`, `2023-04-01/2023-04-16`."""
    first, _, last = (part.strip() for part in text.partition("/"))
    found = Period(_span(first, where).first, _span(last or first, where).last)
    if found.first > found.last:
        raise SettingsError(f"{where}: {text} ends before it begins", "the first day, then the last", "correct it")
    return found


def _span(text: str, where: str) -> Period:
    match = re.fullmatch(r"(\d{4})(?:-(0[1-9]|1[0-2]))?", text)
    if not match or match[1] == "0000":
        day = parse_day(text, where)
        return Period(day, day)
    year, month = int(match[1]), int(match[2] or 0)
    last = month or 12
    return Period(date(year, month or 1, 1), date(year, last, calendar.monthrange(year, last)[1]))


def _months_on(day: date, months: int) -> date:
    """The first day of a month so many months later."""
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    return date(year, month + 1, 1)


def step_of(every: str) -> tuple[int, str]:
    """`16 days` as 16 and `day`; raises a ValueError."""
    match = _EVERY.fullmatch(every)
    if not match or not int(match[1] or 1):
        raise ValueError("write a number of days, weeks, months or years, as `1 month` or `16 days`, or list periods")
    return int(match[1] or 1), match[2]


def periods_of(every: str | Sequence[str] | None, between: str | None, days: Collection[date]) -> tuple[Period, ...]:
    """The periods that a series has.

    Args:
        every: their length, `16 days`, or themselves; None for each date as a period of its own.
        between: the period that they lie in, and begin at; by default they begin with a year, and the first and the
            last hold a date.
        days: the dates of all tiles.

    Raises:
        SettingsError: if they are too many.
    """
    within = parse_period(between, "`between`") if between else None
    kept = sorted(day for day in days if within is None or day in within)
    if every is None:
        return tuple(Period(day, day) for day in kept)
    if not isinstance(every, str):
        return tuple(parse_period(one, "`every`") for one in every)
    if not kept and within is None:
        return ()
    span = within or Period(kept[0], kept[-1])
    number, unit = step_of(every)
    start = span.first if within else date(span.first.year, 1, 1)
    found = []
    while start <= span.last:
        last = date.max
        with suppress(ValueError, OverflowError):  # there is no year 10,000
            if unit in ("month", "year"):
                last = _months_on(start, number * (12 if unit == "year" else 1)) - timedelta(1)
            else:
                last = start + timedelta(number * (7 if unit == "week" else 1) - 1)
        if last >= span.first:
            found.append(Period(start, min(last, within.last) if within else last))
        if last == date.max:
            break
        start = last + timedelta(1)
        if len(found) > _MOST:
            raise SettingsError(
                f"`every: {every}` cuts {span} into more than {_MOST} periods", f"at most {_MOST}", "choose longer ones"
            )
    return tuple(found)


def days_of(periods: Sequence[str]) -> tuple[float, ...]:
    """The middles of periods, in days since the year of the first began."""
    middles = [parse_period(text, "a period").middle for text in periods]
    start = date.fromordinal(int(middles[0])).replace(month=1, day=1)
    return tuple(middle - start.toordinal() for middle in middles)


def seasons_of(periods: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Quarter of the year -> the periods whose middles are in it, of whatever year; only quarters that have some."""
    found: dict[int, list[str]] = {}
    for text in periods:
        month = date.fromordinal(int(parse_period(text, "a period").middle)).month
        found.setdefault((month - 1) // 3, []).append(text)
    return {_QUARTERS[quarter]: tuple(found[quarter]) for quarter in sorted(found)}


def other_period(known: Sequence[str], found: Sequence[str]) -> str:
    """How the periods found differ from the known ones, in words; empty if they are the same but for the year."""
    if not known or not found:
        return "" if known == found else "one has dates, and the other none"
    pairs = [
        tuple(parse_period(text, "a period") for text in pair)
        for pair in zip(known, found, strict=False)  # what is too many is said below
    ]
    years = round((pairs[0][1].first - pairs[0][0].first).days / _YEAR)
    for (mine, theirs), text, other in zip(pairs, known, found, strict=False):
        apart = [(getattr(theirs, end) - getattr(mine, end)).days - years * _YEAR for end in ("first", "last")]
        if max(map(abs, apart)) > _SAME:
            return f"{other} in place of {text}"
    return "" if len(known) == len(found) else f"{len(found)} in place of {len(known)}"
