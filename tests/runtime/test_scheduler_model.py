"""The scheduler against a slow, obvious one: random graphs, each step of both compared in all that it says."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import examples
from weavegraph import END, START, AppRunner, Command, GraphBuilder, RuntimeConfig, Send
from weavegraph.errors import StateError, StepLimitError
from weavegraph.state import FrontierCommand, NodePartial, append

LIMIT = 12


class State(TypedDict, total=False):
    log: Annotated[list[str], append]
    total: Annotated[int, operator.add]
    top: Annotated[int, max]
    last: int
    note: str


class To(NamedTuple):
    """A target: a node, or, with ``payload``, a send to it."""

    node: str
    payload: int | None = None


Kind = Literal["plain", "command", "sends", "append", "replace"]


@dataclass(frozen=True)
class Act:
    """What a node does: its writes, and how it says where to go."""

    writes: Mapping[str, Any]
    kind: Kind
    targets: tuple[To, ...]
    turns: int  # of the loop, before it is done: siblings finish in any order


@dataclass(frozen=True)
class Node:
    name: str
    acts: tuple[Act, ...]  # which one, its view decides
    edges: tuple[str, ...]
    answers: tuple[tuple[To, ...], ...]  # of its router, if any; which one, the merged state decides

    def act(self, view: Mapping[str, Any]) -> Act:
        return self.acts[_digest(view) % len(self.acts)]

    def answer(self, state: Mapping[str, Any]) -> tuple[To, ...]:
        return self.answers[_digest(state) % len(self.answers)]


def _digest(view: Mapping[str, Any]) -> int:
    return len(view.get("log", ())) + view.get("total", 0) + view.get("top", 0) + view.get("payload", 0)


# ── the obvious one ───────────────────────────────────────────────────────────────────────────────


@dataclass
class Reference:
    """One task after the other; a step is a list, the state a dict."""

    nodes: dict[str, Node]
    state: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    frontier: list[To] = field(default_factory=list)
    steps: int = 0

    def step(self) -> dict[str, Any]:
        if self.steps == LIMIT:
            raise StepLimitError(LIMIT)
        acts = [self.nodes[to.node].act(self.view(to)) for to in self.frontier]
        merged = self.merged(acts)
        updated = [key for key in merged if merged[key] != self.state.get(key)]
        targets: list[To] = []
        for to, act in zip(self.frontier, acts, strict=True):
            targets += self.leaving(self.nodes[to.node], act, merged)
        ran = tuple(to.node for to in self.frontier)
        self.state, self.steps = merged, self.steps + 1
        for key in updated:
            self.versions[key] = self.versions.get(key, 0) + 1
        self.frontier = self.due(targets)
        return {
            "step": self.steps,
            "ran": ran,
            "updated": sorted(updated),
            "next": tuple(to.node for to in self.frontier),
            "versions": dict(self.versions),
            "completed": not self.frontier,
            "state": deepcopy(self.state),
        }

    def view(self, to: To) -> Mapping[str, Any]:
        return deepcopy(self.state) if to.payload is None else {"payload": to.payload}

    def merged(self, acts: Sequence[Act]) -> dict[str, Any]:
        state, written = deepcopy(self.state), set[str]()
        for act in acts:
            for key, value in act.writes.items():
                if key in ("last", "note"):
                    if key in written:
                        raise StateError("two writers")
                    written.add(key)
                    state[key] = value
                elif key == "log":
                    state[key] = [*state.get(key, []), *value]
                elif key == "total":
                    state[key] = state.get(key, 0) + value
                else:
                    state[key] = max(state.get(key, 0), value)
        return state

    def leaving(self, node: Node, act: Act, merged: Mapping[str, Any]) -> list[To]:
        if act.kind in ("command", "sends", "replace"):
            return list(act.targets)
        targets = [To(name) for name in node.edges]
        if act.kind == "append":
            targets += act.targets
        if node.answers:
            targets += node.answer(merged)
        return targets

    def due(self, targets: Sequence[To]) -> list[To]:
        found: list[To] = []
        for name in self.nodes:
            seen = False
            for to in targets:
                if to.node == name and (to.payload is not None or not seen):
                    found.append(to)
                    seen = seen or to.payload is None
        return found


# ── graphs ────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Node, ...]:
    names = [f"n{number}" for number in range(draw(st.integers(1, 5)))]
    small = st.integers(0, 9)
    plain = st.sampled_from([*names, END]).map(To)
    send = st.builds(To, st.sampled_from(names), small)
    writes = st.fixed_dictionaries(
        {},
        optional={
            "log": st.lists(st.sampled_from("abc"), max_size=2),
            "total": small,
            "top": small,
            "last": small,
            "note": st.sampled_from(["x", "y"]),
        },
    )

    def act(kind: Kind) -> st.SearchStrategy[Act]:
        target = send if kind == "sends" else plain | send
        return st.builds(Act, writes, st.just(kind), st.lists(target, max_size=3).map(tuple), st.integers(0, 3))

    kinds: tuple[Kind, ...] = ("plain", "plain", "command", "sends", "append", "replace")
    acts = st.lists(st.sampled_from(kinds).flatmap(act), min_size=1, max_size=3).map(tuple)
    edges = st.lists(st.sampled_from([*names, END]), unique=True, max_size=2).map(tuple)
    answers = st.lists(st.lists(plain | send, max_size=3).map(tuple), max_size=3).map(tuple)
    return tuple(draw(st.builds(Node, st.just(name), acts, edges, answers)) for name in names)


def built(nodes: Sequence[Node]) -> GraphBuilder[State, None]:
    builder: GraphBuilder[State, None] = GraphBuilder(State, name="random")
    for node in nodes:
        builder.add_node(node.name, _running(node))
        for name in node.edges:
            builder.add_edge(node.name, name)
        if node.answers:
            builder.add_conditional_edge(node.name, _routing(node))
    for name in entries(nodes):
        builder.add_edge(START, name)
    return builder


def entries(nodes: Sequence[Node]) -> list[str]:
    """The first and the last one."""
    return list(dict.fromkeys([nodes[0].name, nodes[-1].name]))


def _running(node: Node) -> Any:
    async def run(view: Any) -> Any:
        act = node.act(view)
        for _ in range(act.turns):
            await asyncio.sleep(0)
        targets = [_real(to) for to in act.targets]
        match act.kind:
            case "plain":
                return act.writes
            case "command":
                return Command(goto=targets, update=act.writes)
            case "sends":
                return Command(goto=targets, update=act.writes) if act.writes else targets
            case "append":
                return NodePartial(act.writes, FrontierCommand.append(*targets))
            case "replace":
                return NodePartial(act.writes, FrontierCommand.replace(*targets))

    return run


def _routing(node: Node) -> Any:
    return lambda state: [_real(to) for to in node.answer(state)]


def _real(to: To) -> str | Send:
    return to.node if to.payload is None else Send(to.node, {"payload": to.payload})


# ── both ──────────────────────────────────────────────────────────────────────────────────────────


def expected(nodes: Sequence[Node]) -> list[dict[str, Any] | type[BaseException]]:
    reference = Reference({node.name: node for node in nodes})
    reference.frontier = reference.due([To(name) for name in entries(nodes)])
    seen: list[dict[str, Any] | type[BaseException]] = []
    while reference.frontier:
        try:
            seen.append(reference.step())
        except (StateError, StepLimitError) as error:
            return [*seen, type(error)]
    return seen


async def actual(nodes: Sequence[Node]) -> list[dict[str, Any] | type[BaseException]]:
    seen: list[dict[str, Any] | type[BaseException]] = []
    async with built(nodes).compile(RuntimeConfig(step_limit=LIMIT)) as app:
        runner = AppRunner(app)
        await runner.create_session({}, session_id="s")
        while True:
            try:
                report = await runner.run_step("s")
            except (StateError, StepLimitError) as error:
                return [*seen, type(error)]
            seen.append(
                {
                    "step": report.step,
                    "ran": report.ran_nodes,
                    "updated": sorted(report.updated_keys),
                    "next": report.next_nodes,
                    "versions": {key: version for key, version in report.versions.items() if version},
                    "completed": report.completed,
                    "state": dict(await runner.state("s")),
                }
            )
            if report.completed:
                return seen


@settings(max_examples=examples(100), deadline=None)
@given(graphs())
def test_every_step_of_a_random_graph_is_that_of_the_obvious_scheduler(nodes: tuple[Node, ...]) -> None:
    assert asyncio.run(actual(nodes)) == expected(nodes)


@settings(max_examples=examples(30), deadline=None)
@given(graphs())
def test_a_run_at_one_go_ends_as_its_steps_do(nodes: tuple[Node, ...]) -> None:
    async def whole() -> Any:
        async with built(nodes).compile(RuntimeConfig(step_limit=LIMIT)) as app:
            try:
                return dict(await app.invoke({}))
            except (StateError, StepLimitError) as error:
                return type(error)

    last = expected(nodes)[-1]
    assert asyncio.run(whole()) == (last["state"] if isinstance(last, dict) else last)
