from weavegraph import EventHub, node_message


def frame(event):
    position = f"id: {event.run_seq or event.seq}\n" if event.seq else ""  # a gap notice has no position
    return f"{position}event: {event.scope}\ndata: ".encode() + event.to_json() + b"\n\n"


with EventHub() as hub:
    reader = hub.subscribe()
    hub.publish(node_message("draft", "two\nlines", words=2))
    text = frame(reader.try_recv()).decode()
    print(text.splitlines()[:2], text.count("\n"))  # JSON escapes the line break: the data is one line
