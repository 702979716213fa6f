"""What the wire sees: a view that hides texts and changes no position, index or count."""

from __future__ import annotations

import itertools
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import clause
from tests.web.support import chatty, serving
from weavegraph import END, START, GraphBuilder, NodeContext, RuntimeConfig
from weavegraph.events import Event, View, llm_chunk, llm_error, llm_final, node_message
from weavegraph.web import mask_secrets

KEY = "sk-abcdefghijklmnopqrstuvwxyz"
SECRETS = [
    KEY,
    "Bearer abcdefghijklmnop",
    "password: hunter22",
    "AKIAABCDEFGHIJKLMNOP",
    "ghp_abcdefghijklmnopqrstuvwxyz",
    "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
]


def pieces(text: str, cuts: list[int], **options: Any) -> list[Event]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    parts = [text[a:b] for a, b in itertools.pairwise(places)]
    events: list[Event] = [llm_chunk(part, stream_id="s", index=n, **options) for n, part in enumerate(parts)]
    return [*events, llm_final("", stream_id="s", index=len(parts))]


@clause("12.5")
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_masked_wherever_it_stands(secret: str) -> None:
    redact = mask_secrets()
    text = f"before {secret} after"
    event = redact(node_message("a", text, note=text, nested={"list": [text]}, api_key="x", words=3), "wire")
    shown = msgspec.json.encode(event).decode()
    assert secret.split()[-1] not in shown and "before" in shown and "after" in shown
    assert event.metadata["api_key"] == "***" and event.metadata["words"] == 3


@clause("12.5")
@pytest.mark.parametrize("secret", SECRETS)
@given(st.lists(st.integers(0, 200), max_size=30))
def test_a_secret_that_is_cut_by_the_borders_of_chunks_is_masked(secret: str, cuts: list[int]) -> None:
    text = f"the key is {secret} and no more words"
    events = pieces(text, cuts)
    view = View(mask_secrets(), "wire")
    seen = [view.see(event) for event in events]
    assert [(e.index, e.phase, e.is_final) for e in seen] == [(e.index, e.phase, e.is_final) for e in events]  # type: ignore[union-attr]
    whole = "".join(event.message for event in seen)
    assert secret.split()[-1] not in whole
    assert whole.startswith("the key is ") and whole.endswith(" and no more words")


@given(st.text(alphabet="ab \n", max_size=80), st.lists(st.integers(0, 80), max_size=20))
def test_what_is_no_secret_arrives_whole(text: str, cuts: list[int]) -> None:
    view = View(mask_secrets(), "wire")
    assert "".join(view.see(event).message for event in pieces(text, cuts)) == text


def test_answers_side_by_side_are_told_apart() -> None:
    view = View(mask_secrets(), "wire")
    rng = random.Random(5)
    waiting = {name: list(KEY + f" {name}") for name in "xyz"}
    said: dict[str, str] = dict.fromkeys(waiting, "")
    indices = dict.fromkeys(waiting, 0)
    while any(waiting.values()):
        name = rng.choice([name for name, left in waiting.items() if left])
        piece = waiting[name].pop(0)
        said[name] += view.see(llm_chunk(piece, stream_id=name, index=indices[name])).message
        indices[name] += 1
    for name in said:
        said[name] += view.see(llm_final("", stream_id=name, index=indices[name])).message
    assert said == {name: f"*** {name}" for name in "xyz"}


def test_an_answer_whose_beginning_is_not_known_begins_at_a_word() -> None:
    view = View(mask_secrets(), "wire")
    assert view.see(llm_chunk("fghijklmnopqrstuvwxyz and ", stream_id="s", index=9)).message == "… and "
    view.see(llm_chunk("more", stream_id="s", index=10))
    assert view.see(llm_error("it broke", stream_id="s", index=11)).message == "it broke"


@clause("12.5")
@pytest.mark.parametrize("answer", [None, "text", 5, "raise", "other"])
def test_a_hook_that_fails_hides_the_text_and_loses_no_event(answer: Any) -> None:
    def hook(event: Event, audience: str) -> Any:
        if answer == "raise":
            raise KeyError("secret")
        return llm_chunk("x") if answer == "other" else answer

    event = node_message("a", "secret", key="secret")
    seen = View(hook, "wire").see(event)
    assert "secret" not in msgspec.json.encode(seen).decode()
    assert seen.scope == "a"


@clause("12.5")
def test_a_hook_cannot_change_positions() -> None:
    def hook(event: Event, audience: str) -> Event:
        assert audience == "wire"
        return msgspec.structs.replace(event, message="…", seq=99, run_seq=99, run_id="other", scope="weavegraph.gap")

    event = msgspec.structs.replace(node_message("a", "text"), seq=4, run_seq=3, run_id="r")
    seen = View(hook, "wire").see(event)
    assert (seen.message, seen.seq, seen.run_seq, seen.run_id, seen.scope) == ("…", 4, 3, "r", "a")


@clause("12.5")
async def test_clients_see_the_view_wherever_they_begin_and_sinks_see_the_event() -> None:
    builder = GraphBuilder()

    @builder.node
    async def talk(state: Any, ctx: NodeContext[Any, Any]) -> None:
        ctx.emit("word", f"the key is {KEY}", password="hunter2")
        await ctx.stream_llm([*f"it is {KEY} yes"], stream_id="s")

    app = builder.add_edge(START, "talk").add_edge("talk", END).compile()
    async with serving(app, redact=mask_secrets()) as (_, client):
        run_id = await client.start()
        frames = await (await client.watch(run_id)).rest()
        assert "abcdef" not in "".join(frame.data for frame in frames) and "hunter2" not in str(frames)
        answer = "".join(frame.json["chunk"] for frame in frames if frame.event == "llm")
        assert answer == "it is *** yes"
        events = [event async for event in app.event_stream(run_id=run_id)]
        assert [event.run_seq for event in events] == [frame.json["run_seq"] for frame in frames]
        assert KEY in events[4].message or any(KEY in event.message for event in events)
        for n, frame in enumerate(frames[:-1]):  # resumed in the middle of the answer, too
            assert await (await client.watch(run_id, frame.id)).rest() == frames[n + 1 :]


@clause("12.5")
@pytest.mark.parametrize("unredacted", [(), ("wire",)])
async def test_the_hook_of_the_app_is_asked_for_the_wire_too(unredacted: Any) -> None:
    app = chatty(1, RuntimeConfig(redact=mask_secrets(), unredacted=unredacted), note=f"it is {KEY}")
    async with serving(app) as (_, client):
        frames = await (await client.watch(await client.start())).rest()
        assert (KEY in str(frames)) is bool(unredacted)


async def test_metadata_that_cannot_be_sent_is_withheld() -> None:
    def hook(event: Event, audience: str) -> Event:
        return msgspec.structs.replace(event, metadata={"x": object()})

    async with serving(chatty(1), redact=hook) as (_, client):
        frames = await (await client.watch(await client.start())).rest()
        assert {frame.json["message"] for frame in frames} == {"[withheld: the redaction hook failed]"}
        assert frames[-1].event in ("pause", "end")
