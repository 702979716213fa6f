import asyncio

from weavegraph import END, START, GraphBuilder
from weavegraph.errors import BlockingInLoopError

builder = GraphBuilder()
builder.add_node("work", lambda state: None).add_edge(START, "work").add_edge("work", END)


async def main():
    async with builder.compile() as app, app.stream({}) as run:
        try:
            for event in run.blocking():  # would stop the loop that the run needs
                print(event)
        except BlockingInLoopError as error:
            print(error)


asyncio.run(main())
