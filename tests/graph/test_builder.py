"""Describing a graph: faults all at once, order, drawings, fingerprint."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any, Literal

import pytest

from weavegraph import END, START, CompileError, GraphBuilder, GraphError, Retry
from weavegraph.errors import ConfigError
from weavegraph.state import Command, FrontierCommand, NodePartial, Send


def nothing(state: Any) -> None:
    return None


def chain(*names: str) -> GraphBuilder[dict[str, Any]]:
    builder = GraphBuilder(name="chain")
    for name in names:
        builder.add_node(name, nothing)
    for source, target in zip((START, *names), (*names, END), strict=True):
        builder.add_edge(source, target)
    return builder


def faults(builder: GraphBuilder[Any]) -> tuple[str, ...]:
    with pytest.raises(CompileError) as caught:
        builder.compile()
    assert caught.value.faults == builder.validate()
    return caught.value.faults


def test_every_fault_has_its_sentence_with_nodes_and_remedy() -> None:
    builder = chain("a", "b")
    builder.add_edge("a", "ghost").add_edge("a", "b").add_edge("stray", "a").add_edge(END, "a").add_edge("a", START)
    builder.add_node("alone", nothing).add_node("b", nothing)
    builder.add_conditional_edge("b", lambda state: "a", to=["nowhere"])
    builder.add_conditional_edge(END, lambda state: "a")
    assert faults(builder) == (
        "edge 'a' → 'b' is added twice: remove one",
        "edge '__end__' → 'a': END has no successor and START no predecessor",
        "edge 'a' → '__start__': END has no successor and START no predecessor",
        "node 'b' is added twice: give the second another name",
        "a conditional edge starts at END, which has no successor",
        "an edge starts at 'stray', which is no node: add_node('stray', …)",
        "the edge 'a' → 'ghost' names 'ghost', which is no node: add_node('ghost', …)",
        "the conditional edge from 'b' names 'nowhere', which is no node",
        "node 'alone' leads nowhere: add_edge('alone', END); if it returns commands, say where they go: "
        "add_node(…, to=[…])",
        "node 'alone' is never reached: add an edge to it, or remove it",
    )


def test_an_empty_graph_a_cycle_and_no_way_out_are_faults() -> None:
    assert faults(GraphBuilder()) == ("nothing starts: add_edge(START, …)",)
    builder = chain("a")
    builder.add_node("x", nothing).add_node("y", nothing).add_edge("a", "x").add_edge("x", "y").add_edge("y", "x")
    assert faults(builder) == (
        "from 'x', 'y' no edge leads to END: add_edge('y', END)",
        "x → y → x goes round for ever: make one of these a conditional edge",
    )


def test_a_conditional_edge_makes_a_loop_legal_and_start_may_have_one() -> None:
    """Trap: in the original, a graph whose only entry is conditional compiles and cannot start."""
    builder = GraphBuilder()
    builder.add_node("a", nothing).add_conditional_edge(START, lambda state: "a", to=["a", END])
    builder.add_conditional_edge("a", lambda state: END, to=["a", END])
    builder.compile()


@pytest.mark.parametrize("node", [int, 7, None, lambda: 1, lambda a, b, c: 1, lambda a, *, needed: 1])
def test_what_is_no_node_is_refused_with_the_remedy(node: Any) -> None:
    with pytest.raises(GraphError, match=r"node 'n' (is|takes)"):
        GraphBuilder().add_node("n", node)


def test_names_retries_timeouts_and_routers_are_checked_at_the_door() -> None:
    builder = GraphBuilder()
    for name in (START, END):
        with pytest.raises(GraphError, match="own"):
            builder.add_node(name, nothing)
    with pytest.raises(GraphError, match="the name of a node: 'with space' is no id: use 1 to 128 of"):
        builder.add_node("with space", nothing)
    for retry in (-1, True, "3", 1.5):
        with pytest.raises(GraphError, match="retry="):
            builder.add_node("n", nothing, retry=retry)  # type: ignore[arg-type]
    for timeout in (0, -1, True, "3", float("nan")):
        with pytest.raises(GraphError, match="timeout="):
            builder.add_node("n", nothing, timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="router after 'n' is a int"):
        builder.add_conditional_edge("n", 7)  # type: ignore[arg-type]


def takes_nothing() -> str:
    return END


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda b: b.node("n"), r"builder.node('n'): give the name as @builder.node(name='n')"),
        (lambda b: b.node(functools.partial(nothing)), "a partial has no name of its own: builder.node(name=…)"),
        (lambda b: b.add_node("n", nothing, to=5), "node 'n': to=5: give the name of a node, or a list of names"),
        (lambda b: b.add_node("n", nothing, to=[["a"]]), "node 'n': to=[['a']]: give the name of a node"),
        (lambda b: b.add_edge("a", ["b"]), "add_edge('a', ['b']): give two names of nodes; call it once for each edge"),
        (lambda b: b.add_edge(["a"], "b"), "add_edge(['a'], 'b'): give two names"),
        (lambda b: b.add_edge("a", None), "add_edge('a', None): give two names"),
        (lambda b: b.add_conditional_edge(["a"], nothing), "add_conditional_edge(['a'], …): give the name of one node"),
        (lambda b: b.add_conditional_edge("a", nothing, to=5), "the router after 'a': to=5: give the name of a node"),
        (lambda b: b.add_conditional_edge("a", nothing, to=[["b"]]), "the router after 'a': to=[['b']]: give the"),
        (lambda b: b.add_conditional_edge("a", nothing, to={1: ["b"]}), "the router after 'a': to=dict_values("),
        (
            lambda b: b.add_conditional_edge("a", takes_nothing),
            "the router after 'a' takes () -> 'str'; it is called with (state)",
        ),
    ],
)
def test_what_is_given_wrongly_is_told_with_the_remedy(wrong: Any, words: str) -> None:
    with pytest.raises(GraphError) as caught:
        wrong(GraphBuilder())
    assert type(caught.value) is GraphError
    assert str(caught.value).startswith(words)


def test_a_string_in_to_is_one_name_and_a_decorator_may_be_used_again() -> None:
    builder = GraphBuilder()
    builder.add_node("a", nothing, to="write").add_node("write", nothing)
    builder.add_edge(START, "a").add_edge("write", END)
    builder.add_conditional_edge("write", lambda state, more=1: END, to=END)
    graph = builder.compile().graph
    assert (graph.nodes["a"].goto, graph.nodes["write"].conditional[0].to) == (("write",), (END,))
    other = GraphBuilder()
    named = other.node(name="same")
    named(nothing), named(nothing)
    assert list(other.nodes()) == ["same"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Command(goto={"b"}), "Command(goto=…) is a set; give a node, END, a Send, or a list of these"),
        (lambda: FrontierCommand("replace", "b"), "FrontierCommand('replace', 'b'): give a tuple of targets, or write"),
        (lambda: FrontierCommand("bogus", ("b",)), "FrontierCommand('bogus', …): the kind is 'append' or 'replace'"),
        (lambda: NodePartial(None), "NodePartial(NoneType): give a mapping of the keys that change, or nothing"),
        (lambda: NodePartial({}, "b"), "NodePartial(frontier=str): give a FrontierCommand"),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_refused_where_it_is_made(make: Any, words: str) -> None:
    with pytest.raises(GraphError) as caught:
        make()
    assert str(caught.value).startswith(words)


def test_a_configuration_that_is_none_is_refused() -> None:
    for give in (chain("a").compile, chain("a").with_runtime_config):
        with pytest.raises(ConfigError, match="the configuration is a dict; give a RuntimeConfig"):
            give({"step_limit": 3})  # type: ignore[arg-type]


def test_retries_are_for_a_class_or_several_and_nothing_else() -> None:
    assert Retry(on=ValueError).on is ValueError
    assert Retry(on=(ValueError, KeyError)).tries == 3
    for on in ("ValueError", [ValueError], (ValueError, "x"), int, None):
        with pytest.raises(ConfigError, match="give an exception class, or a tuple of them"):
            Retry(on=on)  # type: ignore[arg-type]


def test_where_commands_may_go_is_read_from_the_return_type_or_the_code() -> None:
    def said(state: Any) -> Command[Literal["b", "__end__"]]:
        return Command(goto="b")

    def anywhere(state: Any) -> Command:  # type: ignore[type-arg]
        return Command(goto="b")

    def partial(state: Any) -> NodePartial | None:
        return None

    def sends(state: Any) -> list[Send]:
        return []

    def bare(state):  # type: ignore[no-untyped-def]
        return Command(goto="b")

    found = {}
    for node in (said, anywhere, partial, sends, bare, nothing, functools.partial(bare)):
        builder = GraphBuilder()
        builder.add_node("n", node).add_node("b", nothing)
        found[getattr(node, "__name__", "partial of bare")] = builder._nodes["n"].goto
    assert found == {
        "said": ("b", END), "anywhere": None, "partial": None, "sends": None, "bare": None, "nothing": (),
        "partial of bare": None,
    }  # fmt: skip


def test_a_return_type_counts_though_another_annotation_is_for_type_checkers_only() -> None:
    def said(state: OnlyForTypeCheckers) -> Command[Literal["b"]]:  # type: ignore[name-defined]  # noqa: F821
        return Command(goto="b")

    assert GraphBuilder().add_node("n", said)._nodes["n"].goto == ("b",)


@pytest.mark.parametrize(
    "node",
    [
        lambda state: None,
        lambda state, /: None,
        lambda state, ctx: None,
        lambda state, ctx=None: None,
        lambda state=1, ctx=2: None,
        lambda state, ctx, more=3: None,
        lambda state, ctx, more: None,
        lambda state, *rest: None,
        lambda *rest: None,
        lambda **named: None,
        lambda: None,
        lambda *, key: None,
        lambda state, *, key: None,
        lambda state, *, key=1: None,
        lambda state, *, key=1, other: None,
        lambda state, **named: None,
    ],
)
def test_a_plain_function_is_taken_or_refused_as_its_signature_says(node: Any) -> None:
    @functools.wraps(node)
    def decorated(*args: Any, **kwargs: Any) -> Any:
        return node(*args, **kwargs)

    def plan(function: Any) -> Any:
        try:
            return GraphBuilder().add_node("n", function)._nodes["n"].takes_context
        except GraphError as exc:
            return str(exc)

    assert plan(node) == plan(decorated)


def test_the_topological_order_is_deterministic_start_first_end_last() -> None:
    builder = GraphBuilder()
    for name in ("late", "b", "a"):
        builder.add_node(name, nothing)
    builder.add_edge(START, "a").add_edge(START, "b").add_edge("a", "late").add_edge("b", "late").add_edge("late", END)
    assert builder.topological_sort() == (START, "b", "a", "late", END)
    app = builder.compile()
    assert app.graph.topological_order() == (START, "b", "a", "late", END)
    assert list(builder.nodes()) == ["late", "b", "a"]
    assert sorted(builder.edges()) == sorted(app.graph.edges())


def drawn(to: Any = None) -> Any:
    builder = chain("plan", "write")
    builder.add_node("review", nothing)
    builder.add_edge("plan", "review")
    builder.add_conditional_edge("review", lambda state: "ok", to=to or {"ok": "write", "stop": END})
    return builder.compile()


def test_the_drawings_show_conditional_edges_too() -> None:
    """Trap: the original's DOT has unconditional edges only."""
    assert drawn().to_mermaid() == (
        "flowchart TD\n"
        '    start(["start"])\n'
        '    n0["plan"]\n'
        '    n1["write"]\n'
        '    n2["review"]\n'
        '    stop(["end"])\n'
        "    start --> n0\n"
        "    n0 --> n1\n"
        "    n0 --> n2\n"
        "    n1 --> stop\n"
        '    n2 -.->|"ok"| n1\n'
        '    n2 -.->|"stop"| stop\n'
    )
    assert drawn().to_dot() == (
        'digraph "chain" {\n'
        "    rankdir=TB;\n"
        '    "__start__" [label="start", shape=oval];\n'
        '    "plan" [shape=box];\n'
        '    "write" [shape=box];\n'
        '    "review" [shape=box];\n'
        '    "__end__" [label="end", shape=oval];\n'
        '    "__start__" -> "plan";\n'
        '    "plan" -> "write";\n'
        '    "plan" -> "review";\n'
        '    "write" -> "__end__";\n'
        '    "review" -> "write" [style=dashed, label="ok"];\n'
        '    "review" -> "__end__" [style=dashed, label="stop"];\n'
        "}\n"
    )


def test_a_graph_as_ascii() -> None:
    assert drawn().to_ascii() == (
        "(start) --> plan\n"
        "plan    --> write\n"
        "        --> review\n"
        "write   --> (end)\n"
        "review  ..> write   [ok]\n"
        "        ..> (end)   [stop]\n"
    )
    label = drawn({"grün\n": "write", "stop": END}).to_ascii().splitlines()[4]
    assert label == "review  ..> write   [gr\\xfcn\\n]"


def test_answers_that_lead_to_one_node_are_all_on_its_arrow() -> None:
    app = drawn({"ok": "write", True: "write", 'a "b"\n<c>': END})
    assert '    n2 -.->|"ok, True"| n1\n    n2 -.->|"a #quot;b#quot; #lt;c#gt;"| stop\n' in app.to_mermaid()
    assert '"review" -> "write" [style=dashed, label="ok, True"];' in app.to_dot()


def test_an_app_shows_itself_in_a_notebook() -> None:
    shown = drawn()._repr_mimebundle_()
    assert shown["text/markdown"] == f"```mermaid\n{drawn().to_mermaid()}```"
    assert shown["text/plain"] == "<App 'chain' nodes=3 live=0>"


def test_the_fingerprint_does_not_depend_on_the_order_and_changes_with_the_graph() -> None:
    one = chain("a", "b").compile().metadata()
    builder = GraphBuilder(name="other")
    builder.add_edge("b", END).add_edge("a", "b").add_edge(START, "a").add_node("b", nothing).add_node("a", nothing)
    two = builder.compile().metadata()
    assert (one.fingerprint, one.nodes, one.edges, one.conditional_edges) == (two.fingerprint, 2, 3, 0)
    assert one.reducers == {"messages": "add_messages", "extra": "merge_patch", "errors": "append"}
    assert chain("a", "c").compile().metadata().fingerprint != one.fingerprint
    assert chain("a", "b").add_node("c", nothing, to="a").add_edge("a", "c").compile().metadata().fingerprint != (
        chain("a", "b").add_node("c", nothing, to="b").add_edge("a", "c").compile().metadata().fingerprint
    )
    assert drawn().metadata().fingerprint != drawn({"stop": "write", "ok": END}).metadata().fingerprint
    assert drawn().metadata().fingerprint == drawn({"stop": END, "ok": "write"}).metadata().fingerprint
    assert chain("a", "b").with_reducer("extra", max).compile().metadata().fingerprint != one.fingerprint
    script = "from tests.graph.test_builder import chain; print(chain('a','b').compile().metadata().fingerprint)"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == one.fingerprint


def test_a_long_chain_compiles() -> None:
    names = [f"n{number}" for number in range(3000)]
    assert chain(*names).compile().graph.topological_order() == (START, *names, END)
