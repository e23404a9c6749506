// Keeps the page up to date. The server sends the sections that changed; their rows are replaced one by one, so that
// selected text and the reading position stay. Without this script the page reloads from time to time.
"use strict";

const live = document.getElementById("live");
const form = document.getElementById("filter");
const receivedHtml = new WeakMap(); // row -> its HTML as received, without ages
let source = null;
let clockOffset = Date.now() - Date.parse(live.dataset.now); // this clock minus the bridge's, in ms
let reconnectTimer = 0;

function showConnection(text, away) {
  if (live.textContent !== text) live.textContent = text; // if unchanged, a screen reader must not repeat it
  live.classList.toggle("away", away);
}

function formatDuration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const minutes = Math.floor(whole / 60), hours = Math.floor(whole / 3600), days = Math.floor(whole / 86400);
  if (whole < 60) return `${whole} s`;
  if (hours < 1) return `${minutes} min`;
  return days < 1 ? `${hours} h ${minutes % 60} min` : `${days} d ${hours % 24} h`;
}

function updateAges() {
  const now = Date.now() - clockOffset;
  for (const time of document.querySelectorAll("time")) {
    const text = formatDuration((now - Date.parse(time.dateTime)) / 1000);
    if (time.textContent !== text) time.textContent = text;
    time.title = time.dateTime;
  }
}

function rememberHtml(row) {
  if (!receivedHtml.has(row)) receivedHtml.set(row, row.outerHTML);
  return receivedHtml.get(row);
}

function replaceRows(before, after) {
  const oldRows = new Map();
  for (const row of before.rows) oldRows.set(row.dataset.key, row);
  const newRows = [];
  for (const row of after.rows) {
    const html = rememberHtml(row), old = oldRows.get(row.dataset.key);
    newRows.push(old && receivedHtml.get(old) === html ? old : row);
  }
  const kept = new Set(newRows);
  for (const row of [...before.rows]) if (!kept.has(row)) row.remove();
  newRows.forEach((row, index) => {
    if (before.rows[index] !== row) before.insertBefore(row, before.rows[index] ?? null);
  });
}

function showSection(name, html) {
  const section = document.getElementById(name);
  const part = document.createElement("template");
  part.innerHTML = html; // escaped by the server
  const before = section.querySelectorAll("tbody"), after = part.content.querySelectorAll("tbody");
  for (const body of after) for (const row of body.rows) rememberHtml(row);
  if (before.length === after.length) {
    after.forEach((body, index) => {
      replaceRows(before[index], body);
      body.replaceWith(before[index]);
    });
  }
  const focused = document.activeElement?.closest("a")?.getAttribute("href");
  const inside = section.contains(document.activeElement);
  section.replaceChildren(part.content);
  if (inside && focused) section.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

function connect() {
  clearTimeout(reconnectTimer);
  source?.close();
  const opened = source = new EventSource("/live" + location.search);
  opened.onmessage = (message) => {
    const update = JSON.parse(message.data);
    clockOffset = Date.now() - Date.parse(update.now);
    for (const [name, html] of Object.entries(update.parts)) showSection(name, html);
    updateAges();
    showConnection("Live.", false);
  };
  opened.onerror = () => {
    showConnection("Not live: the bridge doesn't answer, or has too many viewers. Trying again.", true);
    if (opened.readyState === EventSource.CLOSED) reconnectTimer = setTimeout(connect, 3000);
  };
}

function applyFilter() {
  const parameters = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value) parameters.set(name, value);
  const query = parameters.toString();
  history.replaceState(null, "", query ? `/?${query}` : "/");
  connect();
}

let typingTimer = 0;
form.addEventListener("input", () => {
  clearTimeout(typingTimer);
  typingTimer = setTimeout(() => applyFilter(), 250);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typingTimer);
  applyFilter();
});
document.addEventListener("click", (event) => {
  const link = event.target.closest("#watches nav a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  history.pushState(null, "", link.href);
  document.getElementById("watches").scrollIntoView();
  connect();
});
window.addEventListener("popstate", () => location.reload());
document.addEventListener("visibilitychange", () => {
  // The bridge reads nothing for a page that nobody sees.
  if (document.hidden) { clearTimeout(reconnectTimer); source?.close(); } else connect();
});

document.documentElement.classList.add("live");
setInterval(updateAges, 1000);
connect();
