"use strict";

// Tables that a reader sorts, and what printing needs. The page is whole without any of it.

/** Make the heading of a column a button. */
function sortHeading(heading, sort) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "sort";
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => sort(heading));
}

/** Say on the headings which one sorts, and which way. */
function markSorted(headings, chosen, descending) {
  for (const heading of headings) {
    if (heading === chosen) heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else heading.removeAttribute("aria-sort");
  }
}

/** Order of two values; a blank comes last whichever way is sorted. */
function orderOf(one, other, descending) {
  const blank = (value) => value === null || value === "";
  if (blank(one) || blank(other)) return blank(one) - blank(other);
  const order = typeof one === "number" && typeof other === "number"
    ? one - other
    : String(one).localeCompare(String(other), "en", { numeric: true });
  return descending ? -order : order;
}

/** Value that a cell of a table is sorted by: the number that it carries, or its text. */
function sortValue(cell) {
  const value = cell.dataset.value;
  if (value === undefined) return cell.textContent.trim();
  return value === "" ? null : Number(value);
}

/** Let a table be sorted by its headings, within each of its groups; the third click restores the order. */
function makeSortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  const groups = [...table.tBodies].map((body) => ({
    body,
    rows: [...body.rows].filter((row) => !row.classList.contains("model")),
  }));
  let chosen = null;
  let clicks = 0;
  const sort = (heading) => {
    clicks = heading === chosen ? (clicks + 1) % 3 : 1;
    chosen = heading;
    const place = headings.indexOf(heading);
    const numbers = groups.some(({ rows }) => rows.some((row) => row.cells[place].dataset.value));
    const descending = (clicks === 1) === (numbers && heading.dataset.first !== "ascending");
    for (const { body, rows } of groups) {
      const values = new Map(rows.map((row) => [row, sortValue(row.cells[place])]));
      const order = (one, other) => orderOf(values.get(one), values.get(other), descending);
      body.append(...(clicks ? [...rows].sort(order) : rows));
    }
    markSorted(headings, clicks ? heading : null, descending);
  };
  for (const heading of headings) sortHeading(heading, sort);
}

for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);

// On paper everything is open.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const part of closed) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of closed) part.open = false;
});
