// Keeps the page up to date: when something happens, the page is fetched again and its live parts are exchanged.
// No library, no build step. Without this script the page can be read, and reloads itself.
"use strict";

const REFRESH_PAUSE_MS = 500;
const REFRESH_EVERY_MS = 10000;
const OUTCOME_TRIES = 25;
const OUTCOME_PAUSE_MS = 200;
const byId = (id) => document.getElementById(id);
const shown = new Map();
let waiting = null;

// --- live parts ---

function exchange(fresh) {
  const old = byId(fresh.id);
  if (!old || shown.get(fresh.id) === fresh.innerHTML) return;
  shown.set(fresh.id, fresh.innerHTML);
  const open = [...old.querySelectorAll("details[open]")].map((one) => one.id);
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  const path = focused && pathOf(focused, old);
  old.replaceChildren(...fresh.childNodes);
  for (const id of open) if (byId(id)) byId(id).open = true;
  if (path) elementAt(path, old)?.focus();
}

// Where an element is in a part, so that the one in its place gets the focus after an exchange.
function pathOf(element, part) {
  const path = [];
  for (let one = element; one !== part; one = one.parentElement) path.unshift([...one.parentElement.children].indexOf(one));
  return path;
}

function elementAt(path, part) {
  return path.reduce((one, index) => one?.children[index], part);
}

async function refresh() {
  try {
    const answer = await fetch("/");
    if (!answer.ok) throw new Error(answer.status);
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = next.title;
    byId("icon").href = next.getElementById("icon").getAttribute("href");
    next.querySelectorAll("[data-live]").forEach(exchange);
    byId("lost").hidden = true;
  } catch {
    byId("lost").hidden = false;
  }
}

function refreshSoon() {
  waiting ??= setTimeout(() => { waiting = null; refresh(); }, REFRESH_PAUSE_MS);
}

// --- the rate of a download, as a line ---

let samples = [];

function sample(facts, at) {
  const last = samples.at(-1);
  if (last && facts.done_bytes < last.bytes) samples = [];
  samples.push({ at, bytes: facts.done_bytes || 0 });
  samples = samples.slice(-121);
  const rates = samples.slice(1).map((one, i) => (one.bytes - samples[i].bytes) / Math.max(0.001, one.at - samples[i].at));
  if (rates.length < 2) return;
  const most = Math.max(1, ...rates);
  const points = rates.map((rate, i) => `${(16 + (568 * i) / (rates.length - 1)).toFixed(1)},${(104 - (88 * rate) / most).toFixed(1)}`);
  byId("rate-line").setAttribute("points", points.join(" "));
  byId("rate-text").textContent = `Download rate: ${(rates.at(-1) / 1e6).toFixed(1)} MB/s, at most ${(most / 1e6).toFixed(1)} MB/s`;
  byId("rate").hidden = false;
}

// --- events ---

function listen() {
  const source = new EventSource("/api/v1/events");
  source.addEventListener("status", refreshSoon);
  source.addEventListener("fact", (event) => {
    const fact = JSON.parse(event.data);
    if (fact.type === "progress" && fact.name === "download") sample(fact.facts, fact.at_unix_s);
    if (fact.type === "state" && fact.from === "staging") { byId("rate").hidden = true; samples = []; }
    refreshSoon();
  });
  source.onerror = () => { byId("lost").hidden = false; };
}

// --- what a person does ---

const QUESTIONS = {
  revert: "Stop the node and go back to the previous version?",
  override: "Open all gates for this release now?",
};

async function act(event) {
  event.preventDefault();
  const action = event.submitter.value;
  if (QUESTIONS[action] && !window.confirm(QUESTIONS[action])) return;
  const body = { reason: byId("reason").value };
  const hours = Number(byId("hours").value);
  if (action === "hold" && hours) body.until_unix_s = Date.now() / 1000 + hours * 3600;
  const answer = await fetch(`/api/v1/actions/${action}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${byId("token").value}` },
    body: JSON.stringify(body),
  });
  const told = await answer.json();
  byId("answer").textContent = answer.ok ? `${action}: ${await outcome(told.queued)}` : `${told.code}: ${told.why}`;
  refreshSoon();
}

// What came of a command; the agent takes one up within a moment.
async function outcome(number) {
  for (let tries = 0; tries < OUTCOME_TRIES; tries += 1) {
    const answer = await (await fetch(`/api/v1/commands/${number}`)).json();
    if (answer.outcome) return answer.outcome.accepted ? answer.outcome.text : `refused: ${answer.outcome.code} ${answer.outcome.text}`;
    await new Promise((done) => { setTimeout(done, OUTCOME_PAUSE_MS); });
  }
  return `queued as command ${number}`;
}

async function copy(event) {
  const button = event.target.closest("button.copy");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copy);
  button.textContent = "copied";
  setTimeout(() => { button.textContent = "copy"; }, 1500);
}

byId("actions").addEventListener("submit", act);
document.addEventListener("click", copy);
document.querySelectorAll("[data-live]").forEach((part) => shown.set(part.id, part.innerHTML));
listen();
setInterval(refreshSoon, REFRESH_EVERY_MS);
