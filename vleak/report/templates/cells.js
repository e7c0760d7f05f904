// The table of cells: found, chosen, sorted, opened, a page of rows at a time. The fragment of the address keeps
// what is shown: #cells?find=…&defense=…&attack=…&outcome=…&sort=-gain&page=2&open=ID

function showCells(data) {
  const byName = Object.fromEntries(data.columns.map((column, place) => [column.name, { ...column, place }]));
  const shown = data.columns.filter((column) => !column.detail).map((column) => byName[column.name]);
  const choices = ["defense", "attack", "outcome"];
  const part = (name) => document.getElementById(`cells-${name}`);
  const table = part("table");
  const headings = [...table.tHead.rows[0].cells];
  const pictures = new Map();
  for (const figure of document.querySelectorAll("figure[data-cell]")) pictures.set(figure.dataset.cell, figure);
  const state = { find: "", defense: "", attack: "", outcome: "", sort: "", page: 1, open: "" };
  const texts = new Map();
  let found = data.cells;

  function value(cell, column) {
    const held = cell[column.place];
    return held === null || column.digits !== null ? held : data.texts[held];
  }

  function written(cell, column) {
    const held = value(cell, column);
    if (held === null) return "–";
    if (column.digits === null) return held;
    const text = held.toLocaleString("en", {
      minimumFractionDigits: column.digits,
      maximumFractionDigits: column.digits,
      useGrouping: column.digits === 0,
      signDisplay: column.signed ? "exceptZero" : "negative",
    });
    return text.replace("-", "−");
  }

  function words(cell) {
    if (!texts.has(cell)) {
      const all = data.columns.filter((column) => column.digits === null);
      texts.set(cell, all.map((column) => value(cell, byName[column.name]) ?? "").join("\n").toLowerCase());
    }
    return texts.get(cell);
  }

  function choose() {
    const sought = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    found = data.cells.filter(
      (cell) =>
        choices.every((name) => !state[name] || value(cell, byName[name]) === state[name]) &&
        sought.every((word) => words(cell).includes(word)),
    );
    const column = byName[state.sort.replace(/^-/, "")];
    const descending = state.sort.startsWith("-");
    if (column) found.sort((one, other) => orderOf(value(one, column), value(other, column), descending));
    markSorted(headings, headings.find((one) => column && one.dataset.name === column.name), descending);
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(found.length / data.first));
    state.page = Math.min(Math.max(1, state.page), pages);
    const start = (state.page - 1) * data.first;
    const rows = found.slice(start, start + data.first);
    table.tBodies[0].replaceChildren(...rows.flatMap(rowsOf));
    const all = data.cells.length.toLocaleString("en");
    const count = found.length.toLocaleString("en");
    const of = found.length < data.cells.length ? `${count} of ${all} cells match` : `${all} cells`;
    part("count").textContent = rows.length
      ? `${of}; shown: ${start + 1} to ${start + rows.length}.`
      : `No cell matches. Of ${all} cells none has all that is asked for.`;
    part("page").textContent = `page ${state.page} of ${pages}`;
    part("back").disabled = state.page === 1;
    part("on").disabled = state.page === pages;
  }

  function rowsOf(cell) {
    const id = value(cell, byName.id);
    const row = document.createElement("tr");
    for (const [place, column] of shown.entries()) {
      const box = document.createElement(place ? "td" : "th");
      if (place) box.textContent = written(cell, column);
      else {
        box.scope = "row";
        box.append(opener(id, written(cell, column)));
      }
      if (column.digits !== null) box.className = "n";
      if (column.name === "outcome") box.className = `outcome ${written(cell, column).replace(/ /g, "-")}`;
      row.append(box);
    }
    return id === state.open ? [row, opened(cell, id)] : [row];
  }

  function opener(id, text) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "open";
    button.textContent = text;
    button.dataset.id = id;
    button.setAttribute("aria-expanded", String(id === state.open));
    button.addEventListener("click", () => {
      state.open = id === state.open ? "" : id;
      draw();
      keep();
      focusOn(id);
    });
    return button;
  }

  function focusOn(id) {
    for (const button of table.querySelectorAll("button.open")) if (button.dataset.id === id) button.focus();
  }

  function opened(cell, id) {
    const row = document.createElement("tr");
    const box = document.createElement("td");
    row.className = "opened";
    box.colSpan = shown.length;
    const facts = document.createElement("dl");
    facts.className = "facts";
    for (const column of data.columns) {
      const pair = document.createElement("div");
      for (const [tag, text] of [["dt", column.title], ["dd", written(cell, byName[column.name])]]) {
        const item = document.createElement(tag);
        item.textContent = text;
        pair.append(item);
      }
      facts.append(pair);
    }
    box.append(facts, ...picturesOf(id));
    row.append(box);
    return row;
  }

  /** The private clip beside what this cell rebuilt, where the page shows them. */
  function picturesOf(id) {
    const figure = pictures.get(id);
    if (!figure) return [];
    const clip = figure.closest("article").cloneNode(false);
    const line = figure.parentElement.cloneNode(false);
    const truth = figure.parentElement.querySelector("figure.truth");
    line.append(...[truth, figure].filter(Boolean).map((one) => one.cloneNode(true)));
    clip.append(line);
    return [clip];
  }

  /** Put what is shown into the address. */
  function keep() {
    const kept = new URLSearchParams();
    for (const [name, held] of Object.entries(state)) if (held && held !== 1) kept.set(name, held);
    const text = String(kept);
    history.replaceState(null, "", text ? `#cells?${text}` : "#cells");
  }

  /** Take what is shown from the address; what it does not know is left out. */
  function restore() {
    const [place, text] = [location.hash.slice(0, 7), location.hash.slice(7)];
    if (place !== "#cells?") return false;
    const given = new URLSearchParams(text);
    for (const name of ["find", "defense", "attack", "outcome", "sort", "open"]) state[name] = given.get(name) ?? "";
    for (const name of choices) {
      const known = [...part(name).options].some((option) => option.value === state[name]);
      if (!known) state[name] = "";
      part(name).value = state[name];
    }
    part("find").value = state.find;
    state.page = Number(given.get("page")) || 1;
    choose();
    const position = found.findIndex((cell) => value(cell, byName.id) === state.open);
    if (position >= 0 && !given.has("page")) state.page = Math.floor(position / data.first) + 1;
    draw();
    document.getElementById("cells").scrollIntoView();
    return true;
  }

  function changed() {
    state.page = 1;
    choose();
    draw();
    keep();
  }

  function turn(by) {
    state.page += by;
    draw();
    keep();
    table.parentElement.scrollIntoView({ block: "nearest" });
  }

  for (const name of choices) {
    const known = new Set(data.cells.map((cell) => value(cell, byName[name])));
    part(name).append(...[...known].map((text) => new Option(text, text)));
    if (known.size < 2) part(name).parentElement.hidden = true;
    part(name).addEventListener("change", () => {
      state[name] = part(name).value;
      changed();
    });
  }
  let waiting = 0;
  part("find").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      state.find = part("find").value;
      changed();
    }, 150);
  });
  part("reset").addEventListener("click", () => {
    Object.assign(state, { find: "", defense: "", attack: "", outcome: "", sort: "", page: 1, open: "" });
    for (const name of ["find", ...choices]) part(name).value = "";
    changed();
  });
  part("back").addEventListener("click", () => turn(-1));
  part("on").addEventListener("click", () => turn(1));
  for (const heading of headings)
    sortHeading(heading, () => {
      const name = heading.dataset.name;
      const first = byName[name].digits === null ? name : `-${name}`;
      const second = byName[name].digits === null ? `-${name}` : name;
      state.sort = state.sort === first ? second : state.sort === second ? "" : first;
      changed();
    });
  for (const row of document.querySelectorAll("tr[data-cells]")) {
    const link = document.createElement("a");
    const name = row.cells[0].firstChild;
    link.href = `#cells?${new URLSearchParams(JSON.parse(row.dataset.cells))}`;
    link.title = "the cells of this row";
    link.textContent = name.textContent.trim();
    name.replaceWith(link);
  }
  for (const hidden of document.querySelectorAll("#cells [hidden].controls, #cells [hidden].pager")) hidden.hidden = false;
  addEventListener("hashchange", restore);
  if (!restore()) {
    choose();
    draw();
  }
}

const cellsData = document.getElementById("cells-data");
if (cellsData) showCells(JSON.parse(cellsData.textContent));
