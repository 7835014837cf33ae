// The status page: facts come from /api/v1, changes by server-sent events. No library, no build step.
"use strict";

const byId = (id) => document.getElementById(id);
const PLACES = {
  idle: [80, 60], staging: [220, 60], staged: [360, 60], collecting: [500, 60], sealed: [640, 60], stopping: [780, 60],
  launching: [780, 180], delivering: [640, 180], probation: [500, 180], committed: [360, 180],
  abandoned: [220, 180], reverting: [640, 300], reverted: [360, 300], halted: [500, 380],
};
const SVG = "http://www.w3.org/2000/svg";
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

function shape(tag, attributes, parent) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent.append(made);
  return made;
}

async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function drawMachine() {
  const { states, edges } = await get("/api/v1/machine");
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 870 430");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Upgrade machine with the states ${states.join(", ")}`);
  const defs = shape("defs", {}, svg);
  const marker = shape("marker", { id: "tip", viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, defs);
  shape("path", { d: "M0 0 L8 4 L0 8 z" }, marker);
  const drawn = new Set();
  for (const edge of edges) {
    const key = `${edge.from}>${edge.to}`;
    if (edge.from === edge.to || drawn.has(key) || !PLACES[edge.from] || !PLACES[edge.to]) continue;
    drawn.add(key);
    const path = shape("path", { d: curve(PLACES[edge.from], PLACES[edge.to]), "marker-end": "url(#tip)" }, svg);
    shape("title", {}, path).textContent = `${edge.from} to ${edge.to}: ${edge.on}`;
  }
  for (const name of states) {
    const [x, y] = PLACES[name] || [80, 400];
    const group = shape("g", { "data-state": name }, svg);
    shape("rect", { x: x - 52, y: y - 18, width: 104, height: 36, rx: 8 }, group);
    shape("text", { x, y }, group).textContent = name;
  }
  byId("machine").replaceChildren(svg);
}

function curve([x1, y1], [x2, y2]) {
  const [dx, dy] = [x2 - x1, y2 - y1];
  const reach = Math.min(Math.abs(dx) ? 54 / Math.abs(dx) : 9, Math.abs(dy) ? 20 / Math.abs(dy) : 9);
  const [sx, sy, ex, ey] = [x1 + dx * reach, y1 + dy * reach, x2 - dx * reach, y2 - dy * reach];
  const bend = Math.abs(dx) > 150 && dy === 0 ? 34 : 0;
  return `M${sx} ${sy} Q${(sx + ex) / 2 - dy * 0.06} ${(sy + ey) / 2 + dx * 0.06 + bend} ${ex} ${ey}`;
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
  byId("hold").hidden = !state.hold;
  byId("hold").textContent = state.hold ? `Upgrades are held by ${state.hold.who || "an operator"}: ${state.hold.reason}` : "";
  for (const group of document.querySelectorAll("#machine g")) {
    group.classList.toggle("lit", group.dataset.state === state.name);
  }
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
    const cells = [clock(fact.at_unix_s), fact.from, fact.to, lasted, `${fact.reason} ${fact.detail}`.trim()];
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
