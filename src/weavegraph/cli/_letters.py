"""``weavegraph dead-letters``: what outboxes could not deliver: listed, shown, sent again, dropped."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import msgspec

from weavegraph.cli._lines import Lines, cut
from weavegraph.cli._load import has_table, opened
from weavegraph.cli._runs import table
from weavegraph.cli._screen import Screen, plain, say
from weavegraph.config import SinkConfig
from weavegraph.errors import CommandError
from weavegraph.events import to_json
from weavegraph.log import DeadLetters, Letter
from weavegraph.sinks import make_sink

__all__ = ["letters"]

_TITLES = ("ID", "OUTBOX", "RUN", "POSITION", "TRIES", "LAST TRY", "ERROR")
_PAGE = 500


async def letters(
    url: str, ids: Sequence[int], *, every: bool, resend: str | None, drop: bool, outbox: str | None, as_json: bool
) -> int:
    """List the letters beside a log, show some whole, or do something with them."""
    acts = drop or resend is not None
    if drop and resend is not None:
        raise CommandError("--resend and --drop: one at a time; what was sent again is dropped anyway")
    if every and ids:
        raise CommandError("--all and ids: give one of them")
    if acts and not ids and not every:
        raise CommandError(f"{'--drop' if drop else '--resend'}: which letters? Give their ids, or --all")
    if every and not acts:
        raise CommandError("--all goes with --resend or --drop")
    sink = None if resend is None else make_sink(SinkConfig.parse(resend))
    async with opened(url) as log:
        if getattr(log, "store", None) is None:
            raise CommandError(f"{url} has no dead letters: they stand beside the sqlite: log that was shipped from")
        found: list[Letter] = []
        dead = DeadLetters(log)
        try:
            if await has_table(log, "outbox_letters"):  # which looking does not make
                found = await _found(dead, outbox)
            if acts:
                chosen = [letter.id for letter in found] if every else list(ids)
                return await (_drop(dead, chosen) if drop else _resend(dead, sink, chosen))
        finally:
            await dead.aclose()
    if ids:
        return _show(found, ids, as_json)
    return _list(found, url, as_json)


async def _found(dead: DeadLetters, outbox: str | None) -> list[Letter]:
    found: list[Letter] = []
    while page := await dead.list(outbox, limit=_PAGE, after=found[-1].id if found else 0):
        found += page
    return found


def _list(found: Sequence[Letter], url: str, as_json: bool) -> int:
    screen = Screen.out()
    if as_json:
        for letter in found:
            screen.json(_json(letter))
        return 0
    if not found:
        say(f"{url} holds no dead letter")
        return 0
    for line in table([_TITLES, *map(_row, found)], None):
        screen.line(line if screen.width is None else cut(line, screen.width, "…" if screen.unicode else "..."))
    return 0


def _row(letter: Letter) -> tuple[str, ...]:
    event = letter.event
    return (
        str(letter.id),
        plain(letter.outbox),
        plain(event.run_id or ""),
        str(event.run_seq or ""),
        str(letter.tries),
        f"{letter.last_at.astimezone():%m-%d %H:%M:%S}",
        plain(letter.error),
    )


def _show(found: Sequence[Letter], ids: Sequence[int], as_json: bool) -> int:
    screen, known = Screen.out(), {letter.id: letter for letter in found}
    unknown = [number for number in ids if number not in known]
    if unknown:
        raise CommandError(f"there is no dead letter {unknown[0]}: without ids all are listed")
    for letter in (known[number] for number in ids):
        if as_json:
            screen.json(_json(letter))
            continue
        first, last = (at.astimezone().isoformat(" ", "seconds") for at in (letter.first_at, letter.last_at))
        screen.line(f"letter {letter.id} of {plain(letter.outbox)}, run {plain(letter.event.run_id or '')}")
        screen.line(f"tried {letter.tries} time{'s' * (letter.tries != 1)}, {first} to {last}: {plain(letter.error)}")
        lines = Lines(color=screen.color, unicode=screen.unicode)
        screen.write(lines.feed(letter.event) + lines.close())
    return 0


def _json(letter: Letter) -> bytes:
    facts = {name: getattr(letter, name) for name in ("id", "outbox", "error", "tries", "first_at", "last_at")}
    return msgspec.json.encode({**facts, "event": msgspec.Raw(to_json(letter.event))})


async def _resend(dead: DeadLetters, sink: Any, ids: Sequence[int]) -> int:
    await _call(sink, "start")
    try:
        report = await dead.resend(sink, ids)
    finally:
        await _call(sink, "aclose" if hasattr(sink, "aclose") else "close")
    Screen.out().line(f"{len(report.sent)} sent, {len(report.failed)} left")
    for number, reason in report.failed.items():
        say(f"letter {number}: {reason}")
    return 1 if report.failed else 0


async def _call(sink: Any, name: str) -> None:
    method = getattr(sink, name, None)
    if method is not None:
        result = method()
        if inspect.isawaitable(result):
            await result


async def _drop(dead: DeadLetters, ids: Sequence[int]) -> int:
    gone = [number for number in ids if await dead.drop([number])]
    Screen.out().line(f"{len(gone)} dropped")
    for number in ids:
        if number not in gone:
            say(f"letter {number}: no such letter")
    return 0 if len(gone) == len(ids) else 1
