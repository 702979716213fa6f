"""A custom sink: any object with handle(batch). It is retried, and an event that it cannot take is put aside.

Expect: the batches' content, one dead letter after the last try, and that the run did not notice.
"""

import asyncio

from weavegraph import END, START, EventBusConfig, GraphBuilder, RuntimeConfig
from weavegraph.errors import PermanentSinkError


class Statistics:
    """Counts the node's events, as a database would be fed. A plain ``handle`` runs on a thread of the sink's own."""

    name = "statistics"
    delivery = "at_least_once"  # retried with backoff; "at_most_once" is not

    def __init__(self):
        self.seen = []

    def start(self):
        self.connected = True  # before the first batch: connect here, not in __init__

    def handle(self, batch):
        for event in batch:
            if event.metadata.get("poison"):
                raise PermanentSinkError("cannot store this")  # not tried again; any other exception is
            if event.scope == "work" and event.message not in self.seen:  # at least once: be ready for a second time
                self.seen.append(event.message)

    def close(self):
        self.connected = False  # after the last batch


builder = GraphBuilder()


@builder.node
def work(state, ctx):
    ctx.emit("work", "one")
    ctx.emit("work", "two", poison=True)
    ctx.emit("work", "three")
    return {"extra": {"done": True}}


builder.add_edge(START, "work").add_edge("work", END)


async def main():
    sink = Statistics()
    app = builder.compile(RuntimeConfig(event_bus=EventBusConfig(sinks=(sink,))))
    async with app:
        state = await app.invoke({})
        print("run:", state["extra"])

        report = await app.event_bus.flush()  # every sink has handled everything emitted so far
        print("flushed:", report.flushed)
        print("seen:", sink.seen)
        for letter in app.event_bus.dead_letters():
            print(f"dead letter of {letter.sink!r}: {letter.event.message!r}, {letter.error}")
        (health,) = app.event_bus.sink_health()
        print("dead-lettered:", health.stats.dead_lettered, "unaccounted:", health.stats.unaccounted)
    print("connected after the end:", sink.connected)


asyncio.run(main())
