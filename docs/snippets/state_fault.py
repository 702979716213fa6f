from weavegraph import END, START, CompileError, GraphBuilder

builder = GraphBuilder()
builder.add_node("draft", lambda state: None)
builder.add_node("forgotten", lambda state: None)
builder.add_edge(START, "draft").add_edge("draft", "reveiw").add_edge("forgotten", END)

try:
    builder.compile()
except CompileError as error:
    print(error)
