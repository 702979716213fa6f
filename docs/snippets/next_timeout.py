import time

from weavegraph import END, START, EndOfStream, GraphBuilder

builder = GraphBuilder()


@builder.node
def slow(state, ctx):
    ctx.emit("slow", "started")
    while not ctx.cancelled:  # a sync node cannot be cut off: it looks
        time.sleep(0.01)


builder.add_edge(START, "slow").add_edge("slow", END)

with builder.compile() as app, app.stream_sync({}) as run:
    events = run.blocking()
    quiet = 0
    while True:
        try:
            event = events.next_timeout(0.05)
        except EndOfStream:  # the end, and only the end
            break
        if event is None:  # nothing came within 0.05 s; nothing is lost, ask again
            quiet += 1
            if quiet == 3:
                run.cancel("nothing happened for too long")
        else:
            quiet = 0
    print(run.status)
