VIEWS.surface = (root, data, refresh, ranges) => {
  const [holder, readout] = ["picture", "readout"].map((n) => root.querySelector(`:scope > .lw-${n}`));
  const { x, y, names, label, colours } = data, nx = x.length, ny = y.length;
  const bands = colours.length, ends = readout.textContent;
  // Heights arrive as whole numbers, 0 to 4094; 4095 says "no value". Each is what two neighbours and
  // the one between them foretell, and a sign for the rest; "~" comes before one in two digits.
  const SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  let next = 0;
  const codes = [], sign = () => SIGNS.indexOf(data.z[next++]);
  for (let k = 0; k < nx * ny; k++) {
    const [a, b, c] = [1, ny, ny + 1].map((d) => codes[k - d] ?? 0), rest = sign();
    codes.push(rest < 0 ? 64 * sign() + sign() : a + b - c + rest - 32);
  }
  const z = codes.map((code) => (code < 4095 ? code / 4094 : NaN));
  const axis = { low: data.edges[0], high: data.edges[bands], log: data.log, size: 1 };
  const value = (h) => data.log ? axis.low * (axis.high / axis.low) ** h
    : axis.low + h * (axis.high - axis.low);
  const inks = colours.map((c) => [1, 3, 5].map((k) => parseInt(c.slice(k, k + 2), 16)));
  const sides = [x, y].map((at) => ({ low: at[0], high: at.at(-1), size: 1 }));
  const [us, vs] = [x, y].map((at, k) => at.map((v) => place(sides[k], v) - 0.5));
  const spot = (k) => [us[Math.floor(k / ny)], vs[k % ny]];
  // The floor with the contours lies at -GAP, the highest point at RISE.
  const GAP = 0.3, RISE = 0.55, FIRST = [-180, 10], STEP = [2, 1];
  const degrees = (n, k) => FIRST[k] + STEP[k] * n, most = ranges.map((range) => Number(range.max));
  data.sliders.forEach((slider, k) => {
    slider.values = Array.from({ length: most[k] + 1 }, (_, n) => typeset(`${degrees(n, k)}\u00b0`));
  });

  // The lines of equal height in the triangles of the cells.
  const contours = [], cells = [];
  for (let i = 0; i < nx - 1; i++) for (let j = 0; j < ny - 1; j++) {
    const k = i * ny + j, corners = [k, k + 1, k + ny + 1, k + ny];
    cells.push(corners);
    for (const far of [1, 3]) for (let level = 1; level < bands; level++) {
      const three = [k, corners[far], corners[2]], points = [];
      three.forEach((from, m) => {
        const to = three[(m + 1) % 3], part = (level / bands - z[from]) / (z[to] - z[from]);
        if (part >= 0 && part < 1) points.push(spot(from).map((v, n) => v + part * (spot(to)[n] - v)));
      });
      if (points.length === 2) contours.push(points);
    }
  }

  // The path in pieces of less than a cell: from, to, and above which cell; dots have no `to`.
  const cell = (at, v) => clamp(at.findLastIndex((from) => from <= v), 0, at.length - 2);
  const above = ([px, py]) => {
    const i = cell(us, px), j = cell(vs, py), [a, b, d, c] = cells[i * (ny - 1) + j].map((k) => z[k]);
    const s = (px - us[i]) / (us[i + 1] - us[i]), t = (py - vs[j]) / (vs[j + 1] - vs[j]);
    const h = (1 - s) * ((1 - t) * a + t * b) + s * ((1 - t) * c + t * d);
    return { from: [px, py, Math.max(Math.abs(px), Math.abs(py)) > 0.5 ? NaN : h], i, j };
  };
  const points = data.path.map((at) => at.map((v, k) => (isNumber(v) ? place(sides[k], v) - 0.5 : NaN)));
  const things = [];
  points.slice(1).forEach((to, k) => {
    const way = to.map((v, axis) => v - points[k][axis]);
    const count = clamp(Math.ceil(2 * Math.hypot(nx * way[0], ny * way[1])), 1, 400);
    const at = (m) => above(way.map((v, axis) => points[k][axis] + (m / count) * v));
    for (let m = 0; m < count; m++) things.push({ ...at(m), to: at(m + 1).from });
  });
  for (const end of [0, -1]) if (points.length) things.push({ ...above(points.at(end)), end });

  const seen = [];
  let size, width, height, pen, overlay, ring, project, depth;
  const draw = (now) => {
    width = now;
    size = Math.min((width - 96) / Math.SQRT2, 270);
    height = 1.5 * size + 64;
    holder.replaceChildren();
    const bar = add(holder, "svg", { width, height: 52, "aria-hidden": "true" });
    colourBar(add(bar, "g", move(14, 56)), width - 28, colours, data.edges, label);
    const box = add(holder, "div", { class: "lw-turn" }), sharp = devicePixelRatio;
    const look = { width: width * sharp, height: height * sharp, style: `width:${width}px` };
    const canvas = add(box, "canvas", look);
    pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    const svg = add(box, "svg", { width, height, "aria-hidden": "true" });
    overlay = add(svg, "g");
    ring = add(svg, "g");
    for (const ink of ["lw-ring lw-under", "lw-ring"]) add(ring, "circle", { class: ink, r: 5 });
    // A width turns it once round, a height tips it all the way.
    let last;
    onDrag(canvas, (px, py, begins) => {
      if (begins) last = [px, py, ...ranges.map((range) => Number(range.value))];
      const turned = last[2] + Math.round((last[0] - px) * most[0]);
      ranges[0].value = (turned + 2 * most[0]) % most[0];
      ranges[1].value = last[3] + Math.round((py - last[1]) * most[1]);
      refresh();
    });
    const tell = (event) => {
      // Of the points under the pointer, the one in front.
      let best = 99, k = -1;
      seen.forEach(([px, py], m) => {
        const far = Math.hypot(px - event.offsetX, py - event.offsetY);
        const score = far / 4 + 20 * depth(...spot(m));
        if (far < 9 && score < best) [best, k] = [score, m];
      });
      ring.style.display = k < 0 ? "none" : "";
      readout.textContent = ends;
      if (k < 0) return;
      ring.setAttribute("transform", move(...seen[k]).transform);
      const [px, py] = [x[Math.floor(k / ny)], y[k % ny]].map((v) => steady(v));
      readout.textContent = `${names[0]} ${px}, ${names[1]} ${py}: ${label} ${steady(value(z[k]))}`;
    };
    for (const kind of ["move", "down", "leave"]) canvas.addEventListener(`pointer${kind}`, tell);
  };

  const trace = (colour, wide, ...lines) => {
    pen.strokeStyle = colour;
    pen.lineWidth = wide;
    pen.beginPath();
    for (const [from, to] of lines) {
      pen.moveTo(...from);
      pen.lineTo(...to);
    }
    pen.stroke();
  };
  // One axis from a to b, its words on the outer side. A number that would touch words is left out.
  let written;
  const scale = (axis, a, b, title, corner) => {
    const p = project(...a), way = project(...b).map((v, k) => v - p[k]);
    const along = Math.hypot(...way), on = (part) => p.map((v, k) => v + part * way[k]);
    const [mx, my] = on(0.5), outer = way[0] * (my - height / 2) > way[1] * (mx - width / 2) ? 1 : -1;
    const [dx, dy] = [(-outer * way[1]) / along, (outer * way[0]) / along];
    const anchor = Math.abs(dx) < 0.35 ? "middle" : dx > 0 ? "start" : "end";
    const put = (part, far, text, look) => {
      const [px, py] = on(part), at = { x: px + far * dx, y: py + far * dy + 4.5 };
      const word = add(overlay, "text", { ...at, "text-anchor": anchor, ...look }, text);
      const box = word.getBBox(), touches = (b) => b.x < box.x + box.width + 4
        && box.x < b.x + b.width + 4 && b.y < box.y + box.height && box.y < b.y + b.height;
      if (!look && written.some(touches)) word.remove();
      else written.push(box);
      return `M${px} ${py}l${5 * dx} ${5 * dy}`;
    };
    let d = `M${p}l${way}`;
    if (along > 50) {
      put(0.5, 34, title, { class: "lw-title" });
      for (const v of ticks(axis, Math.max(2, Math.round(along / 70))))
        if (Math.abs(place(axis, v) - corner) > 0.08) d += put(place(axis, v), 11, show(v, 4));
    }
    add(overlay, "path", { class: "lw-frame-line", d });
  };

  const update = (positions) => {
    const [a, e] = positions.map((n, k) => (degrees(n, k) * Math.PI) / 180);
    const [ca, sa, ce, se] = [Math.cos(a), Math.sin(a), Math.cos(e), Math.sin(e)];
    const said = data.sliders.map((slider, k) => `${slider.label} ${slider.values[positions[k]]}`);
    const sentence = `${said.join(", ")}. ${ends}`;
    if (!pen) return sentence;
    depth = (u, v) => u * sa + v * ca;
    project = (u, v, h) => [
      width / 2 + size * (u * ca - v * sa),
      height / 2 - size * (depth(u, v) * se + (h - (RISE - GAP) / 2) * ce),
    ];
    const ink = getComputedStyle(holder).color;
    ring.style.display = "none";
    readout.textContent = ends;
    pen.clearRect(0, 0, width, height);
    overlay.replaceChildren();
    written = [];
    // The corner of the floor in front, and the floor's lines.
    const fu = sa > 0 ? -0.5 : 0.5, fv = ca > 0 ? -0.5 : 0.5;
    const flat = (line) => line.map(([u, v]) => project(u, v, -GAP));
    pen.globalAlpha = 0.5;
    trace(ink, 1, ...[[[-fu, fv], [-fu, -fv]], [[-fu, -fv], [fu, -fv]], ...contours].map(flat));
    pen.globalAlpha = 1;
    scale(sides[0], [-0.5, fv, -GAP], [0.5, fv, -GAP], names[0], 9);
    // In the corner stands one number only.
    scale(sides[1], [fu, -0.5, -GAP], [fu, 0.5, -GAP], names[1], fv + 0.5);
    const left = project(fu, -fv, 0)[0] < width / 2 ? [fu, -fv] : [-fu, fv];
    scale(axis, [...left, 0], [...left, RISE], "", 9);

    z.forEach((h, k) => (seen[k] = project(...spot(k), RISE * h)));
    // A piece of the path waits for the next cell towards the viewer, which would paint over it.
    const waiting = {}, lifted = ([u, v, h]) => project(u, v, RISE * h + 0.006);
    for (const thing of things) {
      const near = [thing.i + (sa > 0 ? -1 : 1), thing.j + (ca > 0 ? -1 : 1)];
      const k = clamp(near[0], 0, nx - 2) * (ny - 1) + clamp(near[1], 0, ny - 2);
      (waiting[k] ??= []).push(thing);
    }
    // From back to front: row after row, across the view.
    const columns = Math.abs(sa) > Math.abs(ca), long = columns ? ny - 1 : nx - 1;
    for (let n = 0; n < cells.length; n++) {
      const two = [Math.floor(n / long), n % long], [m, l] = columns ? two : two.reverse();
      const i = sa > 0 ? nx - 2 - m : m, j = ca > 0 ? ny - 2 - l : l, k = i * (ny - 1) + j;
      const [p, q, r, s] = cells[k].map((c) => z[c]), at = ((p + q + r + s) / 4) * bands - 0.5;
      if (!isNaN(at)) {
        // Slopes that face the light, at the upper left, are a little brighter.
        const du = (RISE * (s + r - p - q)) / 2 / (us[i + 1] - us[i]);
        const dv = (RISE * (q + r - p - s)) / 2 / (vs[j + 1] - vs[j]);
        const [sx, sy] = [du * ca - dv * sa, depth(du, dv)];
        const light = (0.4 * sx + 0.45 * sy + 0.8) / Math.hypot(sx, sy, 1);
        const band = clamp(Math.floor(at), 0, bands - 2), part = clamp(at - band, 0, 1);
        const shade = 0.72 + 0.36 * clamp(light, 0, 1);
        const mix = inks[band].map((c, n) => shade * (c + part * (inks[band + 1][n] - c)));
        pen.fillStyle = pen.strokeStyle = `rgb(${mix})`;
        pen.lineWidth = 0.7;
        pen.beginPath();
        for (const c of cells[k]) pen.lineTo(...seen[c]);
        pen.closePath();
        pen.fill();
        pen.stroke();
      }
      const here = waiting[k] ?? [], parts = here.filter((thing) => thing.to);
      const lines = parts.map(({ from, to }) => [lifted(from), lifted(to)]);
      if (lines.length) {
        trace("#fff", 5, ...lines);
        trace("#d55e00", 2.5, ...lines);
      }
      for (const { from, end, to } of here) if (!to) {
        pen.beginPath();
        pen.arc(...lifted(from), 5, 0, 7);
        [pen.fillStyle, pen.strokeStyle] = end ? ["#d55e00", "#fff"] : ["#fff", "#d55e00"];
        pen.lineWidth = 2;
        pen.fill();
        pen.stroke();
      }
    }
    return sentence;
  };
  // The floor's lines have the colour of the page's text, which the page may change.
  new MutationObserver(refresh).observe(root, { attributeFilter: ["style"] });
  return { draw, update };
};
