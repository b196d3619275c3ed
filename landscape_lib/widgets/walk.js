VIEWS.walk = (root, data, refresh, ranges) => {
  const holder = root.querySelector(":scope > .lw-picture");
  const [body, titles] = table(root, ["curve", data.ylabel]);
  const numbers = data.curves.map((curve, k) => {
    const row = add(body, "tr"), head = add(row, "th", { scope: "row" });
    const key = add(head, "span", { class: "lw-key" });
    swatch(key, STYLES[k], false);
    add(key, "span", {}, curve.name);
    return add(row, "td", { class: "lw-number" });
  });
  const cards = imageCards(root, data, data.classes);
  let x, y, cursor, dots = [];

  const draw = (width) => {
    holder.replaceChildren();
    x = { low: data.alphas[0], high: data.alphas.at(-1), label: data.xlabel };
    y = { low: data.range[0], high: data.range[1], label: data.ylabel, log: data.log };
    const top = data.marks.length ? 28 : 10;
    const plot = axes(holder, width, clamp(width * 0.42, 180, 290), x, y, { top, grid: true });
    for (const [at, name] of data.marks) {
      const px = place(x, at);
      add(plot, "path", { class: "lw-mark", d: `M${px} -6V${y.size}` });
      const half = 3.4 * name.length, middle = clamp(px, half, x.size - half);
      add(plot, "text", { x: middle, y: -12, "text-anchor": "middle" }, name);
    }
    const area = { width: x.size, height: y.size };
    const clip = add(plot, "svg", { ...area, style: "overflow:hidden" });
    const bands = add(clip, "g");
    data.curves.forEach((curve, k) => {
      const px = (i) => place(x, data.alphas[i]).toFixed(1);
      const py = (v) => place(y, Math.max(v, y.log ? y.low / 1e3 : -Infinity)).toFixed(1);
      const point = (i, v) => `${px(i)} ${py(v)}`;
      // Stretches of finite values: gaps stay gaps.
      const stretches = (good) => {
        const runs = [[]];
        curve.values.forEach((_, i) => (good(i) ? runs.at(-1).push(i) : runs.push([])));
        return runs.filter((run) => run.length);
      };
      if (curve.band) {
        const outline = (run) => {
          const side = (sign) => run.map((i) => point(i, curve.values[i] + sign * curve.band[i]));
          return `M${[...side(1), ...side(-1).reverse()].join("L")}z`;
        };
        const both = stretches((i) => isNumber(curve.values[i]) && isNumber(curve.band[i]));
        const look = { class: "lw-band", style: `fill:${STYLES[k][0]}` };
        add(bands, "path", { ...look, d: both.map(outline).join("") });
      }
      const finite = stretches((i) => isNumber(curve.values[i]));
      const path = (run) => `M${run.map((i) => point(i, curve.values[i])).join("L")}h0`;
      line(clip, STYLES[k], false)(finite.map(path).join(""));
      curve.values.forEach((v, i) => {
        if (isNumber(v)) return;
        const sign = v === "not a number" ? "\u00d7" : v;
        const look = { class: "lw-lost", style: `fill:${STYLES[k][0]}`, "text-anchor": "middle" };
        add(plot, "text", { ...look, x: px(i), y: v === "\u221e" ? 12 : y.size - 4 }, sign);
      });
    });
    cursor = add(plot, "path", { class: "lw-cursor" });
    dots = data.curves.map((_, k) => {
      const [colour, , marker] = STYLES[k];
      return add(plot, "path", { class: "lw-head", d: marker, style: `fill:${colour}` });
    });
    onDrag(add(plot, "rect", { class: "lw-drag", ...area }), (part) => {
      ranges[0].value = nearest(data.alphas, x.low + part * (x.high - x.low));
      refresh();
    });
  };

  const update = ([i]) => {
    const alpha = data.sliders[0].values[i], said = [];
    titles[1].textContent = `${data.ylabel} at ${data.xlabel} = ${alpha}`;
    if (cursor) cursor.setAttribute("d", `M${place(x, data.alphas[i])} 0V${y.size}`);
    data.curves.forEach((curve, k) => {
      const v = curve.values[i];
      const error = curve.band && isNumber(v) ? ` \u00b1 ${steady(curve.band[i], 2)}` : "";
      const text = steady(v) + error;
      numbers[k].textContent = text;
      said.push(`${curve.name} ${text}`);
      if (!dots.length) return;
      const visible = isNumber(v) && v >= y.low && v <= y.high;
      dots[k].style.display = visible ? "" : "none";
      const where = visible ? move(place(x, data.alphas[i]), place(y, v)) : move(0, 0);
      dots[k].setAttribute("transform", where.transform);
    });
    cards.forEach((card, m) => {
      const row = data.probabilities[i][m], guess = data.guesses[i][m];
      said.push(card.judge(guess));
      card.bars.forEach((bar, c) => {
        const right = c === data.images[m].label;
        bar.fill(guess < 0 ? null : row[c] / 10, c === guess, right);
      });
    });
    return `${data.xlabel} ${alpha}. ${said.join(". ")}.`;
  };
  return { draw, update };
};
