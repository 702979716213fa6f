"""Step 1: one node that answers."""

from typing import TypedDict

from weavegraph import END, START, GraphBuilder


class State(TypedDict, total=False):
    question: str
    answer: str


builder = GraphBuilder(State, name="helpdesk")


@builder.node
def answer(state: State):
    return {"answer": f"You asked: {state['question']}"}


builder.add_edge(START, "answer").add_edge("answer", END)

if __name__ == "__main__":
    with builder.compile() as app:
        print(app.invoke_sync({"question": "Where is my parcel?"})["answer"])
