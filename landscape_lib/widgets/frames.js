VIEWS.frames = (root, data) => {
  const pictures = root.querySelectorAll(":scope > .lw-picture > .lw-frame");
  const update = (positions) => {
    const shown = positions.reduce((index, p, k) => index * data.sliders[k].values.length + p, 0);
    pictures.forEach((picture, k) => picture.classList.toggle("lw-shown", k === shown));
    const set = data.sliders.map((slider, k) => `${slider.label} ${slider.values[positions[k]]}`);
    return `${set.join(", ")}. ${data.alt[shown]}`;
  };
  return { draw() {}, update };
};
