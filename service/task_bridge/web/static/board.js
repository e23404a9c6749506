// Keeps the page up to date: the server sends the parts that changed, whose rows are taken over one by one, so that
// what is selected or read stays. Without this script the page loads itself again now and then.
"use strict";

const live = document.getElementById("live");
const form = document.getElementById("filter");
const rows = new WeakMap(); // a row -> its HTML as it came, without ages
let source = null;
let behind = Date.now() - Date.parse(live.dataset.now); // this clock against the bridge's
let waiting = 0;

function say(text, away) {
  if (live.textContent !== text) live.textContent = text; // else a screen reader would say it again and again
  live.classList.toggle("away", away);
}

function span(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const minutes = Math.floor(whole / 60), hours = Math.floor(whole / 3600), days = Math.floor(whole / 86400);
  if (whole < 60) return `${whole} s`;
  if (hours < 1) return `${minutes} min`;
  return days < 1 ? `${hours} h ${minutes % 60} min` : `${days} d ${hours % 24} h`;
}

function ages() {
  const now = Date.now() - behind;
  for (const time of document.querySelectorAll("time")) {
    const text = span((now - Date.parse(time.dateTime)) / 1000);
    if (time.textContent !== text) time.textContent = text;
    time.title = time.dateTime;
  }
}

function taken(row) {
  if (!rows.has(row)) rows.set(row, row.outerHTML);
  return rows.get(row);
}

function replaceRows(before, after) {
  const kept = new Map();
  for (const row of before.rows) kept.set(row.dataset.key, row);
  const next = [];
  for (const row of after.rows) {
    const html = taken(row), old = kept.get(row.dataset.key);
    next.push(old && rows.get(old) === html ? old : row);
  }
  const wanted = new Set(next);
  for (const row of [...before.rows]) if (!wanted.has(row)) row.remove();
  next.forEach((row, place) => {
    if (before.rows[place] !== row) before.insertBefore(row, before.rows[place] ?? null);
  });
}

function show(name, html) {
  const section = document.getElementById(name);
  const part = document.createElement("template");
  part.innerHTML = html; // escaped by the server
  const before = section.querySelectorAll("tbody"), after = part.content.querySelectorAll("tbody");
  for (const body of after) for (const row of body.rows) taken(row);
  if (before.length === after.length) {
    after.forEach((body, place) => {
      replaceRows(before[place], body);
      body.replaceWith(before[place]);
    });
  }
  const focused = document.activeElement?.closest("a")?.getAttribute("href");
  const inside = section.contains(document.activeElement);
  section.replaceChildren(part.content);
  if (inside && focused) section.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

function connect() {
  clearTimeout(waiting);
  source?.close();
  const opened = source = new EventSource("/live" + location.search);
  opened.onmessage = (message) => {
    const told = JSON.parse(message.data);
    behind = Date.now() - Date.parse(told.now);
    for (const [name, html] of Object.entries(told.parts)) show(name, html);
    ages();
    say("Live.", false);
  };
  opened.onerror = () => {
    say("Not live: the bridge doesn't answer, or too many look. Trying again.", true);
    if (opened.readyState === EventSource.CLOSED) waiting = setTimeout(connect, 3000);
  };
}

function filter() {
  const asked = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value) asked.set(name, value);
  const query = asked.toString();
  history.replaceState(null, "", query ? `/?${query}` : "/");
  connect();
}

let typing = 0;
form.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => filter(), 250);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  filter();
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
  // Nothing is read for a page that nobody sees.
  if (document.hidden) { clearTimeout(waiting); source?.close(); } else connect();
});

document.documentElement.classList.add("live");
setInterval(ages, 1000);
connect();
