from typing import TypedDict

from weavegraph import END, START, GraphBuilder
from weavegraph.errors import StateError


class State(TypedDict, total=False):
    notes: list[str]


one = GraphBuilder(State)


@one.node
def write(state: State):
    state["notes"].append("lost")  # the node's own copy: nobody else sees this


one.add_edge(START, "write").add_edge("write", END)
with one.compile() as app:
    print(app.invoke_sync({"notes": ["kept"]}))

two = GraphBuilder(State)
two.add_node("left", lambda state: {"notes": ["left"]})
two.add_node("right", lambda state: {"notes": ["right"]})
two.add_edge(START, "left").add_edge(START, "right").add_edge("left", END).add_edge("right", END)
with two.compile() as app:
    try:
        app.invoke_sync({})
    except StateError as error:
        print(error)
