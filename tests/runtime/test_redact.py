"""Redaction by audience: sinks by their names, the log, the wire; positions and counts stay (contract 12.5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support import clause, eventually
from weavegraph import END, START, App, Event, EventBusConfig, GraphBuilder, MemorySink, NodeContext, RuntimeConfig
from weavegraph.errors import ConfigError, PermanentSinkError
from weavegraph.events import LLMStreamingEvent, Redactor, mask_secrets
from weavegraph.log import DeadLetters, MemoryLog, SqliteLog
from weavegraph.log._outbox_view import Views

KEY = "sk-abcdefghijklmnopqrstuvwxyz"


class Async:
    """An async sink: it has a loop of its own. ``fails``: calls that fail first."""

    name = "async"

    def __init__(self, fails: int = 0) -> None:
        self.events: list[Event] = []
        self.fails = fails

    async def handle(self, batch: Sequence[Event]) -> None:
        if self.fails:
            self.fails -= 1
            raise OSError("away")
        self.events += batch


class Own:
    """A sink that owns its loop."""

    name = "own"

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def run(self, stream: Any) -> None:
        async for event in stream:
            self.events.append(event)


class Plain(MemorySink):
    name = "plain"


class Trusted(MemorySink):
    name = "trusted"


def talking(config: RuntimeConfig) -> App[Any]:
    builder = GraphBuilder()

    @builder.node
    async def talk(state: Any, ctx: NodeContext[Any, Any]) -> None:
        ctx.emit("word", f"the key is {KEY}", password="hunter2")
        await ctx.stream_llm([*f"it is {KEY} yes"], stream_id="s")

    return builder.add_edge(START, "talk").add_edge("talk", END).compile(config)


def shown(events: Sequence[Event]) -> str:
    return msgspec.json.encode(events).decode()


def skeleton(events: Sequence[Event]) -> list[Any]:
    """Everything that no view may change."""
    return [
        (event.run_seq, event.seq, event.scope, event.timestamp, getattr(event, "index", None),
         getattr(event, "phase", None)) for event in events
    ]  # fmt: skip


def answer(events: Sequence[Event]) -> str:
    return "".join(event.chunk for event in events if isinstance(event, LLMStreamingEvent))


@clause("12.5")
async def test_each_audience_sees_its_view_and_positions_stay(tmp_path: Path) -> None:
    masked: list[Any] = [Plain(), Async(fails=2), Own()]
    trusted, mine = Trusted(), MemorySink()
    config = RuntimeConfig(
        event_bus=EventBusConfig(sinks=(*masked, trusted)), log=f"sqlite:{tmp_path}/runs.db",
        redact=mask_secrets(), unredacted=("trusted",),
    )  # fmt: skip
    async with talking(config) as app:
        run = app.start({}, run_id="r", sinks=[mine])
        await run
        events = [event async for event in run.events()]
        await app.event_bus.flush(timeout=20)
    assert KEY in shown(events) and "hunter2" in shown(events)  # a stream in this process is no audience
    assert list(trusted.snapshot()) == events
    log = SqliteLog(tmp_path / "runs.db")
    kept = [event async for event in log.read("r")]
    await log.aclose()
    views = {"log": kept, "run": mine.snapshot(), "plain": masked[0].snapshot()}
    views |= {"async": masked[1].events, "own": masked[2].events}
    for name, seen in views.items():
        assert "abcdef" not in shown(seen) and "hunter2" not in shown(seen), name
        assert answer(seen) == "it is *** yes", name
        expected = skeleton(events)
        assert [part[:1] + part[2:] for part in skeleton(seen)] == [part[:1] + part[2:] for part in expected], name


@clause("12.5")
async def test_the_hook_is_told_its_audience_and_one_that_fails_hides_the_text() -> None:
    asked: set[str] = set()

    def hook(event: Event, audience: str) -> Event:
        asked.add(audience)
        if audience == "plain":
            raise KeyError("secret")
        return event

    plain, log = Plain(), MemoryLog()
    config = RuntimeConfig(event_bus=EventBusConfig(sinks=(plain, Trusted())), log=log, redact=hook)
    async with talking(config) as app:
        run = app.start({}, run_id="r")
        await run
        count = len([event async for event in run.events()])
        await app.event_bus.flush(timeout=20)
        assert asked == {"plain", "trusted", "log"}
        assert len(plain.snapshot()) == count and KEY not in shown(plain.snapshot())
        assert sum(health.stats.delivered for health in app.event_bus.sink_health()) == 2 * count
        assert KEY in shown([event async for event in log.read("r")])


@clause("12.5")
async def test_the_log_is_masked_unless_it_is_exempted_by_name() -> None:
    for exempt in ((), ("log",)):
        log = MemoryLog()
        async with talking(RuntimeConfig(log=log, redact=mask_secrets(), unredacted=exempt)) as app:
            await app.invoke({}, run_id="r")
        assert (KEY in shown([event async for event in log.read("r")])) is bool(exempt)


class Remote(Async):
    name, remote = "far", True


@clause("12.5")
@pytest.mark.parametrize("unredacted", [("log",), ("log", "far"), ()])
async def test_the_sink_of_an_outbox_is_an_audience_too(tmp_path: Path, unredacted: tuple[str, ...]) -> None:
    far, asked = Remote(fails=2), set[str]()

    def hook(event: Event, audience: str) -> Event:
        asked.add(audience)
        return mask_secrets()(event, audience)

    config = RuntimeConfig(
        event_bus=EventBusConfig(sinks=(far,)), log=f"sqlite:{tmp_path}/runs.db", redact=hook, unredacted=unredacted
    )
    async with talking(config) as app:
        run = app.start({}, run_id="r")
        await run
        events = [event async for event in run.events()]
        await eventually(lambda: len(far.events) >= len(events))
    assert asked == {"log", "far"} - set(unredacted)
    shipped = [part[:1] + part[2:] for part in skeleton(far.events)]
    assert shipped == [part[:1] + part[2:] for part in skeleton(events)]
    is_seen = unredacted == ("log", "far")
    assert (KEY in shown(far.events), "hunter2" in shown(far.events)) == (is_seen, is_seen)
    assert answer(far.events) == (f"it is {KEY} yes" if is_seen else "it is *** yes")


@clause("12.5", "X1")
async def test_an_outbox_sees_the_same_wherever_it_goes_on(tmp_path: Path) -> None:
    async with talking(RuntimeConfig(log=f"sqlite:{tmp_path}/runs.db")) as app:
        await app.invoke({}, run_id="r")
    log = SqliteLog(tmp_path / "runs.db")

    async def shipped(after: int, upto: int | None = None, views: Views | None = None) -> list[Event]:
        views = views or Views(Redactor(mask_secrets(), "far"))
        return [event async for batch in views.batches(log, "r", after, upto) for event in batch]

    whole = await shipped(0)
    assert answer(whole) == "it is *** yes" and [event.run_seq for event in whole] == [*range(1, len(whole) + 1)]
    for after in range(len(whole)):
        assert await shipped(after) == whole[after:]
        views = Views(Redactor(mask_secrets(), "far"))
        assert await shipped(0, after, views) + await shipped(after, None, views) == whole
    await log.aclose()


@clause("12.5")
async def test_what_is_buried_is_what_the_sink_may_see(tmp_path: Path) -> None:
    class Picky(Remote):
        async def handle(self, batch: Sequence[Event]) -> None:
            if any(event.scope == "word" for event in batch):
                raise PermanentSinkError("no words")

    bus = EventBusConfig(sinks=(Picky(),))
    config = RuntimeConfig(event_bus=bus, log=f"sqlite:{tmp_path}/runs.db", redact=mask_secrets(), unredacted=("log",))
    async with talking(config) as app:
        await app.invoke({}, run_id="r")
        await app.event_bus.flush(timeout=20)
    letters = DeadLetters(str(tmp_path / "runs.db"))
    assert [letter.event.message for letter in await letters.list()] == ["the key is ***"]
    await letters.aclose()


def test_what_is_no_hook_or_list_of_names_is_refused() -> None:
    for wrong in ({"redact": "secrets"}, {"unredacted": "log"}, {"unredacted": (1,)}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            RuntimeConfig(**wrong)  # type: ignore[arg-type]
