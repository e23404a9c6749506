// Keeps the pages up to date. The server sends the sections of the board that changed; their rows are replaced one by
// one, so that selected text and the reading position stay. The page of a task is fetched again. Without this script the
// pages reload from time to time.
"use strict";

const live = document.getElementById("live");
const form = document.getElementById("filter");
const receivedHtml = new WeakMap(); // row -> its HTML as received, without ages
const SILENCE_MS = 40_000; // the bridge says something every 15 s
let source = null;
let shownView = location.search;
let lastMessage = Date.now();
let clockOffset = Date.now() - Date.parse(live.dataset.now); // this clock minus the bridge's, in ms
let reconnectTimer = 0;

function showConnection(text, away) {
  if (live.textContent !== text) live.textContent = text; // if unchanged, a screen reader must not repeat it
  live.classList.toggle("away", away);
  for (const row of document.querySelectorAll("main tbody tr, #summary")) markStale(row, away);
}

// A row that the bridge has marked itself stays marked.
function markStale(row, away) {
  const mark = row.querySelector(".stale");
  if (!away) return row.querySelector("[data-by-script]")?.remove();
  const cell = row.querySelector("td > div, dd");
  if (mark || !cell) return;
  const added = document.createElement("span");
  added.dataset.byScript = "";
  added.innerHTML = '<span class="stale">stale</span> '; // as `stale_mark` writes it
  cell.prepend(added);
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
    if (time.dataset.local) continue;
    const local = time.dataset.local = new Date(time.dateTime).toLocaleString();
    time.title = `${time.dateTime.replace("T", " ").replace(/\.\d+Z$/, " UTC")}, here ${local}`;
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
  const focused = section.contains(document.activeElement) ? document.activeElement : null;
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
  const navigation = focused?.closest("nav")?.ariaLabel;
  section.replaceChildren(part.content);
  if (focused) (section.contains(focused) ? focused : findAgain(section, focused, navigation))?.focus();
}

// A link to another view changes with the view, and one to a page that doesn't exist goes.
function findAgain(section, focused, navigation) {
  const inNavigation = [...section.querySelectorAll("a")].filter((link) => link.closest("nav")?.ariaLabel === navigation);
  const isSame = (link) => link.dataset.focus === focused.dataset.focus;
  return inNavigation.find(focused.dataset.focus ? isSame : (link) => link.href === focused.href)
    ?? (navigation && inNavigation[0]);
}

function connect() {
  clearTimeout(reconnectTimer);
  source?.close();
  lastMessage = Date.now();
  shownView = location.search;
  for (const link of document.querySelectorAll("[data-export]")) link.href = link.dataset.export + location.search;
  const opened = source = new EventSource("/live" + location.search);
  opened.onmessage = (message) => {
    const update = JSON.parse(message.data);
    lastMessage = Date.now();
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

function reconnectAfterSilence() {
  if (document.hidden || Date.now() - lastMessage < SILENCE_MS) return;
  showConnection("Not live: the bridge is silent. Trying again.", true);
  connect();
}

// The address holds the view: what the form doesn't show of it stays.
function applyFilter(changed) {
  const parameters = new URLSearchParams(location.search);
  if (changed.name !== "page") form.elements.page.value = 1;
  parameters.delete("page");
  parameters.set(changed.name, changed.value);
  if (parameters.get("page") === "1") parameters.delete("page");
  for (const [name, value] of [...parameters]) if (!value) parameters.delete(name);
  const query = parameters.toString();
  history.replaceState(null, "", query ? `/?${query}` : "/");
  connect();
}

function openView(link) {
  history.pushState(null, "", link.href);
  const parameters = new URLSearchParams(location.search);
  form.elements.page.value = parameters.get("page") ?? 1;
  const sort = form.elements.sort, chosen = parameters.get("sort") ?? "";
  if (![...sort.options].some((option) => option.value === chosen)) sort.add(new Option("by column", chosen));
  sort.value = chosen;
  connect();
}

function startBoard() {
  let typingTimer = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(typingTimer);
    typingTimer = setTimeout(() => applyFilter(event.target), 250);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(typingTimer);
    const field = document.activeElement;
    applyFilter(field?.form === form && field.name ? field : form.elements.q);
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest('section a[href^="/?"]');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    openView(link);
    const part = link.hash.slice(1) || (link.rel && "watches");
    if (part) document.getElementById(part).scrollIntoView();
  });
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest?.("input, select, textarea");
    if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    form.elements.q.focus();
    form.elements.q.select();
  });
  window.addEventListener("popstate", () => {
    if (location.search !== shownView) location.reload(); // not for a link to a part of the page
  });
  document.addEventListener("visibilitychange", () => {
    // The bridge reads nothing for a page that nobody sees.
    if (document.hidden) { clearTimeout(reconnectTimer); source?.close(); } else connect();
  });
  setInterval(reconnectAfterSilence, 5000);
  connect();
}

// Returns whether more can come.
async function fetchTask() {
  const main = document.querySelector("main");
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(10_000) });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html"); // escaped by the server
    const found = page.querySelector("main");
    if (!found) throw new Error(answer.statusText);
    if (answer.status === 503 && main.querySelector("#timeline")) throw new Error("not read"); // what was known stays
    clockOffset = Date.now() - Date.parse(page.getElementById("live").dataset.now);
    const isSelecting = !getSelection().isCollapsed; // a replaced text would lose its selection
    if (!isSelecting && withoutAges(found) !== withoutAges(main)) replaceMain(main, found);
    document.title = page.title; // the target's name comes after the first status
    updateAges();
    showConnection("Live.", false);
    return found.dataset.ended === "no";
  } catch {
    showConnection("Not live: the bridge doesn't answer, or can't read the streams. Trying again.", true);
    return true;
  }
}

function replaceMain(before, after) {
  const controls = (main) => [...main.querySelectorAll("a, button, summary, pre")];
  const focused = controls(before).indexOf(document.activeElement);
  const unfolded = before.querySelector("details")?.open;
  if (unfolded) after.querySelector("details")?.setAttribute("open", "");
  before.replaceWith(after);
  controls(after)[focused]?.focus();
}

function withoutAges(main) {
  const copy = main.cloneNode(true);
  for (const time of copy.querySelectorAll("time")) { time.textContent = ""; time.removeAttribute("title"); delete time.dataset.local; }
  for (const details of copy.querySelectorAll("details")) details.removeAttribute("open");
  for (const mark of copy.querySelectorAll("[data-by-script]")) mark.remove();
  return copy.innerHTML;
}

async function followTask() {
  const mayChange = document.hidden || await fetchTask();
  if (mayChange) setTimeout(followTask, 5000);
  else showConnection("Ended.", false);
}

async function copyText(button) {
  const text = button.dataset.copy;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not allowed, as on a page by plain HTTP from another host
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-copy]");
  if (button) copyText(button);
});
document.documentElement.classList.add("live");
updateAges();
setInterval(updateAges, 1000);
if (form) startBoard(); else followTask();
