// The built-in page: plain text, no framework. What comes from a run is shown as text, never as markup.
"use strict";

const MOST = 2000; // events that stay on the page
const $ = (id) => document.getElementById(id);
let watched = null; // {id, source, last, seen, answers}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

async function ask(method, path, body) {
  const options = { method };
  if (method === "POST") {
    options.headers = { "content-type": "application/json" };
    options.body = JSON.stringify(body ?? {});
  }
  const response = await fetch(path, options);
  $("login").hidden = response.status !== 401;
  const told = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(told.error ? told.error.message : `the server said ${response.status}`);
  return told;
}

function doing(work) {
  return async (event) => {
    if (event) event.preventDefault();
    try {
      await work();
    } catch (error) {
      say(error.message, true);
    }
  };
}

// ── the list ──────────────────────────────────────────────────────────────────────────────────────

async function list(before) {
  const page = await ask("GET", before ? `runs?before=${encodeURIComponent(before)}` : "runs");
  if (!before) $("runs").replaceChildren();
  for (const run of page.runs) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${run.run_id.slice(0, 12)} ${run.status}`;
    button.title = run.started_at ? `${run.run_id}, ${run.started_at}` : run.run_id;
    button.dataset.run = run.run_id;
    button.addEventListener("click", () => show(run.run_id));
    const item = document.createElement("li");
    item.append(button);
    $("runs").append(item);
  }
  $("more").hidden = !page.next_before;
  $("more").onclick = doing(() => list(page.next_before));
  mark();
  if (!watched || !watched.source) say("ready");
}

function mark() {
  for (const button of $("runs").querySelectorAll("button")) {
    button.setAttribute("aria-current", watched !== null && button.dataset.run === watched.id);
  }
}

// ── one run ───────────────────────────────────────────────────────────────────────────────────────

function show(id) {
  if (watched && watched.source) watched.source.close();
  watched = { id, source: null, last: "0", answers: new Map() };
  location.hash = id;
  $("run").hidden = false;
  $("name").textContent = id;
  $("outcome").textContent = "";
  $("events").replaceChildren();
  $("answers").replaceChildren();
  $("questions").hidden = true;
  say("connecting");
  mark();
  watch(watched);
  doing(() => look(watched))();
}

function watch(run) {
  if (run !== watched) return;
  const source = new EventSource(`runs/${encodeURIComponent(run.id)}/events?after=${encodeURIComponent(run.last)}`);
  run.source = source;
  source.onopen = () => say("live");
  source.onerror = () => {
    if (run !== watched) return;
    if (source.readyState !== EventSource.CLOSED) return say("reconnecting", true);
    run.source = null; // 204, everything was read; or refused, for now or for good
    look(run).then(
      (told) => over(told.status) && told.last_id === run.last ? say("over") : setTimeout(() => watch(run), 1000),
      (error) => { say(error.message, true); setTimeout(() => watch(run), 2000); },
    );
  };
  for (const name of ["node", "diagnostic", "llm", "gap", "pause", "end", "broken"]) {
    source.addEventListener(name, (event) => {
      if (run !== watched) return;
      if (event.lastEventId) run.last = event.lastEventId;
      take(run, name, JSON.parse(event.data));
    });
  }
}

const over = (status) => status === "completed" || status === "failed" || status === "cancelled";

function take(run, name, event) {
  if (name === "llm") token(run, event);
  const line = document.createElement("li");
  line.className = name;
  const position = event.run_seq ? `${event.run_seq} ` : "";
  const where = event.node_id ? `[${event.node_id}] ` : "";
  line.textContent = `${position}${where}${event.scope ?? event.code} ${event.message ?? ""}`;
  if (event.run_seq) line.dataset.position = event.run_seq;
  $("events").append(line);
  while ($("events").childElementCount > MOST) $("events").firstElementChild.remove();
  if (name === "end" || name === "pause" || event.scope === "weavegraph.run.started") {
    $("outcome").textContent = name === "diagnostic" ? "running" : event.metadata.outcome;
    doing(() => look(run))();
    doing(() => list())();
  }
}

function token(run, event) {
  const key = event.stream_id ?? "";
  let text = run.answers.get(key);
  if (!text) {
    text = document.createElement("pre");
    text.dataset.stream = key;
    run.answers.set(key, text);
    $("answers").append(text);
  }
  if (event.phase === "chunk" || event.phase === "final") text.textContent += event.chunk;
}

async function look(run) {
  const told = await ask("GET", `runs/${encodeURIComponent(run.id)}`);
  if (run !== watched) return told;
  $("outcome").textContent = told.status;
  $("cancel").hidden = told.status !== "running";
  $("resume").hidden = !["interrupted", "failed", "cancelled"].includes(told.status);
  questions(told.questions ?? []);
  return told;
}

function questions(open) {
  const form = $("questions");
  form.hidden = open.length === 0;
  const known = JSON.stringify(open);
  if (form.dataset.open === known) return; // do not disturb who is typing
  form.dataset.open = known;
  form.replaceChildren();
  for (const question of open) {
    const label = document.createElement("label");
    const asked = typeof question.question === "string" ? question.question : JSON.stringify(question.question);
    label.textContent = `${question.node} asks: ${asked}`;
    const input = document.createElement("input");
    input.name = question.id;
    label.append(input);
    form.append(label);
  }
  const button = document.createElement("button");
  button.textContent = "Answer";
  form.append(button);
}

function value(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

// ── what people do ────────────────────────────────────────────────────────────────────────────────

$("start").onsubmit = doing(async () => {
  const body = { input: JSON.parse($("input").value || "{}") };
  if ($("session").value) body.session_id = $("session").value;
  const run = await ask("POST", "runs", body);
  show(run.run_id);
  await list();
});
$("refresh").onclick = doing(() => list());
$("cancel").onclick = doing(() => ask("POST", `runs/${encodeURIComponent(watched.id)}/cancel`));
$("resume").onclick = doing(async () => {
  const run = watched;
  await ask("POST", `runs/${encodeURIComponent(run.id)}/resume`);
  if (!run.source) watch(run);
});
$("questions").onsubmit = doing(async () => {
  const inputs = [...$("questions").querySelectorAll("input")];
  const answer = Object.fromEntries(inputs.map((input) => [input.name, value(input.value)]));
  await ask("POST", `runs/${encodeURIComponent(watched.id)}/answer`, { answer });
});
$("login").onsubmit = doing(async () => {
  document.cookie = `weavegraph_token=${encodeURIComponent($("token").value)}; path=/; samesite=strict`;
  await list();
});
window.onhashchange = () => {
  const id = decodeURIComponent(location.hash.slice(1));
  if (id && (!watched || watched.id !== id)) show(id);
};
doing(() => list())();
if (location.hash) window.onhashchange();
