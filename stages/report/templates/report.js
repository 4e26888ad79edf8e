"use strict";
// The page defines CLASSES, COLUMNS, ALL (the number of test rows) and REFERENCE (the best one's name). A row: see `rows_as_json`.
const $ = (id) => document.getElementById(id);
const ROWS = JSON.parse($("data").textContent);
const SIZE = 50;
let shown = ROWS, page = 0;

function cell(name, text, className) {
  const td = document.createElement("td");
  td.dataset.name = name;
  td.className = className || "";
  td.textContent = text;
  return td;
}

/* A name that may break after each underscore or slash, as the filter `breakable` does it. */
function breakable(name) {
  return name.split(/(?<=[_/])/).flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part]));
}

function classCell(name, label) {
  const td = cell(name, "", "name");
  td.append(...breakable(CLASSES[label]));
  return td;
}

function answer(name, label, gold, probable) {
  const td = cell(name, label === gold ? "✓ " : "✗ ", label === gold ? "name right" : "name wrong");
  td.append(...breakable(CLASSES[label]));
  const small = document.createElement("small");
  for (let i = 0; i < probable.length; i += 2) {
    const span = document.createElement("span");
    span.append(...breakable(CLASSES[probable[i]]), `\u00a0${probable[i + 1]}`);
    small.append(span);
  }
  td.append(small);
  return td;
}

function draw() {
  const pages = Math.max(1, Math.ceil(shown.length / SIZE));
  const lines = shown.slice(page * SIZE, (page + 1) * SIZE).map(([row, texts, gold, reference, tuned, , , shares]) => {
    const tr = document.createElement("tr");
    tr.append(cell("row", row, "number"), ...texts.map((text, i) => cell(COLUMNS[i], text, "text")), classCell("gold", gold),
      answer(REFERENCE, reference, gold, []), answer("tuned", tuned, gold, shares));
    return tr;
  });
  $("cases").tBodies[0].replaceChildren(...lines);
  $("count").textContent = `${shown.length.toLocaleString("en")} of ${ROWS.length.toLocaleString("en")} rows` +
    (ROWS.length < ALL ? `: the most confident errors of the tuned model, and evenly spaced others. All ${ALL.toLocaleString("en")} rows are in cases.csv.` : "");
  $("page").textContent = `page ${page + 1} of ${pages}`;
  $("previous").disabled = page === 0;
  $("next").disabled = page >= pages - 1;
}

function filter() {
  const outcome = $("outcome").value, gold = $("class").value, chosen = $("filter").value, text = $("text").value.trim().toLowerCase();
  shown = ROWS.filter((row) =>
    (!outcome || row[5] === outcome) && (!gold || row[2] === Number(gold)) && (!chosen || row[6] >> Number(chosen) & 1) &&
    (!text || row[1].some((part) => part.toLowerCase().includes(text))));
  page = 0;
  draw();
}

function turn(by) {
  page += by;
  draw();
  $("count").scrollIntoView({ block: "nearest" });
}

for (const id of ["outcome", "class", "filter"]) $(id).addEventListener("change", filter);
$("text").addEventListener("input", filter);
$("previous").addEventListener("click", () => turn(-1));
$("next").addEventListener("click", () => turn(1));
filter();
