"""LlamaIndex Workflows: steps typed by their events; a workflow of n steps is a class with n steps.

``timeout=None`` as its documentation gives for long work; ``num_workers`` for steps that run at the same time.
"""

from typing import Any

from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

NAME = "LlamaIndex Workflows"
PACKAGE = "llama-index-workflows"


class Progress(Event):
    number: int


def chain(size):
    fields = {"__annotations__": {"count": int}}
    kinds = [StartEvent, *(type(f"E{number}", (Event,), dict(fields)) for number in range(size - 1))]
    kinds.append(StopEvent)
    members = {f"n{i}": step(_node(kinds[i], kinds[i + 1], f"n{i}")) for i in range(size)}
    flow = type("Chain", (Workflow,), members)(timeout=None)

    async def call():
        assert await flow.run(count=0) == size

    return call


def _node(kind: Any, after: Any, name: str) -> Any:
    async def node(self: Any, ev: Any) -> Any:
        count = ev.count + 1
        return StopEvent(result=count) if after is StopEvent else after(count=count)

    node.__annotations__ = {"ev": kind, "return": after}
    node.__name__, node.__qualname__ = name, f"Chain.{name}"
    return node


class Again(Event):
    done: list[int]


class Loop(Workflow):
    turns = 0

    @step
    async def again(self, ev: StartEvent | Again) -> Again | StopEvent:
        done = [*(ev.done if isinstance(ev, Again) else []), 1]
        return StopEvent(result=len(done)) if len(done) >= self.turns else Again(done=done)


def loop(turns):
    flow = type("Turns", (Loop,), {"turns": turns})(timeout=None)

    async def call():
        assert await flow.run() == turns

    return call


class Task(Event):
    number: int


class Done(Event):
    number: int


def fan_out(width):
    class Wide(Workflow):
        @step
        async def split(self, ctx: Context, ev: StartEvent) -> Task | None:
            for number in range(width):
                ctx.send_event(Task(number=number))
            return None

        @step(num_workers=width)
        async def work(self, ev: Task) -> Done:
            return Done(number=ev.number)

        @step
        async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
            found = ctx.collect_events(ev, [Done] * width)
            return None if found is None else StopEvent(result=len(found))

    flow = Wide(timeout=None)

    async def call():
        assert await flow.run() == width

    return call


def burst(events):
    class Speaks(Workflow):
        @step
        async def speaks(self, ctx: Context, ev: StartEvent) -> StopEvent:
            for number in range(events):
                ctx.write_event_to_stream(Progress(number=number))
            return StopEvent(result=events)

    flow = Speaks(timeout=None)

    async def call():
        handler = flow.run()
        count = 0
        async for event in handler.stream_events():
            count += isinstance(event, Progress)
        assert await handler == count == events

    return call
