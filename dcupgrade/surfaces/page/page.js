// The status page: facts come from /api/v1, changes by server-sent events. No library, no build step.
"use strict";

const byId = (id) => document.getElementById(id);
let facts = null;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function lines(texts) {
  return texts.flatMap((text) => [document.createTextNode(text), element("br")]);
}

async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function drawMachine() {
  const answer = await fetch("/machine.svg");
  byId("machine").innerHTML = await answer.text();
}

function duration(seconds) {
  if (seconds < 90) return `${seconds.toFixed(1)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function clock(unix) {
  return new Date(unix * 1000).toLocaleString();
}

function showNow() {
  const state = facts.state;
  const target = state.target ? ` to ${state.target.version || state.target.enclave_id.slice(0, 12)}` : "";
  byId("headline").textContent = `State ${state.name}${target}, since ${clock(facts.since_unix_s)}`;
  byId("node").textContent = `Node ${facts.node_id}`;
  byId("tee").hidden = facts.tee !== "simulated";
  byId("tee").textContent = "Simulated TEE: for development only, keys are not protected by hardware.";
  byId("alarms").replaceChildren(...lines(facts.alarms.map((alarm) => `${alarm.code}: ${alarm.detail}`)));
  showHold(state.hold);
  for (const group of document.querySelectorAll("#machine g")) {
    group.classList.toggle("lit", group.dataset.state === state.name);
  }
}

// A hold with an end stays in the state until another word takes its place; after its end it holds nothing.
function showHold(hold) {
  const held = hold && !(hold.until_unix_s && hold.until_unix_s <= facts.now_unix_s);
  byId("hold").hidden = !held;
  const end = held && hold.until_unix_s ? `, until ${clock(hold.until_unix_s)}` : "";
  byId("hold").textContent = held ? `Upgrades are held by ${hold.who || "an operator"}${end}: ${hold.reason}` : "";
}

function showWork() {
  const { download, probation } = facts.progress;
  const bar = byId("work-bar");
  byId("work").hidden = !(download && facts.state.name === "staging") && !(probation && facts.state.name === "probation");
  if (facts.state.name === "staging" && download) {
    byId("work-label").textContent = "Download";
    bar.max = download.total_bytes || 1;
    bar.value = download.done_bytes || 0;
    byId("work-text").textContent = `${download.done_bytes || 0} of ${download.total_bytes || "?"} bytes`;
  } else if (facts.state.name === "probation" && probation) {
    byId("work-label").textContent = "Probation";
    bar.max = probation.whole_s || 1;
    bar.value = probation.passed_s;
    byId("work-text").textContent = `${duration(Math.max(0, probation.whole_s - probation.passed_s))} left`;
  }
}

function showReleases() {
  const rows = ["running", "target", "previous"].filter((role) => facts.state[role]).map((role) => {
    const row = element("tr");
    row.append(element("td", role), element("td", facts.state[role].version), element("td", facts.state[role].enclave_id, "id"));
    return row;
  });
  byId("releases").replaceChildren(...rows);
}

function showChain() {
  const chain = facts.chain || {};
  const rows = [["finalized block", facts.block_number], ["endpoint", chain.endpoint || "none"], ["finality", chain.finality || "?"]];
  if (chain.finalized_age_s !== undefined && chain.finalized_age_s !== null) rows.push(["age", duration(chain.finalized_age_s)]);
  if (chain.unsafe && chain.unsafe.length) rows.push(["unsafe", `${chain.unsafe.join(", ")}: what this endpoint says is believed`]);
  if (chain.problem) rows.push(["problem", chain.problem.text]);
  for (const endpoint of chain.endpoints || []) {
    rows.push([endpoint.url, `${endpoint.state}${endpoint.why ? `: ${endpoint.why}` : ""}`]);
  }
  byId("chain").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", String(value))]));
}

async function showSlow() {
  const [plan, history] = await Promise.all([get("/api/v1/plan"), get("/api/v1/history?limit=100")]);
  byId("plan").replaceChildren(...lines(plan.lines));
  let before = null;
  const rows = history.rows.map((fact) => {
    const row = element("tr");
    const lasted = before === null ? "" : duration(fact.at_unix_s - before);
    before = fact.at_unix_s;
    const cells = [clock(fact.at_unix_s), fact.from, fact.to, lasted, [fact.reason, fact.detail, fact.who && `(by ${fact.who})`].filter(Boolean).join(" ")];
    row.append(...cells.map((text) => element("td", text)));
    return row;
  });
  byId("history").replaceChildren(...rows.reverse());
}

function show() {
  showNow();
  showWork();
  showReleases();
  showChain();
}

async function refresh() {
  facts = await get("/api/v1/status");
  show();
  await showSlow();
}

function listen() {
  const source = new EventSource("/api/v1/events");
  source.addEventListener("status", (event) => { facts = JSON.parse(event.data); show(); showSlow(); });
  source.addEventListener("fact", (event) => {
    const fact = JSON.parse(event.data);
    if (fact.type === "progress" && facts) {
      facts.progress[fact.name] = fact.facts;
      showWork();
    } else {
      refresh();
    }
  });
  source.onerror = () => { byId("headline").textContent = "The agent does not answer. Trying again…"; };
}

async function act(event) {
  event.preventDefault();
  const action = event.submitter.value;
  const answer = await fetch(`/api/v1/actions/${action}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${byId("token").value}` },
    body: JSON.stringify({ reason: byId("reason").value }),
  });
  const body = await answer.json();
  byId("answer").textContent = answer.ok ? `${action}: queued (word ${body.queued})` : `${body.code}: ${body.why}`;
}

byId("actions").addEventListener("submit", act);
drawMachine().then(refresh).then(listen);
setInterval(() => { if (facts) refresh().catch(() => undefined); }, 10000);
