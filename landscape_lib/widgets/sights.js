VIEWS.sights = (root, data, refresh, ranges) => {
  const holder = root.querySelector(":scope > .lw-picture");
  const [x0, x1, y0, y1] = data.extent, [alphas, betas] = data.places;
  const names = data.sliders.map((slider) => slider.label), NO_GUESS = 255;
  const unpack = (packed) => Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const guesses = unpack(data.guesses), percent = unpack(data.percent);
  const titles = [`cell (${names.join(", ")})`, "loss", "accuracy"];
  if (data.low) titles.push("in the pattern");
  const row = add(table(root, titles)[0], "tr");
  const where = add(row, "th", { scope: "row", class: "lw-number" });
  const [loss, accuracy, kind] = titles.slice(1).map(() => add(row, "td"));
  const cards = imageCards(root, data, ["probability"]);
  let x, y, marker;

  const draw = (width) => {
    holder.replaceChildren();
    x = { low: x0, high: x1, label: names[0] };
    y = { low: y0, high: y1, label: names[1], down: true };
    const height = Math.min((width - 70) * data.ratio, 400);
    const plot = axes(holder, width, height, x, y, { top: 56, wide: height / data.ratio });
    const area = { width: x.size, height: y.size };
    const map = add(plot, "svg", { ...area, style: "overflow:hidden" });
    plot.prepend(map);
    // What has no value is transparent: hatching shows through.
    add(map, "rect", { ...area, class: "lw-none" });
    let hatching = "";
    for (let at = 7 - y.size; at < x.size; at += 7) {
      const from = Math.max(0, at), to = Math.min(x.size, at + y.size);
      hatching += `M${from} ${y.size + at - from}L${to} ${y.size + at - to}`;
    }
    add(map, "path", { class: "lw-hatching", d: hatching });
    const look = { class: "lw-cells", preserveAspectRatio: "none" };
    add(map, "image", { ...area, ...look, href: data.picture });
    if (data.outline) {
      const size = [x.size / alphas.length, y.size / betas.length];
      const place = { transform: `scale(${size})`, d: data.outline };
      for (const ink of ["lw-outline lw-under", "lw-outline"])
        add(map, "path", { class: ink, ...place });
    }
    marker = add(plot, "g");
    for (const ink of ["lw-ring lw-under", "lw-ring"]) add(marker, "circle", { class: ink, r: 7 });
    colourBar(plot, x.size, data.colours, data.edges, titles[1]);
    onDrag(add(plot, "rect", { class: "lw-drag lw-both", ...area }), (px, py) => {
      ranges[0].value = nearest(alphas, x0 + px * (x1 - x0));
      ranges[1].value = nearest(betas, y0 + py * (y1 - y0));
      refresh();
    });
  };

  const update = ([i, j]) => {
    const at = i * betas.length + j, low = data.low && data.low[at] === "1";
    const [alpha, beta] = [i, j].map((index, k) => data.sliders[k].values[index]);
    where.textContent = `(${alpha}, ${beta})`;
    loss.textContent = steady(data.loss[at], 4);
    accuracy.textContent = steady(data.accuracy[at], 4);
    if (kind) kind.textContent = low ? "LOW" : "HIGH";
    if (marker) {
      const { transform } = move(place(x, alphas[i]), place(y, betas[j]));
      marker.setAttribute("transform", transform);
    }
    const said = [`${names[0]} ${alpha}, ${names[1]} ${beta}${kind ? `, ${kind.textContent}` : ""}`];
    said.push(`loss ${loss.textContent}, accuracy ${accuracy.textContent}`);
    cards.forEach((card, m) => {
      const index = at * cards.length + m;
      const guess = guesses[index] === NO_GUESS ? -1 : guesses[index];
      card.bars[0].fill(guess < 0 ? null : percent[index], true, guess === data.images[m].label);
      said.push(card.judge(guess) + (guess < 0 ? "" : `, ${percent[index]} %`));
    });
    return `${said.join(". ")}.`;
  };
  return { draw, update };
};
