"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const press = (buttons, chosen) => buttons.forEach((each) => each.setAttribute("aria-pressed", each === chosen || each.dataset.choose === chosen));

// The list of sections, and which one is being read.
const links = new Map();
for (const section of all("section[data-title]")) {
  const link = Object.assign(document.createElement("a"), { href: `#${section.id}`, textContent: section.dataset.title });
  const item = document.createElement("li");
  item.append(link);
  document.getElementById("sections").append(item);
  links.set(section, link);
}
const reading = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    if (!isIntersecting) continue;
    links.forEach((link) => link.removeAttribute("aria-current"));
    const link = links.get(target);
    link.setAttribute("aria-current", "true");
    document.getElementById("sections").scrollLeft = link.offsetLeft - 80;
  }
}, { rootMargin: "-20% 0px -75% 0px" });
links.forEach((_, section) => reading.observe(section));

// What goes on to the right fades there: a figure that is cut could be taken for a whole one.
for (const box of all(".scroll, #sections")) {
  const fade = () => box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
  box.addEventListener("scroll", fade, { passive: true });
  new ResizeObserver(fade).observe(box);
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// One artifact at a time, the same one in every section that has it.
function choose(artifact) {
  for (const group of all(".chooser")) {
    const buttons = all("button", group);
    if (!buttons.some((each) => each.dataset.choose === artifact)) continue;
    press(buttons, artifact);
    const section = group.closest("section");
    section.classList.add("chosen");
    all(".panel", section).forEach((each) => { each.hidden = each.dataset.panel !== artifact; });
  }
}
all(".chooser").forEach((group) => choose(group.firstElementChild.dataset.choose));
all("[data-choose]").forEach((button) => button.addEventListener("click", () => choose(button.dataset.choose)));

all("[data-overlay]").forEach((button) => button.addEventListener("click", () => {
  press(all("[data-overlay]"), button);
  all(".shots").forEach((each) => { each.dataset.showing = button.dataset.overlay; });
}));

// Sorting: numbers as numbers, what was not measured last.
const number = (text) => parseFloat(text.replace("−", "-").replaceAll(",", ""));
function sort(table, column, direction) {
  const sign = direction === "ascending" ? 1 : -1;
  const numeric = column.classList.contains("n");
  const text = (row) => row.cells[column.cellIndex].textContent.trim();
  const order = (a, b) => {
    if (!numeric) return sign * text(a).localeCompare(text(b), "en", { numeric: true });
    const [x, y] = [number(text(a)), number(text(b))];
    return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y);
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(order));
  all("th[aria-sort]", table).forEach((each) => each.removeAttribute("aria-sort"));
  column.setAttribute("aria-sort", direction);
}
all(".sortable thead button").forEach((button) => button.addEventListener("click", () => {
  const column = button.closest("th");
  sort(column.closest("table"), column, column.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
}));

// The card beside the pointer, or beside what has the focus.
const card = document.getElementById("card");
function show(text, x, y) {
  card.textContent = text;
  card.hidden = false;
  const { width, height } = card.getBoundingClientRect();
  card.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
  card.style.top = `${y + height + 22 > innerHeight ? Math.max(8, y - height - 14) : y + 16}px`;
}
const hide = () => { card.hidden = true; };
document.addEventListener("pointermove", (event) => {
  const marked = event.target.closest?.("[data-card]");
  if (marked) show(marked.dataset.card, event.clientX, event.clientY);
  else if (!event.target.closest?.("[data-layers]")) hide();
});
document.addEventListener("focusin", (event) => {
  const marked = event.target.closest("[data-card]");
  if (!marked?.matches(":focus-visible")) return;
  const box = marked.getBoundingClientRect();
  show(marked.dataset.card, box.right, box.bottom);
});
document.addEventListener("focusout", (event) => { if (event.target.closest("[data-card]")) hide(); });
document.addEventListener("scroll", hide, { capture: true, passive: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

// The waterfall: its bars are the rows of the table below it, in the order of the report.
for (const chart of all("[data-layers]")) {
  const table = document.querySelector(`table[data-rows="artifacts.${chart.dataset.layers}.layers"]`);
  const rows = [...table.tBodies[0].rows];
  const [left, right] = chart.dataset.span.split(" ").map(Number);
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const { width, height } = chart.viewBox.baseVal;
  const step = (width * (right - left)) / rows.length;
  let at = -1;
  const point = (index, x, y) => {
    at = Math.max(0, Math.min(rows.length - 1, index));
    const [name, operation, type, level, scale, zero, macs, why, group] = [...rows[at].cells].map((each) => each.textContent);
    const lines = [name, `${level} dB, ${operation}, ${type}`];
    if (scale !== "–") lines.push(`scale ${scale}, zero point ${zero}`);
    if (macs !== "–" && macs !== "0") lines.push(`${macs} multiply-accumulates`);
    if (group) lines.push(`shares its scale with ${group}`);
    lines.push(why);
    for (const [key, value] of Object.entries({ x: width * left + at * step, y: 22, width: Math.max(step, 1.5), height: height - 60, class: "cursor" })) cursor.setAttribute(key, value);
    chart.append(cursor);
    const box = chart.getBoundingClientRect();
    show(lines.join("\n"), x ?? box.left + box.width * (left + ((at + 0.5) / rows.length) * (right - left)), y ?? box.top + box.height / 2);
  };
  const leave = () => { cursor.remove(); hide(); };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width - left) / (right - left);
    if (place >= 0 && place < 1) point(Math.floor(place * rows.length), event.clientX, event.clientY);
    else leave();
  });
  chart.addEventListener("pointerleave", leave);
  chart.addEventListener("blur", leave);
  chart.addEventListener("focus", () => { if (chart.matches(":focus-visible")) point(Math.max(at, 0)); });
  chart.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (!steps) return;
    event.preventDefault();
    point(at + steps);
  });
}
