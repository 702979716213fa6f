import os

from weavegraph import END, START, GraphBuilder
from weavegraph.errors import ForkedHubError

builder = GraphBuilder()
builder.add_node("work", lambda state: {"extra": {"done": True}}).add_edge(START, "work").add_edge("work", END)

fresh = builder.compile()  # compiled in the parent, used in the children only: works
used = builder.compile()
used.invoke_sync({})  # used in the parent: its readers and threads live there


def in_child(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    os.waitpid(child, 0)


def right():
    print("fresh:", fresh.invoke_sync({})["extra"], flush=True)


def wrong():
    try:
        used.invoke_sync({})
    except ForkedHubError as error:
        print("used:", error.code, flush=True)


in_child(right)
in_child(wrong)
used.close()
