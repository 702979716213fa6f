from weavegraph import END, START, EventBusConfig, GraphBuilder, RuntimeConfig
from weavegraph.sinks import known_sinks, register_sink


class CountingSink:
    """``counting:TARGET?every=N``: the target is the first argument, options are keywords."""

    delivery = "at_most_once"

    def __init__(self, label, *, every=1):
        self.name = "counting"
        self.label, self.every, self.count = label, every, 0

    def handle(self, batch):
        self.count += len(batch)

    def close(self):
        print(f"{self.label}: {self.count // self.every} × {self.every}")


register_sink("counting", CountingSink)  # a package registers an entry point instead

builder = GraphBuilder()
builder.add_node("work", lambda state: None).add_edge(START, "work").add_edge("work", END)
print("counting" in known_sinks())
with builder.compile(RuntimeConfig(event_bus=EventBusConfig(sinks=("counting:demo?every=2",)))) as app:
    app.invoke_sync({})
