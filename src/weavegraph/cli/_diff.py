"""``weavegraph diff``: whether two runs said and produced the same, and where they first differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from weavegraph.cli._lines import Lines
from weavegraph.cli._load import has_table, opened, run_of
from weavegraph.cli._screen import Screen, data_of, plain
from weavegraph.errors import CommandError, EventDecodeError
from weavegraph.events import Event, from_json
from weavegraph.protocols import EventLog

__all__ = ["PROFILES", "Profile", "Side", "diff", "first_difference"]

Profile: TypeAlias = Literal["strict", "default", "order"]
PROFILES: dict[Profile, str] = {
    "strict": "everything counts",
    "default": "timestamps, seq, epoch, ids, durations and checkpoints do not count",
    "order": "as default, and neither does the order in which parallel nodes took turns",
}
_ABSENT: Any = object()
_IDS = ("timestamp", "seq", "epoch", "run_id", "run_seq", "session_id", "v")
_CONTEXT = 3  # events that are shown before the first difference
_MOST = 100_000  # characters of a value that are shown


class Side(msgspec.Struct, kw_only=True):
    """One of the two runs."""

    name: str
    events: list[Event]
    state: Any = msgspec.UNSET
    """Its final state as plain data, where it is known."""


class Difference(msgspec.Struct, kw_only=True):
    """Where two runs first differ: one event each (``None``: that side ended before), and what of them."""

    left: Event | None
    right: Event | None
    before: Sequence[Event]
    """Events of the left side just before, which are the same on the right."""
    fields: Sequence[tuple[str, Any, Any]]


async def diff(one: str, other: str, *, profile: Profile) -> int:
    """Print the first difference; 0 when there is none, 1 when there is."""
    if profile not in PROFILES:
        raise CommandError(f"--profile {profile}: choose {', '.join(PROFILES)}")
    left, right = await _side(one), await _side(other)
    screen = Screen.out()
    found = first_difference(left.events, right.events, profile)
    if found is not None:
        _show(screen, found)
        return 1
    both = left.state is not msgspec.UNSET and right.state is not msgspec.UNSET
    if both:
        changes = list(changed(left.state, right.state, "state"))
        if changes:
            screen.line("The events agree; the final states differ:")
            _list(screen, changes)
            return 1
    known = " and the final state agree" if both else " agree; a final state is not known on both sides"
    screen.line(f"{len(left.events)} events{known} ({profile}: {PROFILES[profile]}).")
    return 0


# ── comparing: pure ─────────────────────────────────────────────────────────────────────────────────


def first_difference(left: Sequence[Event], right: Sequence[Event], profile: Profile) -> Difference | None:
    """Where the two first differ under a profile; ``None`` when they agree."""
    places = [_lanes(events, profile) for events in (left, right)]
    best: tuple[int, Difference] | None = None
    for lane in {**places[0], **places[1]}:
        for one, other in zip_longest(places[0].get(lane, ()), places[1].get(lane, ())):
            a, b = (None if one is None else left[one]), (None if other is None else right[other])
            if a is not None and b is not None:
                views = normalised(a, profile), normalised(b, profile)
                if views[0] == views[1]:
                    continue
                same = (type(a), a.scope, a.node_id) == (type(b), b.scope, b.node_id)
                fields = list(changed(*views, "")) if same else []
            else:
                fields = []
            at = one if one is not None else other
            assert at is not None
            if best is None or at < best[0]:
                context = left[max(0, at - _CONTEXT) : at] if one is not None else left[-_CONTEXT:]
                best = at, Difference(left=a, right=b, before=context, fields=fields)
            break
    return None if best is None else best[1]


def _lanes(events: Sequence[Event], profile: Profile) -> dict[tuple[Any, ...], list[int]]:
    """Places of the events that count, by lane: within one their order counts.

    A lane is the whole run; under ``order`` each node of a step has its own. Several tasks of one node in one step
    cannot be told apart, so there it is only what was said that counts.
    """
    lanes: dict[tuple[Any, ...], list[int]] = {}
    crowded = set()
    for place, event in enumerate(events):
        if profile != "strict" and event.scope == "weavegraph.checkpoint.saved":
            continue  # where a run is remembered is not what it did
        key = (event.path, event.node_id, event.step) if profile == "order" and event.node_id is not None else ()
        lanes.setdefault(key, []).append(place)
        if event.scope == "weavegraph.step.started":
            names = event.metadata["nodes"]
            crowded |= {(event.path, name, event.step) for name in names if names.count(name) > 1}
    for key in crowded & lanes.keys():
        lanes[key].sort(key=lambda place: msgspec.json.encode(normalised(events[place], profile)))
    return lanes


def normalised(event: Event, profile: Profile) -> dict[str, Any]:
    """The event as plain data, without what does not count."""
    view: dict[str, Any] = msgspec.to_builtins(event)
    view["metadata"] = metadata = data_of(dict(event.metadata))
    if profile == "strict":
        return view
    for key in _IDS:
        view.pop(key, None)
    metadata.pop("duration", None)
    if event.scope.startswith("weavegraph."):
        metadata.pop("session", None)
    return view


def changed(one: Any, other: Any, path: str) -> Iterable[tuple[str, Any, Any]]:
    """Every place where two values differ, as (path, one, other)."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in {**one, **other}:
            yield from changed(one.get(key, _ABSENT), other.get(key, _ABSENT), f"{path}.{key}" if path else str(key))
    elif isinstance(one, list) and isinstance(other, list):
        for place, (a, b) in enumerate(zip_longest(one, other, fillvalue=_ABSENT)):
            yield from changed(a, b, f"{path}[{place}]")
    elif type(one) is not type(other) or one != other:
        yield path, one, other


# ── showing ─────────────────────────────────────────────────────────────────────────────────────────


def _show(screen: Screen, found: Difference) -> None:
    lines = Lines(width=screen.width and screen.width - 3, color=screen.color, unicode=screen.unicode)

    def row(mark: str, event: Event) -> None:
        for line in (lines.feed(event) + lines.close()).rstrip("\n").split("\n"):
            screen.line(f"{mark}  {line}")

    if found.left is not None and found.right is not None:
        screen.line("The runs differ here:")
    else:
        over, longer = "AB" if found.left is None else "BA"
        screen.line(f"{over} has ended here, {longer} goes on:")
    for event in found.before:
        row(" ", event)
    if found.left is not None:
        row("A", found.left)
    if found.right is not None:
        row("B", found.right)
    if found.fields:
        _list(screen, found.fields)


def _list(screen: Screen, changes: Sequence[tuple[str, Any, Any]]) -> None:
    for path, one, other in changes[:20]:
        screen.line(f"  {plain(path)}: {_shown(one)} in A, {_shown(other)} in B")
    if len(changes) > 20:
        screen.line(f"  and {len(changes) - 20} more")


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = msgspec.json.encode(value).decode()
    return plain(text if len(text) <= 200 else text[:200] + "…")


# ── reading the two ─────────────────────────────────────────────────────────────────────────────────


async def _side(text: str) -> Side:
    place, _, run = (text, "", "") if Path(text).is_file() else text.rpartition("#") if "#" in text else (text, "", "")
    if re.match(r"[a-z][a-z0-9+.-]+:", place):
        async with opened(place) as log:
            run_id = await run_of(log, place, run or None)
            events = [event async for event in log.read(run_id)]
            return Side(name=text, events=events, state=await _saved(log, run_id, events))
    if not Path(place).is_file():
        raise CommandError(f"{text!r} is neither URL#RUN (sqlite:runs.db#3f2a) nor a file of JSON Lines that is there")
    return _from_file(text, Path(place), run)


def _from_file(text: str, path: Path, run: str) -> Side:
    side = Side(name=text, events=[])
    states: dict[str, Any] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        if (state := _state_line(line)) is not None:
            states[state[0]] = state[1]
            continue
        try:
            side.events.append(from_json(line))
        except EventDecodeError as exc:
            remedy = "give what weavegraph run --json, or a jsonl: sink, wrote"
            raise CommandError(f"{path}, line {number}: {exc}; {remedy}") from exc
    ids = list(dict.fromkeys(event.run_id or "" for event in side.events))
    if run:
        ids = [found for found in ids if found == run] or [found for found in ids if found.startswith(run)]
    if len(ids) != 1:
        what = f"no run {run!r}" if run and not ids else "no events" if not ids else f"{len(ids)} runs"
        raise CommandError(f"{path} holds {what}: name one as {path}#RUN" if ids or run else f"{path} holds no events")
    side.events = [event for event in side.events if (event.run_id or "") == ids[0]]
    side.state = states.get(ids[0], msgspec.UNSET)
    return side


def _state_line(line: bytes) -> tuple[str, Any] | None:
    """The last line of ``weavegraph run --json``: the run's id and its state."""
    try:
        data = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(data, dict) and data.get("type") == "state" and "state" in data:
        return str(data.get("run_id") or ""), data["state"]
    return None


async def _saved(log: EventLog, run_id: str, events: Sequence[Event]) -> Any:
    """The run's final state, when its checkpoints are in the same file."""
    store = getattr(log, "store", None)
    session = next((event.session_id for event in events if event.session_id), None)
    if store is None or session is None:
        return msgspec.UNSET
    if not await has_table(log, "checkpoints"):
        return msgspec.UNSET  # and it is not made by looking
    from weavegraph.checkpoint.sqlite import SqliteCheckpointer

    checkpointer = SqliteCheckpointer(store.path)
    try:
        page = await checkpointer.history(session, limit=1, run_id=run_id)
    finally:
        await checkpointer.aclose()
    return data_of(dict(page.checkpoints[0].values)) if page.checkpoints else msgspec.UNSET
