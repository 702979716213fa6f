"""LlamaIndex Workflows: events drive steps, a fan-out is collected, and the stream of events is written to."""

import asyncio

from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Ask(Event):
    part: str


class Fact(Event):
    text: str


class Progress(Event):
    message: str


class Article(Workflow):
    @step
    async def plan(self, ctx: Context, start: StartEvent) -> Ask | None:
        await ctx.store.set("topic", start.topic)
        for part in ("history", "taste"):
            ctx.send_event(Ask(part=part))

    @step(num_workers=2)
    async def research(self, ctx: Context, ask: Ask) -> Fact:
        topic = await ctx.store.get("topic")
        ctx.write_event_to_stream(Progress(message=f"research {ask.part}"))
        return Fact(text=f"{topic} {ask.part} is known")

    @step
    async def write(self, ctx: Context, fact: Fact) -> StopEvent | None:
        facts = ctx.collect_events(fact, [Fact, Fact])
        if facts is None:
            return None
        text = " ".join(f"{each.text}." for each in sorted(facts, key=lambda each: each.text))
        return StopEvent(result=text)


async def main():
    handler = Article(timeout=10).run(topic="tea")
    messages = [event.message async for event in handler.stream_events() if isinstance(event, Progress)]
    print(*sorted(messages), sep="\n")
    print(await handler)


asyncio.run(main())
