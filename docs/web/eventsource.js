// Watch a run: each event once and in order, whatever breaks in between. `over` is called when nothing follows.
function watch(id, each, over) {
  const names = ["node", "diagnostic", "llm", "pause", "end", "gap"];
  let last = "0"; // before the first event; afterwards the id of the last one

  function open() {
    const source = new EventSource(`runs/${id}/events?after=${last}`);
    for (const name of names) {
      source.addEventListener(name, (frame) => {
        if (frame.lastEventId) last = frame.lastEventId;
        each(JSON.parse(frame.data), name);
      });
    }
    source.onerror = async () => {
      if (source.readyState !== EventSource.CLOSED) return; // the browser comes back by itself, to where it was
      const answer = await fetch(`runs/${id}`).catch(() => null); // it gave up: 204 at the end, or 4xx, 5xx
      const run = answer && answer.ok ? await answer.json() : {};
      const ended = ["completed", "failed", "cancelled"].includes(run.status);
      if (ended && run.last_id === last) over(run.status);
      else setTimeout(open, 1000);
    };
  }
  open();
}
