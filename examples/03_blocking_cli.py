"""A command line that blocks: no async anywhere, a spinner while nothing happens, Ctrl-C cancels the run.

Expect: the node's lines, "still working" where it is silent for a while, and the answer.
"""

import threading

from weavegraph import END, START, EndOfStream, GraphBuilder

builder = GraphBuilder()
noticed = threading.Event()


@builder.node
def compute(state, ctx):  # a sync node runs on a thread of its own
    ctx.emit("compute", "started")
    noticed.wait(10)  # stands for work that takes a while: here until the user was told so
    ctx.emit("compute", "done")
    return {"extra": {"answer": 42}}


builder.add_edge(START, "compute").add_edge("compute", END)
app = builder.compile()


def main():
    with app, app.stream_sync({}) as run:  # leaving the block early, also by Ctrl-C, cancels the run
        events, working = run.blocking(), False
        while True:
            try:
                event = events.next_timeout(0.2)
            except EndOfStream:  # the end is never None: None means "nothing yet"
                break
            if event is None:
                if working and not noticed.is_set():
                    print("still working …")
                    noticed.set()
            elif event.scope == "compute":
                print(event.message)
                working = True
        print("answer:", run.result()["extra"]["answer"])


if __name__ == "__main__":
    main()
