// Draws the charts of the page from the data in it. Sets text only, never markup.
"use strict";
(() => {
  const { runs, charts } = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const HEIGHT = 260, LEFT = 62, RIGHT = 12, TOP = 12, BOTTOM = 30;
  const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
  const controls = { axis: document.getElementById("axis"), logX: document.getElementById("log-x"), logY: document.getElementById("log-y") };

  const element = (name, attributes, parent) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.append(made);
    return made;
  };

  // Numbers as people read them: 12.3k steps, 3.00e-4, 41.2 %.
  const short = (value) => {
    for (const [size, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(value) >= size) return `${+(value / size).toPrecision(4)}${letter}`;
    return `${+value.toPrecision(4)}`;
  };
  const written = (value, style) =>
    style === "percent" ? `${(100 * value).toFixed(1)} %` : style === "power" && value ? value.toExponential(2) : short(value);

  // Where lines of the grid go: round numbers, or powers of ten with 2 and 5 where there are few.
  const ticks = (low, high, isLog, count) => {
    const found = [];
    if (isLog) {
      const steps = Math.log10(high / low) > 3 ? [1] : [1, 2, 5];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
        for (const step of steps) found.push(step * 10 ** power);
    } else {
      const rough = (high - low) / count || 1, size = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((factor) => factor * size).find((candidate) => candidate >= rough);
      for (let number = Math.ceil(low / step); number * step <= high * (1 + 1e-12); number++) found.push(number * step);
    }
    const inside = found.filter((tick) => tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9));
    const every = Math.ceil(inside.length / (count + 2));
    return inside.filter((_, index) => index % every === 0);
  };

  const scale = (low, high, isLog, from, to) => {
    const through = isLog ? Math.log : (value) => value;
    const start = through(low), width = through(high) - start || 1;
    return (value) => from + ((through(Math.max(value, isLog ? low : -Infinity)) - start) / width) * (to - from);
  };

  const nearest = (places, wanted) => {
    let low = 0, high = places.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (places[middle] < wanted) low = middle; else high = middle;
    }
    return Math.abs(places[low] - wanted) <= Math.abs(places[high] - wanted) ? low : high;
  };

  function setUp(figure, chart) {
    const plot = figure.querySelector(".plot"), legend = figure.querySelector(".legend"), readOut = figure.querySelector("output");
    const names = [...new Set(chart.curves.map((curve) => curve.name))];
    // With one run a colour is a curve; with several it is a run, and the dashes tell the curves of a run apart.
    const curves = chart.curves.map((curve) => {
      const name = names.indexOf(curve.name);
      return {
        ...curve, isShown: true,
        label: [runs.length > 1 ? runs[curve.run] : "", curve.name].filter(Boolean).join(" · ") || chart.title,
        colour: `var(--curve-${(runs.length > 1 ? curve.run : name) % 6})`,
        dashes: DASHES[(runs.length > 1 ? name + 4 * Math.floor(curve.run / 6) : name) % DASHES.length],
      };
    });
    let place = null, horizontal = null, vertical = null, svg = null, cursor = null;

    if (curves.length > 1)
      for (const curve of curves) {
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("aria-pressed", "true");
        const sample = element("svg", { width: 26, height: 8, "aria-hidden": "true" }, button);
        element("line", { x1: 0, x2: 26, y1: 4, y2: 4, style: `stroke:${curve.colour}`, "stroke-width": 2.5, "stroke-dasharray": curve.dashes }, sample);
        button.append(curve.label);
        button.addEventListener("click", () => {
          curve.isShown = !curve.isShown;
          button.setAttribute("aria-pressed", String(curve.isShown));
          draw();
        });
        legend.append(button);
      }

    const placesOf = (curve, kind) => curve[`${kind}${controls.axis.value === "step" ? "steps" : "tokens"}`];

    function draw() {
      const shown = curves.filter((curve) => curve.isShown);
      const logX = controls.logX.checked, logY = controls.logY.checked;
      const width = Math.max(plot.clientWidth, 240);
      svg?.remove();
      const last = shown.map((curve) => `${curve.label} ${written((curve.smooth.length ? curve.smooth : curve.values).at(-1), chart.style)}`);
      svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, tabindex: 0, role: "img", "aria-label": `${chart.title}. At the end: ${last.join(", ")}.` }, plot);
      const across = shown.flatMap((curve) => placesOf(curve, "")), up = shown.flatMap((curve) => curve.values);
      const usable = (values, isLog) => (isLog ? values.filter((value) => value > 0) : values);
      const extent = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
      let [left, right] = extent(usable(across, logX)), [bottom, top] = extent(usable(up, logY));
      if (!isFinite(left) || !isFinite(bottom)) return;
      if (!logX && left > 0 && left < 0.05 * right) left = 0;
      if (left === right) [left, right] = logX ? [left / 2, right * 2] : [left - 1, right + 1];
      if (bottom === top) [bottom, top] = logY ? [bottom / 2, top * 2] : [bottom - (Math.abs(bottom) * 0.05 || 1), top + (Math.abs(top) * 0.05 || 1)];
      else if (!logY) { const margin = 0.04 * (top - bottom); bottom = bottom >= 0 ? Math.max(0, bottom - margin) : bottom - margin; top += margin; }
      horizontal = scale(left, right, logX, LEFT, width - RIGHT);
      vertical = scale(bottom, top, logY, HEIGHT - BOTTOM, TOP);

      for (const tick of ticks(bottom, top, logY, 5)) {
        element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: vertical(tick), y2: vertical(tick) }, svg);
        element("text", { x: LEFT - 8, y: vertical(tick) + 4, "text-anchor": "end" }, svg).textContent = written(tick, chart.style);
      }
      for (const tick of ticks(left, right, logX, Math.floor(width / 90))) {
        element("line", { class: "grid", x1: horizontal(tick), x2: horizontal(tick), y1: TOP, y2: HEIGHT - BOTTOM }, svg);
        const end = horizontal(tick) > width - RIGHT - 14;
        element("text", { x: horizontal(tick), y: HEIGHT - BOTTOM + 18, "text-anchor": end ? "end" : "middle" }, svg).textContent = short(tick);
      }
      const line = (places, values, attributes) => {
        const points = values.map((value, index) => [places[index], value]).filter(([x, y]) => (!logX || x > 0) && (!logY || y > 0));
        const path = points.map(([x, y]) => `${horizontal(x).toFixed(1)},${vertical(y).toFixed(1)}`).join(" ");
        if (points.length > 1) element("polyline", { points: path, ...attributes }, svg);
        if (points.length < 40)
          for (const [x, y] of points) element("circle", { cx: horizontal(x), cy: vertical(y), r: 2.2, style: attributes.style.replace("stroke", "fill"), opacity: attributes.class === "curve" ? 1 : 0.4 }, svg);
      };
      for (const curve of shown) {
        const style = `stroke:${curve.colour}`;
        if (curve.smooth.length) {
          line(placesOf(curve, ""), curve.values, { class: "curve raw", style });
          line(placesOf(curve, "smooth_"), curve.smooth, { class: "curve", style, "stroke-dasharray": curve.dashes });
        } else line(placesOf(curve, ""), curve.values, { class: "curve", style, "stroke-dasharray": curve.dashes });
      }
      for (const mark of chart.marks) {
        const x = horizontal(controls.axis.value === "step" ? mark.step : mark.tokens);
        const colour = `var(--curve-${runs.length > 1 ? mark.run % 6 : 1})`;
        const shape = element("path", { class: "mark", d: `M${x - 5},${TOP - 9}h10l-5,9z`, style: `fill:${colour}` }, svg);
        element("title", {}, shape).textContent = `Step ${mark.step} was skipped: ${mark.reason}`;
      }
      cursor = element("g", {}, svg);
      svg.addEventListener("pointermove", (event) => {
        const box = svg.getBoundingClientRect();
        const share = Math.min(Math.max((event.clientX - box.left - LEFT) / (width - LEFT - RIGHT), 0), 1);
        const all = stops(), wanted = logX ? left * (right / left) ** share : left + share * (right - left);
        if (all.length) read(all[nearest(all, wanted)]);
      });
      svg.addEventListener("pointerleave", () => read(null));
      svg.addEventListener("blur", () => read(null));
      svg.addEventListener("keydown", move);
      read(place);
    }

    const stops = () => [...new Set(curves.filter((curve) => curve.isShown).flatMap((curve) => placesOf(curve, "")))].sort((a, b) => a - b);

    function move(event) {
      const all = stops(), at = place === null ? -1 : nearest(all, place), far = Math.max(1, Math.round(all.length / 20));
      const to = { ArrowRight: at + 1, ArrowLeft: at < 0 ? all.length - 1 : at - 1, PageDown: at + far, PageUp: at - far, Home: 0, End: all.length - 1 }[event.key];
      if (event.key === "Escape") read(null);
      if (to === undefined || !all.length) return;
      event.preventDefault();
      read(all[Math.min(Math.max(to, 0), all.length - 1)]);
    }

    // Shows the values at a place; null shows none.
    function read(at) {
      place = at;
      cursor?.replaceChildren();
      readOut.textContent = "";
      if (at === null || !cursor) return;
      const x = horizontal(at), parts = [];
      element("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }, cursor);
      for (const curve of curves.filter((candidate) => candidate.isShown)) {
        const places = placesOf(curve, "");
        if (at < places[0] || at > places.at(-1)) continue;
        const index = nearest(places, at);
        let figure = written(curve.values[index], chart.style), height = curve.values[index];
        if (curve.smooth.length) {
          height = curve.smooth[nearest(placesOf(curve, "smooth_"), at)];
          figure += ` (smoothed ${written(height, chart.style)})`;
        }
        element("circle", { cx: x, cy: vertical(height), r: 3.5, style: `fill:${curve.colour}` }, cursor);
        parts.push(curves.length > 1 ? `${curve.label} ${figure}` : figure);
      }
      const where = controls.axis.value === "step" ? `step ${Math.round(at).toLocaleString("en")}` : `${short(at)} tokens`;
      readOut.textContent = `${where}: ${parts.join(", ")}`;
      for (const mark of chart.marks)
        if ((controls.axis.value === "step" ? mark.step : mark.tokens) === at) readOut.textContent += `; skipped: ${mark.reason}`;
    }

    new ResizeObserver(draw).observe(plot);
    for (const control of Object.values(controls)) control.addEventListener("change", () => { place = null; draw(); });
    draw();
  }

  for (const chart of charts) setUp(document.querySelector(`figure[data-chart="${chart.chart_id}"]`), chart);
})();
