"""A stream over HTTP: what is sent, where it begins, how it ends; section 10 of the contract, row by row."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import pytest

from tests.support import clause
from tests.web.support import Client, Gated, chatty, eventually, serving
from weavegraph import RuntimeConfig
from weavegraph.log import SqliteLog
from weavegraph.web._source import LaneSource


def durable(folder: Path) -> RuntimeConfig:
    return RuntimeConfig(log=f"sqlite:{folder}/runs.db", checkpointer=f"sqlite:{folder}/runs.db", cancel_grace=0.01)


@clause("10.none", "10.valid", "10.over", "9.stream_end")
async def test_a_run_is_started_watched_resumed_at_every_position_and_then_over() -> None:
    async with serving(chatty()) as (_, client):
        run_id = await client.start()
        stream = await client.watch(run_id)
        frames = await stream.rest()
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.parser.retry == "1000"
        assert [frame.json["run_seq"] for frame in frames] == [*range(1, len(frames) + 1)]
        assert frames[0].json["scope"] == "weavegraph.run.started"
        assert frames[-1].event == "end" and frames[-1].json["metadata"]["outcome"] == "completed"
        assert {frame.event for frame in frames} == {"node", "diagnostic", "llm", "end"}
        ids = [frame.id or "" for frame in frames]
        assert ids == sorted(set(ids)) and all(ids)
        for n in range(len(frames) - 1):
            again = await (await client.watch(run_id, ids[n])).rest()
            assert again == frames[n + 1 :]
        for after in (ids[-1], None):  # everything was read; or live from now, and nothing comes any more
            assert (await client.watch(run_id, after)).status == 204


@clause("10.none")
async def test_without_a_position_a_stream_is_live_from_now() -> None:
    talk = Gated()
    async with serving(talk.app) as (_, client):
        run_id = await client.start()
        talk.say("before")
        early = await client.watch(run_id)
        await early.frames(lambda found: bool(found) and found[-1].json["message"] == "before")
        live = await client.watch(run_id, None)
        talk.say("after", None)
        frames = await live.rest()
        assert frames[0].json["message"] == "after"


@clause("10.malformed")
async def test_positions_that_are_none_are_refused_by_name() -> None:
    async with serving(chatty(), heartbeat=0.1) as (_, client):
        run_id, other = await client.start(), await client.start()
        frames = await (await client.watch(run_id)).rest()
        last = frames[-1].id or ""
        mark, position, epoch = last.split(".")
        for wrong in ("1", "x", "-1", "0x10", "1e3", last[:-1], last + "0", " ", f"{mark}.{position}", "a" * 5000, "٣"):
            answer = await client.ask("GET", f"/runs/{run_id}/events", Last_Event_ID=wrong.encode().decode("latin-1"))
            assert answer.status == (200 if wrong == " " else 400) or wrong == " ", (wrong, answer)
            if wrong != " ":
                assert answer.code == "invalid_cursor"
        beyond = f"{mark}.{int(position) + 1:012d}.{epoch}"
        answer = await client.ask("GET", f"/runs/{run_id}/events", Last_Event_ID=beyond)
        assert (answer.status, answer.code) == (400, "invalid_cursor")
        answer = await client.ask("GET", f"/runs/{other}/events", Last_Event_ID=last)
        assert (answer.status, answer.code) == (404, "run_not_found")
        answer = await client.ask("GET", "/runs/nobody/events")
        assert (answer.status, answer.code) == (404, "run_not_found")


@clause("10.epoch")
async def test_a_position_of_an_earlier_process_is_one_gap_and_then_the_oldest_held() -> None:
    async with serving(chatty()) as (_, client):
        run_id = await client.start(run_id="r")
        ids = [frame.id or "" for frame in await (await client.watch(run_id)).rest()]
    async with serving(chatty()) as (_, client):
        await client.start(run_id="r")
        frames = await (await client.watch("r", ids[3])).rest()
        gap, first = frames[:2]
        assert gap.event == "gap" and gap.id is None
        assert gap.json["metadata"] == {"count": None, "reason": "epoch"}
        assert first.json["run_seq"] == 1 and frames[-1].event == "end"


@clause("10.trimmed", "A3")
async def test_what_was_trimmed_is_one_exact_gap_without_an_id(tmp_path: Path) -> None:
    async with serving(chatty(config=durable(tmp_path))) as (web, client):
        run_id = await client.start()
        frames = await (await client.watch(run_id)).rest()
        assert web.app.log is not None
        await web.app.log.trim(run_id, 7)
        gap, *rest = await (await client.watch(run_id, frames[1].id)).rest()
        assert gap.event == "gap" and gap.id is None
        assert gap.json["metadata"] == {"count": 5, "first_seq": 3, "last_seq": 7}
        assert rest == frames[7:]


@clause("10.valid", "D9")
async def test_with_a_durable_log_no_position_is_sent_before_the_log_holds_it(tmp_path: Path) -> None:
    talk = Gated(durable(tmp_path))
    async with serving(talk.app) as (_, client):
        run_id = await client.start()
        assert await SqliteLog(tmp_path / "runs.db").last_position(run_id) > 0
        stream = await client.watch(run_id)
        held = SqliteLog(tmp_path / "runs.db")  # another reader of the file, as another process would be
        try:
            for n in range(20):
                talk.say(str(n))
                frames = await stream.frames(lambda found, n=n: bool(found) and found[-1].json["message"] == str(n))
                assert await held.last_position(run_id) >= frames[-1].json["run_seq"]
            talk.say(None)
            await stream.rest()
        finally:
            await held.aclose()


@clause("10.ahead")
async def test_a_position_ahead_of_this_servers_copy_is_waited_for(tmp_path: Path) -> None:
    config = durable(tmp_path)
    async with serving(chatty(config=config)) as (_, client):
        run_id = await client.start()
        frames = await (await client.watch(run_id)).rest()
        assert frames[-1].id is not None
    mark, position = frames[-1].id.split(".")
    ahead = f"{mark}.{int(position) + 2:012d}"
    async with serving(chatty(config=config), catch_up=0.05) as (_, client):
        answer = await client.ask("GET", f"/runs/{run_id}/events", Last_Event_ID=ahead)
        assert (answer.status, answer.code) == (503, "not_caught_up")
        assert answer.headers["retry-after"] == "1"


class Lagging(SqliteLog):
    """A server's copy of a log that has not got everything yet."""

    shown: int | None = 3

    async def last_position(self, run_id: str, /) -> int:
        last = await super().last_position(run_id)
        return last if self.shown is None else min(last, self.shown)


@clause("10.ahead", "10.valid")
async def test_a_position_that_arrives_in_time_is_served(tmp_path: Path) -> None:
    async with serving(chatty(config=durable(tmp_path))) as (_, client):
        run_id = await client.start()
        frames = await (await client.watch(run_id)).rest()
    log = Lagging(tmp_path / "runs.db")
    async with serving(chatty(config=RuntimeConfig(log=log))) as (web, client):
        opening = asyncio.create_task(client.watch(run_id, frames[6].id))
        await eventually(lambda: web.hub.streams == 1)
        log.shown = None
        assert await (await opening).rest() == frames[7:]
    await log.aclose()


async def test_ids_are_on_event_frames_only_and_heartbeats_come_at_frame_borders() -> None:
    talk = Gated()
    async with serving(talk.app, heartbeat=0.02) as (_, client):
        run_id = await client.start()
        stream = await client.watch(run_id)
        await stream.comment()
        talk.say("one", None)
        frames = await stream.rest()
        assert all(frame.id for frame in frames)
        assert set(stream.parser.comments) == {""}


async def test_all_watchers_of_a_run_share_one_upstream_reader_and_one_encoding() -> None:
    talk = Gated()
    async with serving(talk.app) as (web, client):
        run_id = await client.start()
        streams = [await client.watch(run_id) for _ in range(20)]
        assert (web.hub.feeds, web.hub.streams) == (1, 20)
        talk.say(*map(str, range(50)), None)
        found = [await stream.rest() for stream in streams]
        assert all(frames == found[0] for frames in found)
        await eventually(lambda: (web.hub.feeds, web.hub.streams) == (0, 0))


async def test_a_filter_is_applied_by_the_server_and_the_end_passes_it() -> None:
    async with serving(chatty()) as (_, client):
        run_id = await client.start()
        stream = await client.open("GET", f"/runs/{run_id}/events?after=0&kinds=node&scopes=wo*")
        frames = await stream.rest()
        assert [frame.event for frame in frames] == ["node"] * 5 + ["end"]
        assert (await client.watch(run_id, frames[-1].id)).status == 204
        answer = await client.ask("GET", f"/runs/{run_id}/events?kinds=nodes")
        assert (answer.status, answer.code) == (400, "config")


async def test_ndjson_has_the_same_events_and_positions() -> None:
    async with serving(chatty()) as (_, client):
        run_id = await client.start()
        frames = await (await client.watch(run_id)).rest()
        for headers, query in (({"Accept": "application/x-ndjson"}, ""), ({}, "&format=ndjson")):
            answer = await client.ask("GET", f"/runs/{run_id}/events?after=0{query}", **headers)
            lines = [json.loads(line) for line in answer.body.splitlines()]
            assert [(line["id"], line["event"], line["data"]) for line in lines] == [
                (frame.id, frame.event, frame.json) for frame in frames
            ]


async def test_everything_and_a_session_can_be_watched() -> None:
    async with serving(chatty()) as (_, client):
        await client.start(session_id="s")
        everything = await client.open("GET", "/events?after=0")
        session = await client.open("GET", "/sessions/t/events")
        await client.start(session_id="t")
        frames = await everything.frames(lambda found: sum(frame.event == "end" for frame in found) == 2)
        assert [frame.json["seq"] for frame in frames] == [*range(1, len(frames) + 1)]
        mine = await session.frames(lambda found: bool(found) and found[-1].event == "end")
        assert mine == [frame for frame in frames if frame.json["session_id"] == "t"]
        again = await client.open("GET", "/events", Last_Event_ID=frames[4].id or "")
        assert await again.take(len(frames) - 5) == frames[5:]


@clause("D9")
async def test_everything_waits_for_the_log_too(tmp_path: Path) -> None:
    async with serving(chatty(config=durable(tmp_path))) as (_, client):
        stream = await client.open("GET", "/events")
        run_id = await client.start()
        held = SqliteLog(tmp_path / "runs.db")
        try:
            frames = await stream.frames(lambda found: bool(found) and found[-1].event == "end")
            assert await held.last_position(run_id) >= frames[-1].json["run_seq"]
            assert [frame.json["run_seq"] for frame in frames] == [*range(1, len(frames) + 1)]
        finally:
            await held.aclose()


async def test_who_is_far_behind_reads_for_itself_and_misses_nothing(tmp_path: Path) -> None:
    for app in (chatty(5000), chatty(5000, config=durable(tmp_path))):
        async with serving(app) as (_, client):
            run_id = await client.start()
            first = await (await client.watch(run_id)).rest()
            assert len(first) > 5000
            again = await asyncio.gather(*(_rest(client, run_id, first[n].id) for n in (0, 700, 4000)))
            assert again == [first[1:], first[701:], first[4001:]]


async def _rest(client: Client, run_id: str, after: str | None) -> list[object]:
    return list(await (await client.watch(run_id, after)).rest())


@clause("10.valid")
async def test_a_client_that_hops_between_two_servers_of_one_log_sees_each_event_once(tmp_path: Path) -> None:
    talk, config = Gated(durable(tmp_path)), durable(tmp_path)
    async with serving(talk.app) as (_, one), serving(Gated(config).app) as (_, two):
        run_id = await one.start()
        seen: list[int] = []
        last: str | None = "0"
        for n, client in zip(range(30), itertools.cycle((one, two)), strict=False):
            talk.say(*(f"{n}.{k}" for k in range(n % 4)), *([None] if n == 29 else []))
            stream = await client.watch(run_id, last)
            if n == 29:
                frames = await stream.rest()
            else:
                frames = await stream.frames(lambda found, n=n: n % 4 == 0 or len(found) >= n % 4)
            stream.leave()
            seen += [frame.json["run_seq"] for frame in frames]
            last = frames[-1].id if frames else last
        assert seen == [*range(1, len(seen) + 1)] and len(seen) > 40


@clause("10.over", "O4")
async def test_an_end_that_comes_while_a_viewer_is_let_in_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read everything up to the head; the run ends between this look at the head and the next."""
    talk = Gated()
    async with serving(talk.app) as (web, client):
        handle = web.app.start({}, run_id="r")
        talk.say("one")
        first = await client.watch("r")
        frames = await first.frames(lambda found: any(frame.event == "node" for frame in found))
        first.leave()
        head = LaneSource.head

        async def late(source: LaneSource) -> int:
            found = await head(source)
            talk.say(None)
            await handle
            return found

        monkeypatch.setattr(LaneSource, "head", late)
        again = await client.watch("r", frames[-1].id)
        assert again.status == 200
        frames += await again.rest()
    assert [frame.json["run_seq"] for frame in frames] == [*range(1, len(frames) + 1)]
    assert frames[-1].event == "end"
