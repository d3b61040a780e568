// Puts a Plotly chart in the place of each still picture, in the colours of the page, and again when these change.
(() => {
  "use strict";
  const style = () => getComputedStyle(document.documentElement);
  const isTouch = matchMedia("(pointer: coarse)").matches;

  // A description names colours of the page's style, as in {"color": "var(--a)"}.
  const coloured = (value, key, ink) => {
    if (Array.isArray(value)) return value.map((each) => coloured(each, key, ink));
    if (value !== null && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, coloured(each, name, ink)]));
    const named = typeof value === "string" && /color$/.test(key) && /^var\((--[a-z]+)\)$/.exec(value);
    return named ? ink.getPropertyValue(named[1]).trim() : value;
  };

  const config = {
    displaylogo: false,
    responsive: true,
    showSendToCloud: false, // a button that would send the figures of a run to a server of others
    plotlyServerURL: "",
    typesetMath: false, // a name with dollar signs is a name
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { scale: 2 },
  };

  const draw = async (figure) => {
    const { data, layout } = coloured(JSON.parse(figure.querySelector("script").textContent), "", style());
    if (isTouch) {
      layout.dragmode = false; // a finger that moves over a chart scrolls the page
      layout.margin.t += 30; // the buttons, which are always seen there, stand above the legend
      layout.height += 30;
    }
    figure.classList.add("live"); // the place must be seen to have a width
    try {
      await Plotly.react(figure.querySelector(".plot"), data, layout, config);
    } catch (error) {
      figure.classList.remove("live");
      console.error(error);
    }
  };

  const drawAll = async () => {
    await Promise.all([...document.querySelectorAll("figure.chart")].map(draw));
    document.documentElement.dataset.charts = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  };
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
