"""pydantic-graph: ``GraphBuilder`` with steps, ``broadcast`` and a ``join`` with a reducer. It has no custom events."""

from dataclasses import dataclass, field
from typing import Any

from pydantic_graph import GraphBuilder, StepContext
from pydantic_graph.join import reduce_list_append

NAME = "pydantic-graph"
PACKAGE = "pydantic-graph"


@dataclass
class Counter:
    count: int = 0


@dataclass
class Log:
    done: list[int] = field(default_factory=list)


def chain(size):
    builder = GraphBuilder(state_type=Counter, input_type=type(None), output_type=type(None))

    async def step(ctx: StepContext[Counter, None, None]) -> None:
        ctx.state.count += 1

    steps = [builder.step(step, node_id=f"n{number}") for number in range(size)]
    for source, target in zip([builder.start_node, *steps], [*steps, builder.end_node], strict=True):
        builder.add(builder.edge_from(source).to(target))
    graph = builder.build()

    async def call():
        state = Counter()
        await graph.run(state=state, inputs=None)
        assert state.count == size

    return call


def loop(turns):
    builder = GraphBuilder(state_type=Log, input_type=Any, output_type=Any)

    @builder.step
    async def again(ctx: StepContext[Log, None, Any]) -> str:
        ctx.state.done.append(1)
        return "end" if len(ctx.state.done) >= turns else "again"

    builder.add(
        builder.edge_from(builder.start_node).to(again),
        builder.edge_from(again).to(
            builder.decision()
            .branch(builder.match(Any, matches=lambda answer: answer == "again").to(again))
            .branch(builder.match(Any, matches=lambda answer: answer == "end").to(builder.end_node))
        ),
    )
    graph = builder.build()

    async def call():
        state = Log()
        await graph.run(state=state, inputs=None)
        assert len(state.done) == turns

    return call


def fan_out(width):
    builder = GraphBuilder(state_type=Log, input_type=int, output_type=list[int])

    @builder.step
    async def split(ctx: StepContext[Log, None, int]) -> int:
        return 1

    async def work(ctx: StepContext[Log, None, int]) -> int:
        return ctx.inputs

    works = [builder.step(work, node_id=f"w{number}") for number in range(width)]
    join = builder.join(reduce_list_append, initial_factory=list[int])
    builder.add(
        builder.edge_from(builder.start_node).to(split),
        builder.edge_from(split).to(*works),
        builder.edge_from(*works).to(join),
        builder.edge_from(join).to(builder.end_node),
    )
    graph = builder.build()

    async def call():
        assert len(await graph.run(state=Log(), inputs=0)) == width

    return call
