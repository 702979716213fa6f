"""Nobody can change an event: not its author, not a reader (contract E5)."""

from __future__ import annotations

import copy
import json
import operator
import pickle
from typing import Any

import msgspec
import pytest

from tests.support import clause
from weavegraph import EventHub, NodeEvent, llm_chunk, node_message
from weavegraph.events import admit


def live() -> NodeEvent:
    event = admit(node_message("a", "m", d={"k": [1, {"x": 2}]}, lst=[3, 1, 2]))[0]
    assert isinstance(event, NodeEvent)
    return event


CHANGES: dict[str, Any] = {
    "setitem": lambda m: operator.setitem(m, "new", 1),
    "delitem": lambda m: operator.delitem(m, "d"),
    "clear": lambda m: m.clear(),
    "pop": lambda m: m.pop("d"),
    "popitem": lambda m: m.popitem(),
    "setdefault": lambda m: m.setdefault("new", 1),
    "update": lambda m: m.update(new=1),
    "ior": lambda m: operator.ior(m, {"new": 1}),
    "inner setitem": lambda m: operator.setitem(m["d"], "k", 1),
    "list setitem": lambda m: operator.setitem(m["lst"], 0, 1),
    "list slice": lambda m: operator.setitem(m["lst"], slice(None), []),
    "list delitem": lambda m: operator.delitem(m["lst"], 0),
    "append": lambda m: m["lst"].append(1),
    "extend": lambda m: m["lst"].extend([1]),
    "insert": lambda m: m["lst"].insert(0, 1),
    "remove": lambda m: m["lst"].remove(1),
    "list pop": lambda m: m["lst"].pop(),
    "list clear": lambda m: m["lst"].clear(),
    "reverse": lambda m: m["lst"].reverse(),
    "sort": lambda m: m["lst"].sort(),
    "iadd": lambda m: operator.iadd(m["lst"], [1]),
    "imul": lambda m: operator.imul(m["lst"], 2),
    "deep": lambda m: operator.setitem(m["d"]["k"][1], "x", 0),
}


@clause("E5")
@pytest.mark.parametrize("name", CHANGES)
def test_metadata_refuses_every_change_at_every_depth(name: str) -> None:
    event = live()
    before = json.dumps(event.metadata)
    with pytest.raises(TypeError):
        CHANGES[name](event.metadata)
    assert json.dumps(event.metadata) == before


@clause("E5")
@pytest.mark.parametrize("field", ["scope", "message", "metadata", "seq", "timestamp", "path"])
def test_no_field_of_an_event_can_be_set(field: str) -> None:
    with pytest.raises(AttributeError):
        setattr(live(), field, None)


@clause("E5")
def test_what_the_author_keeps_is_another_object() -> None:
    mine: dict[str, Any] = {"k": [1]}
    with EventHub() as hub, hub.subscribe() as stream:
        hub.publish(NodeEvent("a", "m", mine, path=["x"]))  # type: ignore[arg-type]
        mine["k"].append(2)
        mine["more"] = 1
        event = stream.try_recv()
        assert event is not None
        assert (event.metadata, event.path) == ({"k": [1]}, ("x",))


@clause("E5")
def test_copies_may_be_changed_and_compare_equal_before() -> None:
    metadata = live().metadata
    assert metadata == {"d": {"k": [1, {"x": 2}]}, "lst": [3, 1, 2]}
    plain = dict(metadata)
    plain["new"] = 1
    lst = metadata["lst"].copy()
    lst.append(4)
    own = metadata.copy()  # type: ignore[attr-defined]
    own.clear()
    assert "new" not in metadata and metadata["lst"] == [3, 1, 2]
    assert copy.deepcopy(metadata) is copy.copy(metadata) is metadata
    assert copy.copy(metadata["lst"]) is copy.deepcopy(metadata["lst"]) is metadata["lst"]
    again = pickle.loads(pickle.dumps(metadata))
    assert again == metadata and type(again) is type(metadata) and type(again["lst"]) is type(metadata["lst"])
    assert msgspec.json.encode(metadata) == msgspec.json.encode(plain | {}).replace(b',"new":1', b"")


@clause("E5", "O1")
def test_one_event_object_published_twice_gives_two_separately_stamped_events() -> None:
    event = node_message("a", "m", x=[1])
    with EventHub() as hub, hub.subscribe() as stream:
        assert [hub.publish(event), hub.publish(event)] == [1, 2]
        one, two = stream.try_recv(), stream.try_recv()
        assert one is not None and two is not None
        assert (one.seq, two.seq, event.seq) == (1, 2, 0)
        assert one.epoch == two.epoch == hub.epoch
        hub.publish(two)
        three = stream.try_recv()
        assert three is not None and (three.seq, two.seq) == (3, 2)
        assert type(event.metadata) is dict


@clause("E5")
def test_all_readers_share_one_frozen_object() -> None:
    with EventHub() as hub, hub.subscribe() as one, hub.subscribe() as two:
        hub.emitter().emit(llm_chunk("x", answer=[1]))
        first, second = one.try_recv(), two.try_recv()
        assert first is second
