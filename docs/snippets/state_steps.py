from weavegraph import END, START, GraphBuilder

builder = GraphBuilder()
for name in ("a", "b", "c", "d"):
    builder.add_node(name, lambda state: None)
builder.add_edge(START, "a").add_edge("a", "b").add_edge("a", "c")
builder.add_edge("b", "d").add_edge("c", "d").add_edge("d", END)

with builder.compile() as app, app.stream_sync({}) as run:
    for event in run.blocking():
        if event.scope == "weavegraph.step.started":
            print(event.message)
