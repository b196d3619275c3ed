VIEWS.drawing = (root, data, refresh) => {
  const HOW = "Draw with the mouse or a finger, or with the arrow keys and the space bar.";
  const find = (name) => root.querySelector(`:scope > .${name}`);
  const cells = data.rows.map((row) => [...row].map((sign) => ({ low: sign === "#" })));
  const flat = cells.flat(), high = cells.length, wide = cells[0].length;
  const label = `drawing of ${high} rows and ${wide} columns`;
  const says = { role: "grid", "aria-label": label, "aria-multiselectable": true };
  const look = { class: "lw-drawing", "data-lm-suppress-shortcuts": "" };
  const grid = add(find("lw-picture"), "div", { ...says, ...look });
  cells.forEach((row) => {
    const place = add(grid, "div", { role: "row" });
    for (const cell of row) cell.node = add(place, "div", { role: "gridcell", tabindex: -1 });
  });
  let active = [0, 0], last = active, ink = true;
  const cellAt = ([i, j]) => cells[i]?.[j];
  // One cell can be reached with the tab key; arrow keys go to the others.
  const goTo = (place) => {
    cellAt(active).node.tabIndex = -1;
    active = place;
    cellAt(active).node.tabIndex = 0;
    cellAt(active).node.focus({ preventScroll: true });
  };
  onDrag(grid, (x, y, begins) => {
    const place = [Math.floor(y * high), Math.floor(x * wide)], cell = cellAt(place);
    if (begins && cell) {
      goTo(place);
      [last, ink] = [place, !cell.low];
    }
    // All cells on the way: a quick stroke has no gaps.
    const [down, right] = [place[0] - last[0], place[1] - last[1]];
    const count = Math.max(Math.abs(down), Math.abs(right), 1);
    for (let k = 0; k <= count; k++) {
      const passed = [last[0] + (down * k) / count, last[1] + (right * k) / count];
      const touched = cellAt(passed.map(Math.round));
      if (touched) touched.low = ink;
    }
    last = place;
    refresh();
  });
  grid.addEventListener("keydown", (event) => {
    const [i, j] = active;
    const places = {
      ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1],
      Home: [i, 0], End: [i, wide - 1],
    };
    const place = places[event.key], draws = event.key === " " || event.key === "Enter";
    if (!(place || draws) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (place && cellAt(place)) goTo(place);
    if (draws) {
      cellAt(active).low = !cellAt(active).low;
      refresh();
    }
  });
  cellAt(active).node.tabIndex = 0;

  const code = find("lw-code"), buttons = find("lw-buttons");
  const button = (name, act) => {
    const node = add(buttons, "button", { type: "button", class: "lw-button" }, name);
    node.addEventListener("click", act);
  };
  const all = (change) => () => {
    for (const cell of flat) cell.low = change(cell.low);
    refresh();
  };
  button("Clear", all(() => false));
  button("Invert", all((low) => !low));
  button("Copy the code", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      copied.textContent = "Copied.";
    } catch {   // not every page may write to the clipboard
      getSelection().selectAllChildren(code);
      copied.textContent = "Selected: copy it with Ctrl+C or \u2318C.";
    }
  });
  const copied = add(buttons, "span", { role: "status" });

  const draw = (width) => {
    // Some room beside it, so that a finger can still scroll the page.
    const side = clamp(Math.floor((width - 40) / wide), 8, high > 16 ? 20 : 26);
    grid.style.setProperty("--lw-side", `${side}px`);
  };
  const update = () => {
    cells.forEach((row, i) => row.forEach(({ low, node }, j) => {
      node.setAttribute("aria-selected", low);
      node.setAttribute("aria-label", `row ${i}, column ${j}: ${low ? "LOW" : "HIGH"}`);
    }));
    const rows = cells.map((row) => row.map((cell) => (cell.low ? "#" : ".")).join(""));
    code.textContent = data.before + rows.join("\n") + data.after;
    copied.textContent = "";
    const count = flat.filter((cell) => cell.low).length;
    let said = `Dark cells are LOW: ${count} of ${flat.length}.`;
    if (count === 0) said = "Draw something: all cells are HIGH.";
    if (count === flat.length) said = "Leave some cells HIGH: all cells are LOW.";
    find("lw-note").textContent = `${said} ${HOW}`;
    return said;
  };
  return { draw, update };
};
