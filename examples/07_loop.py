"""Loop: improve a draft until a check is content; a limit on steps stops a loop that never is.

Expect: three rounds, then the error that an endless loop ends with, and where it happened.
"""

import asyncio
from typing import Literal, TypedDict

from weavegraph import END, START, GraphBuilder, RuntimeConfig
from weavegraph.errors import StepLimitError


class State(TypedDict, total=False):
    draft: str
    wanted: int


builder = GraphBuilder(State)


@builder.node
def improve(state: State, ctx):
    draft = state.get("draft", "") + "tea "
    ctx.emit("improve", f"step {ctx.step}: {draft!r}")
    return {"draft": draft}


def good_enough(state: State) -> Literal["improve", "__end__"]:  # what it may answer is read from its return type
    return END if state["draft"].count("tea") >= state["wanted"] else "improve"


builder.add_edge(START, "improve")
builder.add_conditional_edge("improve", good_enough)
app = builder.compile(RuntimeConfig(step_limit=10))


async def main():
    async with app:
        async with app.stream({"wanted": 3}) as run:
            async for event in run:
                if event.scope == "improve":
                    print(event.message)
            print(await run)

        try:
            await app.invoke({"wanted": 1_000_000})
        except StepLimitError as error:
            print(f"{error.code}: {error}")


asyncio.run(main())
