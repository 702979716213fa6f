from weavegraph import END, START, GraphBuilder

builder = GraphBuilder()


@builder.node
def work(state, ctx):
    for word in ("one", "two", "three"):
        ctx.emit("work", word)


builder.add_edge(START, "work").add_edge("work", END)

with builder.compile() as app:
    app.invoke_sync({}, run_id="r1")
    with app.event_stream(run_id="r1", after=4) as events:  # strictly after position 4 of that run
        print([(event.run_seq, event.message) for event in events.blocking()][:2])
    with app.event_stream(after=0) as everything:  # positions of the whole bus
        print(everything.try_recv().seq, everything.lag)
