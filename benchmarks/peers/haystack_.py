"""Haystack: components of a ``Pipeline``, run with ``run_async``; ``stream`` for what a component says."""

from typing import Any

from haystack import Pipeline, component
from haystack.core.component.types import Variadic
from haystack.dataclasses import StreamingChunk

NAME = "Haystack"
PACKAGE = "haystack-ai"


@component
class Step:
    @component.output_types(count=int)
    def run(self, count: int) -> dict[str, Any]:
        return {"count": count + 1}

    @component.output_types(count=int)
    async def run_async(self, count: int) -> dict[str, Any]:
        return {"count": count + 1}


@component
class Join:
    @component.output_types(done=list)
    def run(self, items: Variadic[int]) -> dict[str, Any]:
        return {"done": list(items)}

    @component.output_types(done=list)
    async def run_async(self, items: Variadic[int]) -> dict[str, Any]:
        return {"done": list(items)}


@component
class Speaks:
    def __init__(self, events: int) -> None:
        self.events = events

    @component.output_types(count=int)
    def run(self, count: int, streaming_callback: Any = None) -> dict[str, Any]:
        raise NotImplementedError  # Haystack wants a component to have both; an async pipeline calls the one below

    @component.output_types(count=int)
    async def run_async(self, count: int, streaming_callback: Any = None) -> dict[str, Any]:
        for number in range(self.events):
            await streaming_callback(StreamingChunk("item", meta={"number": number}))
        return {"count": count}


def chain(size):
    pipeline = Pipeline()
    for number in range(size):
        pipeline.add_component(f"n{number}", Step())
    for number in range(size - 1):
        pipeline.connect(f"n{number}.count", f"n{number + 1}.count")

    async def call():
        result = await pipeline.run_async({"n0": {"count": 0}})
        assert result[f"n{size - 1}"]["count"] == size

    return call


def fan_out(width):
    pipeline = Pipeline()
    pipeline.add_component("split", Step())
    pipeline.add_component("join", Join())
    for number in range(width):
        pipeline.add_component(f"w{number}", Step())
        pipeline.connect("split.count", f"w{number}.count")
        pipeline.connect(f"w{number}.count", "join.items")

    async def call():
        result = await pipeline.run_async({"split": {"count": 0}}, concurrency_limit=width)
        assert len(result["join"]["done"]) == width

    return call


def burst(events):
    pipeline = Pipeline()
    pipeline.add_component("speaks", Speaks(events))

    async def call():
        count = 0
        async for _ in pipeline.stream({"speaks": {"count": 1}}):
            count += 1
        assert count == events

    return call
