VIEWS.paths = (root, data, refresh) => {
  const holder = root.querySelector(":scope > .lw-picture");
  const [x0, x1, y0, y1] = data.extent, hidden = new Set();
  const GRID = 10000; // points arrive as whole numbers, 0 to this from edge to edge of the map
  const FAR = 1e6; // lines to points farther away than this are not drawn
  const scored = data.losses.length > 0;
  const named = (step) => `${data.sliders[1].label} ${step}`;
  const [body, titles] = table(root, ["path", ...(scored ? [data.loss_label] : []), "position"]);
  const rows = data.names.map((name, k) => {
    const row = add(body, "tr"), label = add(add(row, "th", { scope: "row" }), "label");
    const box = add(label, "input", { type: "checkbox", autocomplete: "off" });
    box.checked = true;
    box.addEventListener("change", () => {
      hidden[box.checked ? "delete" : "add"](k);
      refresh();
    });
    swatch(label, STYLES[k], true);
    add(label, "span", {}, name);
    return { loss: scored && add(row, "td", { class: "lw-number" }), where: add(row, "td") };
  });
  let layers = [], x, y;

  const draw = (width) => {
    holder.replaceChildren();
    x = { low: x0, high: x1, label: data.xlabel };
    y = { low: y0, high: y1, label: data.ylabel };
    const height = Math.min((width - 70) * data.ratio, 540);
    const plot = axes(holder, width, height, x, y, { top: 56, wide: height / data.ratio });
    const area = { width: x.size, height: y.size };
    const map = add(plot, "svg", { ...area, style: "overflow:hidden" });
    plot.prepend(map);
    add(map, "image", { ...area, href: data.picture, preserveAspectRatio: "none" });
    for (const [mx, my] of data.minimum)
      add(map, "path", { class: "lw-head", d: STAR, ...move(place(x, mx), place(y, my)) });
    layers = data.names.map((_, k) => {
      const group = add(map, "g"), set = line(group, STYLES[k], true);
      const look = { class: "lw-line lw-dots", style: `stroke:${STYLES[k][0]}` };
      const dots = add(group, "path", look);
      return { group, set, dots };
    });
    layers.forEach((layer, k) => {
      layer.head = add(map, "path", { class: "lw-head", d: STYLES[k][2] });
    });
    colourBar(plot, x.size, data.colours, data.edges, data.loss_label);
  };

  const update = ([choice, time]) => {
    const said = [];
    titles[titles.length - 1].textContent = `position at ${named(time)}`;
    data.names.forEach((name, k) => {
      const points = data.points[k][choice], last = Math.min(time, points.length / 2 - 1);
      const at = (s) => [points[2 * s], points[2 * s + 1]];
      const finite = (s) => at(s).every(isNumber);
      const inside = (s) => finite(s) && at(s).every((v) => v >= 0 && v <= GRID);
      const since = (is) => {
        let s = last;
        while (s > 0 && is(s - 1)) s--;
        return s;
      };
      let where;
      if (inside(last)) {
        const [px, py] = at(last).map((v) => v / GRID);
        where = `(${steady(x0 + px * (x1 - x0))}, ${steady(y0 + py * (y1 - y0))})`;
      } else {
        const left = since((s) => !inside(s)), lost = since((s) => !finite(s));
        where = `left the map at ${named(left)}`;
        if (!finite(last)) where += ", not finite";
        if (!finite(last) && lost > left) where += ` since ${named(lost)}`;
      }
      const loss = scored && steady(data.losses[k][choice][last]);
      rows[k].where.textContent = where;
      rows[k].where.classList.toggle("lw-number", inside(last));
      if (scored) rows[k].loss.textContent = loss;
      const score = scored ? `${data.loss_label} ${loss}, ` : "";
      if (!hidden.has(k)) said.push(`${name}: ${score}${where}`);
      if (!layers.length) return;

      const pixel = ([px, py]) => [(px / GRID) * x.size, (1 - py / GRID) * y.size];
      const drawable = (s) => finite(s) && at(s).every((v) => Math.abs(v) < FAR);
      let d = "", dots = "", drawn = 0, dotted = [-99, -99];
      for (let s = 0; s <= last; s++) {
        if (!drawable(s)) continue;
        const [px, py] = pixel(at(s));
        d += `${s && drawable(s - 1) ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`;
        // A dot for each step, where they do not run into one another.
        if (Math.hypot(px - dotted[0], py - dotted[1]) > 9) {
          dots += `M${px.toFixed(1)} ${py.toFixed(1)}h0`;
          dotted = [px, py];
        }
        drawn = s;
      }
      const { group, set, dots: dotsPath, head } = layers[k];
      set(d);
      dotsPath.setAttribute("d", dots);
      // The head waits, hollow, at the edge where its path left the map.
      const off = !inside(last);
      let [hx, hy] = pixel(at(drawn));
      if (off) [hx, hy] = [clamp(hx, 7, x.size - 7), clamp(hy, 7, y.size - 7)];
      head.setAttribute("transform", move(hx, hy).transform);
      head.style.fill = off ? "#fff" : STYLES[k][0];
      head.style.stroke = off ? STYLES[k][0] : "#fff";
      group.style.display = head.style.display = hidden.has(k) ? "none" : "";
    });
    const [first, second] = data.sliders;
    return `${first.label} ${first.values[choice]}, ${second.label} ${time}. ${said.join(". ")}.`;
  };
  return { draw, update };
};
