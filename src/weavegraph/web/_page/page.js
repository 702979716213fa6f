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
    const time = run.started_at ? ` ${new Date(run.started_at).toLocaleTimeString()}` : "";
    button.textContent = `${run.run_id.slice(0, 12)}${time} ${run.status}`;
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
  $("questions").hidden = $("error").hidden = $("state").hidden = true;
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
  if (name === "node" && Object.keys(event.metadata ?? {}).length) {
    const more = document.createElement("span");
    more.className = "metadata";
    more.textContent = ` ${JSON.stringify(event.metadata)}`;
    line.append(more);
  }
  if (event.run_seq) line.dataset.position = event.run_seq;
  const lines = $("events");
  const follows = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 40; // who scrolled up is left alone
  lines.append(line);
  while (lines.childElementCount > MOST) lines.firstElementChild.remove();
  if (follows) lines.scrollTop = lines.scrollHeight;
  if (name === "end" || name === "pause" || event.scope === "weavegraph.run.started") {
    $("outcome").textContent = name === "diagnostic" ? "running" : event.metadata.outcome;
    text("error", name === "diagnostic" ? "" : event.metadata.error);
    doing(() => look(run))();
    doing(() => list())();
  }
}

function token(run, event) {
  const key = event.stream_id ?? "";
  let answer = run.answers.get(key);
  if (!answer) {
    const head = document.createElement("h3");
    head.textContent = [event.node_id, event.attempt > 1 ? `attempt ${event.attempt}` : ""].filter(Boolean).join(", ");
    const body = document.createElement("pre");
    body.dataset.stream = key;
    answer = { head, body };
    run.answers.set(key, answer);
    $("answers").append(head, body);
  }
  if (event.phase === "chunk" || event.phase === "final") answer.body.textContent += event.chunk;
  else answer.head.textContent += event.phase === "error" ? ", failed" : ", cut off";
}

function text(id, value) {
  $(id).textContent = value ?? "";
  $(id).hidden = !value;
}

async function look(run) {
  const told = await ask("GET", `runs/${encodeURIComponent(run.id)}`);
  if (run !== watched) return told;
  $("outcome").textContent = told.status;
  $("cancel").hidden = told.status !== "running";
  $("resume").hidden = !["interrupted", "failed", "cancelled"].includes(told.status);
  text("state", told.state ? JSON.stringify(told.state, null, 2) : "");
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
    label.textContent = `${question.node} asks: ${wording(question.question)}`;
    const input = document.createElement("input");
    input.name = question.id;
    label.append(input);
    form.append(label);
  }
  const button = document.createElement("button");
  button.textContent = "Answer";
  form.append(button);
}

function wording(question) {
  if (typeof question === "string") return question;
  if (question === null || typeof question !== "object" || typeof question.question !== "string") {
    return JSON.stringify(question);
  }
  const { question: asked, ...rest } = question;
  return Object.keys(rest).length ? `${asked} ${JSON.stringify(rest)}` : asked;
}

function value(typed) {
  try {
    return JSON.parse(typed);
  } catch {
    return typed;
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
$("tokens").onchange = () => $("events").classList.toggle("no-tokens", !$("tokens").checked);
$("own").onchange = () => $("events").classList.toggle("no-own", !$("own").checked);
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
