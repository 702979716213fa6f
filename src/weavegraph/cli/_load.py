"""What the words of a command stand for: an app in a module, an input, a log, a run. Wrong words are one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import runpy
import sys
import traceback
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from weavegraph.cli._screen import say
from weavegraph.errors import CommandError
from weavegraph.events import EventFilter
from weavegraph.graph import GraphBuilder
from weavegraph.log import open_log
from weavegraph.protocols import EventLog, LoggedRun
from weavegraph.runtime import App

__all__ = ["EXAMPLE", "filter_of", "has_table", "input_of", "load_app", "opened", "run_of", "where_raised"]

EXAMPLE = """'{"topic": "tea"}'"""
_LATEST = 1000
"""Runs among which a shortened id is looked for."""


def load_app(reference: str, *, log: str | None = None, checkpointer: str | None = None) -> App[Any]:
    """The app that ``MODULE:APP`` or ``FILE.py:APP`` names, with another log or checkpointer if these are given.

    It may be an app, a ``GraphBuilder``, or a function without arguments that returns one of them.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise CommandError(f"{reference!r}: write it as MODULE:APP, for instance shop.flows:app or flows.py:app")
    module = _module(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = [key for key, value in vars(module).items() if isinstance(value, App | GraphBuilder)]
            hint = f"it has {', '.join(names)}" if names else "it has no app and no GraphBuilder at its top level"
            raise CommandError(f"{place} has no {name!r}: {hint}")
        found = getattr(found, part)
    if not isinstance(found, App | GraphBuilder) and callable(found):
        found = _called(found, reference)
    if isinstance(found, GraphBuilder):
        found = found.compile()
    if not isinstance(found, App):
        raise CommandError(f"{reference} is of type {type(found).__name__}: give a compiled app, or a GraphBuilder")
    changes = {"log": log, "checkpointer": checkpointer}
    changes = {key: value for key, value in changes.items() if value is not None}
    return App(found.graph, msgspec.structs.replace(found.config, **changes)) if changes else found


def _module(place: str) -> ModuleType:
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise CommandError(f"there is no file {place!r}: give MODULE:APP or FILE.py:APP")
        sys.path.insert(0, str(path.resolve().parent))
        place = path.stem
        if place in sys.modules:  # a module of that name is in use already
            return _ran(str(path), place)
    else:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as exc:
        if exc.name and (place == exc.name or place.startswith(f"{exc.name}.")):
            raise CommandError(f"there is no module {place!r} here: run from its folder, or set PYTHONPATH") from exc
        raise CommandError(f"importing {place} failed: {_fault(exc)}") from exc
    except (Exception, SystemExit) as exc:
        raise CommandError(f"importing {place} failed: {_fault(exc)}") from exc


def _ran(path: str, name: str) -> ModuleType:
    module = ModuleType(name)
    try:
        vars(module).update(runpy.run_path(path, run_name=f"{name}_"))
    except (Exception, SystemExit) as exc:
        raise CommandError(f"importing {path} failed: {_fault(exc)}") from exc
    return module


def _called(function: Any, reference: str) -> Any:
    try:
        return function()
    except (Exception, SystemExit) as exc:
        raise CommandError(f"calling {reference} failed: {_fault(exc)}") from exc


def _fault(exc: BaseException) -> str:
    place = where_raised(exc)
    return f"{type(exc).__name__}: {exc}" + (f" ({place})" if place else "")


def where_raised(exc: BaseException) -> str:
    """File and line where an exception was raised, the innermost outside this package; empty when nothing is."""
    ours = str(Path(__file__).resolve().parent.parent)
    frames = [
        frame
        for frame in traceback.extract_tb(exc.__traceback__)
        if not frame.filename.startswith((ours, "<")) and "importlib" not in frame.filename
    ]
    if not frames:
        return ""
    path = frames[-1].filename
    with contextlib.suppress(ValueError):
        path = str(Path(path).relative_to(Path.cwd()))
    return f"{path}, line {frames[-1].lineno}"


def input_of(text: str | None) -> Any:
    """What INPUT stands for: JSON, ``@file`` with JSON, ``-`` for JSON from standard input; ``None`` when not given."""
    if text is None:
        return None
    where = "INPUT"
    if text == "-":
        where, data = "standard input", sys.stdin.buffer.read()
    elif text.startswith("@"):
        where = text[1:]
        try:
            data = Path(where).read_bytes()
        except OSError as exc:
            raise CommandError(f"{where}: {exc.strerror}: give @FILE with JSON in it") from exc
    else:
        data = text.encode("utf-8", "surrogateescape")
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CommandError(f"{where} is no JSON ({exc}): write it like {EXAMPLE}") from exc


def filter_of(kinds: Sequence[str], scopes: Sequence[str], path: str | None) -> EventFilter:
    """The options ``--kind``, ``--scope`` and ``--path`` as a filter."""
    wrong = [kind for kind in kinds if kind not in ("node", "diagnostic", "llm")]
    if wrong:
        raise CommandError(f"--kind {wrong[0]}: choose node, diagnostic or llm")
    return EventFilter(kinds=tuple(kinds), scopes=tuple(scopes), path=tuple(path.split("/")) if path else ())  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def opened(url: str, *, make: bool = False) -> AsyncIterator[EventLog]:
    """The log that ``url`` names, to be read; one that is not there is made only with ``make``."""
    kind, colon, rest = url.partition(":")
    path = rest.partition("?")[0]
    if not colon or len(kind) == 1:
        raise CommandError(f"{url!r} is no URL of a log: write sqlite:{url}")
    if kind == "memory":
        raise CommandError("a memory: log ends with the process that made it: give the URL of one that lasts")
    if kind == "sqlite" and not make and not Path(path).is_file():
        raise CommandError(f"there is no file {path!r}: give the URL that the run was started with (--log sqlite:PATH)")
    log = open_log(url)
    assert log is not None
    try:
        yield log
    finally:
        await log.aclose()


async def has_table(log: EventLog, name: str) -> bool:
    """Whether the file of an ``sqlite:`` log holds that table; asking makes none."""
    store: Any = getattr(log, "store", None)
    if store is None:
        return False
    has = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return await store.query(lambda connection: connection.execute(has, (name,)).fetchone()) is not None


async def run_of(log: EventLog, url: str, name: str | None, *, wait: bool = False) -> str:
    """The id of a run: the newest one without a name; a name may be the beginning of an id.

    ``wait``: a run that is not there yet is waited for, and that is said.
    """
    if name is None:
        newest: Sequence[LoggedRun] = await log.runs(limit=1)
        if newest:
            return newest[0].run_id
        if not wait:
            raise CommandError(f"{url} holds no run yet: start one with weavegraph run … --log {url}")
        say(f"{url} holds no run yet: waiting for one (Ctrl-C ends this)")
        return await _first(log)
    if await log.last_position(name):
        return name
    runs = await log.runs(limit=_LATEST)
    matching = [run.run_id for run in runs if run.run_id.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise CommandError(f"{len(matching)} runs begin with {name!r}: give more of the id (weavegraph runs {url})")
    if not wait:
        raise CommandError(f"there is no run {name!r} in {url}: weavegraph runs {url} lists them")
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", name):
        raise CommandError(f"{name!r} is no id of a run: weavegraph runs {url} lists them")
    say(f"run {name!r} is not there yet: waiting for it (Ctrl-C ends this)")
    return name


async def _first(log: EventLog) -> str:
    while not (found := await log.runs(limit=1)):
        await asyncio.sleep(0.2)
    return found[0].run_id
