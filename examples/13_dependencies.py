"""Dependency injection: what nodes need that is no state (clients, pools, settings) is given at the start of a run.

Expect: one graph run with a real-looking client, then with a fake, as a test would. The state holds data only.
"""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from weavegraph import END, START, GraphBuilder, NodeContext


class Weather(Protocol):
    async def today(self, place: str) -> str: ...


@dataclass
class Deps:
    weather: Weather
    locale: str = "en"


@dataclass
class State:  # a dataclass this time: nodes are given instances of it, and invoke returns one
    place: str
    report: str = ""


builder = GraphBuilder(State)


@builder.node
async def look(state: State, ctx: NodeContext[State, Deps]):  # gives ctx.deps its type
    report = await ctx.deps.weather.today(state.place)
    ctx.emit("look", f"asked for {state.place}", locale=ctx.deps.locale)
    return {"report": report}


builder.add_edge(START, "look").add_edge("look", END)
app = builder.compile()


class Station:
    """Stands for a client with a connection: made once, used by all runs, closed by whoever made it."""

    async def __aenter__(self):
        print("connected")
        return self

    async def __aexit__(self, *exc):
        print("closed")

    async def today(self, place):
        return f"rain in {place}"


class FakeWeather:
    async def today(self, place):
        return "sun, always"


async def main():
    async with app, Station() as station:
        print(await app.invoke({"place": "Oslo"}, deps=Deps(station)))
        print(await app.invoke(State(place="Oslo"), deps=Deps(FakeWeather())))


asyncio.run(main())
