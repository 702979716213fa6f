import threading

from weavegraph import END, START, GraphBuilder

builder = GraphBuilder()


@builder.node
def work(state, ctx):  # a sync node: it runs on a thread
    def helper(number):
        ctx.emit("helper", f"from thread {number}")  # ctx is an object: no context variable, no copied context

    threads = [threading.Thread(target=helper, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


builder.add_edge(START, "work").add_edge("work", END)

with builder.compile() as app, app.stream_sync({}) as run:
    print(sorted(event.message for event in run.blocking() if event.scope == "helper"))
