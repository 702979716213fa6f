import asyncio

from weavegraph import END, START, GraphBuilder, RuntimeConfig
from weavegraph.checkpoint import MemoryCheckpointer

builder = GraphBuilder()


@builder.node
async def ask(state, ctx):
    answer = await ctx.interrupt("Send it?")  # runs again from its top when the answer is there
    return {"extra": {"sent": answer == "yes"}}


builder.add_edge(START, "ask").add_edge("ask", END)
app = builder.compile(RuntimeConfig(checkpointer=MemoryCheckpointer()))


async def main():
    async with app:
        run = app.start({}, session_id="mail")
        await run
        print(run.status, [question.question for question in run.questions])
        run = app.resume("mail", "yes")
        print((await run)["extra"], run.status, "attempt", run.attempt)


asyncio.run(main())
