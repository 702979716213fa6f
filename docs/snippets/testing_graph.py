"""A graph under test: a fake model through deps, fixed ids and time, and events compared as plain values."""

from datetime import UTC, datetime

from weavegraph import END, START, GraphBuilder, RuntimeConfig

builder = GraphBuilder()


@builder.node
async def answer(state, ctx):
    reply = await ctx.stream_llm(ctx.deps(state["messages"][-1].content), stream_id="answer")
    return {"messages": [("assistant", reply.text)]}


builder.add_edge(START, "answer").add_edge("answer", END)


class StillClock:
    def now(self):
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self):
        return 0.0


def test_the_answer_is_streamed():
    app = builder.compile(RuntimeConfig(clock=StillClock(), ids=lambda kind: f"{kind}-1"))
    with app, app.stream_sync({"messages": [("user", "tea?")]}, deps=lambda text: ["yes ", text]) as run:
        said = [event for event in run.blocking() if event.scope == "llm_stream"]
        state = run.result()
    assert [(event.index, event.phase, event.chunk) for event in said] == [
        (0, "chunk", "yes "),
        (1, "chunk", "tea?"),
        (2, "final", ""),
    ]
    assert state["messages"][-1].content == "yes tea?"
    assert (run.run_id, said[0].timestamp.year) == ("run-1", 2026)  # the same on every machine


if __name__ == "__main__":
    test_the_answer_is_streamed()
    print("passed")
