from typing import Annotated, TypedDict

from weavegraph import END, START, GraphBuilder
from weavegraph.state import append


class State(TypedDict, total=False):
    notes: Annotated[list[str], append]  # how two updates of one key are merged


builder = GraphBuilder(State)
builder.add_node("left", lambda state: {"notes": ["left"]})  # what it changes, nothing more
builder.add_node("right", lambda state: {"notes": ["right"]})
builder.add_edge(START, "left").add_edge(START, "right").add_edge("left", END).add_edge("right", END)

with builder.compile() as app:
    print(app.invoke_sync({"notes": ["kept"]}))  # merged in the order of registration
