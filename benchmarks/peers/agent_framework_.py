"""Microsoft Agent Framework: executors, edges, fan-out and fan-in groups; ``run(stream=True)`` for what they yield.

A workflow that is kept runs again and again, as its documentation shows.
"""

from typing import Never

from agent_framework import Executor, WorkflowBuilder, WorkflowContext, handler

NAME = "Agent Framework"
PACKAGE = "agent-framework-core"


class Step(Executor):
    @handler
    async def run(self, count: int, ctx: WorkflowContext[int]) -> None:
        await ctx.send_message(count + 1)


class Last(Executor):
    @handler
    async def run(self, count: int, ctx: WorkflowContext[Never, int]) -> None:
        await ctx.yield_output(count + 1)


class Join(Executor):
    @handler
    async def run(self, counts: list[int], ctx: WorkflowContext[Never, int]) -> None:
        await ctx.yield_output(len(counts))


class Again(Executor):
    def __init__(self, turns: int) -> None:
        super().__init__(id="again")
        self.turns = turns

    @handler
    async def run(self, done: list[int], ctx: WorkflowContext[list[int], list[int]]) -> None:
        done = [*done, 1]
        if len(done) >= self.turns:
            await ctx.yield_output(done)
        else:
            await ctx.send_message(done)


class Speaks(Executor):
    def __init__(self, events: int) -> None:
        super().__init__(id="speaks")
        self.events = events

    @handler
    async def run(self, count: int, ctx: WorkflowContext[Never, dict]) -> None:
        for number in range(self.events):
            await ctx.yield_output({"scope": "progress", "message": "item", "number": number})


def chain(size):
    steps = [*(Step(id=f"n{number}") for number in range(size - 1)), Last(id="last")]
    builder = WorkflowBuilder(start_executor=steps[0], max_iterations=size + 1, output_from=[steps[-1]])
    flow = builder.add_chain(steps).build()

    async def call():
        assert (await flow.run(0)).get_outputs() == [size]

    return call


def loop(turns):
    again = Again(turns)
    flow = WorkflowBuilder(start_executor=again, max_iterations=turns + 1, output_from=[again])
    flow = flow.add_edge(again, again).build()

    async def call():
        outputs = (await flow.run([])).get_outputs()
        assert len(outputs[0]) == turns

    return call


def fan_out(width):
    split, join, works = Step(id="split"), Join(id="join"), [Step(id=f"w{number}") for number in range(width)]
    builder = WorkflowBuilder(start_executor=split, output_from=[join])
    flow = builder.add_fan_out_edges(split, works).add_fan_in_edges(works, join).build()

    async def call():
        assert (await flow.run(0)).get_outputs() == [width]

    return call


def burst(events):
    speaks = Speaks(events)
    flow = WorkflowBuilder(start_executor=speaks, output_from=[speaks]).build()

    async def call():
        count = 0
        async for event in flow.run(0, stream=True):
            count += event.type == "output"
        assert count == events

    return call
