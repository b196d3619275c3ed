// Paper is white: a page in dark mode is printed in the colours of light mode.
(() => {
  const page = document.documentElement.dataset;
  let before;
  addEventListener("beforeprint", () => { before = page.theme; page.theme = "light"; });
  addEventListener("afterprint", () => { page.theme = before; });
})();
