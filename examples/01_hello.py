"""Hello, graph: two nodes, one edge between them, and the state at the end.

Expect: the final state. Nothing else is printed, because a library does not print.
"""

from typing import TypedDict

from weavegraph import END, START, GraphBuilder


class State(TypedDict, total=False):
    name: str
    greeting: str


builder = GraphBuilder(State)


@builder.node
def greet(state: State):
    return {"greeting": f"Hello, {state['name']}"}  # a node returns what it changes, nothing more


@builder.node
def shout(state: State):
    return {"greeting": state["greeting"].upper() + "!"}


builder.add_edge(START, "greet").add_edge("greet", "shout").add_edge("shout", END)
app = builder.compile()  # checks everything and names every fault; starts nothing

if __name__ == "__main__":
    with app:
        print(app.invoke_sync({"name": "graph"}))
