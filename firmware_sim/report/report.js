"use strict";
// Draws the report's plots from the data in the page, with uPlot. It asks nobody for anything.
(() => {
  const report = JSON.parse(document.getElementById("data").textContent);
  const series = report.series;
  const HEIGHT = 240;
  const OTHERS = ["blue", "amber", "teal", "violet", "pink", "green", "red", "brown", "slate", "grey"];
  const COLOURS = {
    off: "grey", booting: "amber", without_power: "violet", waiting: "red", connected: "green", crashed: "slate",
    idle: "grey", received: "slate", verified: "teal", downloading: "blue", installing: "violet",
    rebooting: "amber", committed: "green", rolled_back: "brown", failed: "red", rejected: "pink",
    cancelled: "slate",
  };
  const STATES = ["committed", "rolled_back", "failed", "rejected", "cancelled", "rebooting", "installing",
    "downloading", "verified", "received", "idle"];
  const PHASES = ["connected", "waiting", "booting", "without_power", "crashed", "off"];

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (name) => () => css(`--c-${name}`);
  const soft = (name) => () => css(`--c-${name}`) + "55";
  const words = (name) => name.replaceAll("_", " ");
  const trim = (number) => String(Number(number.toPrecision(3)));
  const count = (number) => (number == null ? "–" : number.toLocaleString("en").replaceAll(",", " "));
  const rate = (number) => (number == null ? "–" : trim(number));
  const ms = (number) => (number == null ? "–" : number >= 1000 ? `${trim(number / 1000)} s` : `${trim(number)} ms`);
  const clock = (seconds) => {
    if (seconds == null) return "–";
    if (seconds < 180) return `${trim(seconds)} s`;
    const whole = Math.round(seconds);
    return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")} min`;
  };

  // What happened to the whole fleet by the clock: a line and a word.
  function drawMarks(u) {
    const {ctx, bbox} = u;
    const ratio = uPlot.pxRatio;
    let free = -Infinity;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = css("--quiet");
    ctx.lineWidth = ratio;
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.textBaseline = "top";
    ctx.textAlign = "left";
    for (const mark of report.marks) {
      const x = Math.round(u.valToPos(mark.at_s, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.setLineDash([3 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const width = ctx.measureText(mark.what).width;
      if (x > free && x + width + 6 * ratio < bbox.left + bbox.width) {
        ctx.fillText(mark.what, x + 4 * ratio, bbox.top + 2 * ratio);
        free = x + width + 10 * ratio;
      }
    }
    ctx.restore();
  }

  function axes(values, size) {
    const common = {
      stroke: () => css("--quiet"),
      font: "12px system-ui, sans-serif",
      grid: {stroke: () => css("--grid"), width: 1},
      ticks: {stroke: () => css("--line"), width: 1, size: 5},
    };
    return [
      {...common, space: 70, size: 34, values: (u, splits) => splits.map(clock)},
      {...common, size, values: (u, splits) => splits.map((one) => (one == null ? "" : values(one)))},
    ];
  }

  function plot(id, columns, lines, {format, isLog = false, hooks = {}, bands = []}) {
    const place = document.querySelector(`#${id} .plot`);
    place.replaceChildren();
    if (!columns.some((column) => column.some((value) => value))) {
      const note = document.createElement("p");
      note.textContent = "Nothing of this happened.";
      place.append(note);
      return;
    }
    const u = new uPlot({
      width: place.clientWidth,
      height: HEIGHT,
      scales: {
        x: {time: false},
        y: isLog
          ? {distr: 3, range: (u, low, high) => [10 ** Math.floor(Math.log10(low || 1)), 10 ** Math.ceil(Math.log10((high || 1) * 1.0001))]}
          : {range: (u, low, high) => [0, Math.max(1, high * 1.08)]},
      },
      axes: axes(format, 64),
      cursor: {sync: {key: "run"}, y: false, points: {size: 6}},
      bands,
      legend: {markers: {width: 0, fill: (u, index) => u.series[index].stroke(u, index)}},
      series: [{label: "at", value: (u, value) => clock(value ?? series.at_s.at(-1))}, ...lines],
      hooks: {draw: [drawMarks], ...hooks},
    }, [series.at_s, ...columns], place);
    const fit = () => u.setSize({width: place.clientWidth, height: HEIGHT});
    new ResizeObserver(() => requestAnimationFrame(fit)).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      for (const [index, marker] of place.querySelectorAll(".u-series:not(:first-child) .u-marker").entries()) {
        marker.style.background = u.series[index + 1].stroke(u);
      }
      u.redraw(false, true);
    });
    return u;
  }

  // A value between two gaps is no line: it gets a point. Short gaps are no gaps.
  const GAP_MIN_PX = 24;
  const isLone = (column, at) => column[at] != null && column[at - 1] == null && column[at + 1] == null;

  function line(label, name, column, format, {width = 1.5, dash, paths} = {}) {
    const lone = column.flatMap((value, at) => (isLone(column, at) ? [at] : []));
    const last = column.findLast((value) => value != null);
    return {
      label: words(label),
      stroke: colour(name),
      width,
      dash,
      paths,
      gaps: (u, index, from, to, gaps) => gaps.filter(([start, end]) => end - start > GAP_MIN_PX * uPlot.pxRatio),
      points: {show: lone.length > 0, size: 4, width: 0, fill: colour(name), filter: () => lone},
      value: (u, value, index, at) => format(at == null ? last : value),
    };
  }

  function quantiles(id, sets) {
    const columns = [], lines = [];
    for (const [label, values, name, dash] of sets) {
      columns.push(values);
      lines.push(line(label, name, values, ms, {dash}));
    }
    plot(id, columns, lines, {format: ms, isLog: true});
  }

  // Columns on top of each other: what is drawn are sums, what the legend says are the values.
  function stacked(id, columns, order) {
    const names = order.filter((name) => columns[name]?.some((value) => value));
    names.push(...Object.keys(columns).filter((name) => !order.includes(name)));
    const sums = (shown) => {
      const total = new Array(series.at_s.length).fill(0);
      return names.map((name, index) => {
        if (shown[index]) columns[name].forEach((value, at) => { total[at] += value; });
        return shown[index] ? total.slice() : total.map(() => null);
      });
    };
    const between = (shown) => {
      const there = shown.flatMap((is, index) => (is ? [index + 1] : []));
      return there.slice(1).map((upper, index) => ({series: [upper, there[index]]}));
    };
    const all = names.map(() => true);
    const lines = names.map((name) => ({
      label: words(name),
      stroke: colour(COLOURS[name] ?? "slate"),
      fill: soft(COLOURS[name] ?? "slate"),
      width: 1,
      points: {show: false},
      value: (u, value, index, at) => count(at == null ? columns[name].at(-1) : columns[name][at]),
    }));
    plot(id, sums(all), lines, {
      format: count,
      bands: between(all),
      hooks: {
        setSeries: [(u, index, change) => {
          if (change.show == null) return;
          const shown = names.map((_, at) => u.series[at + 1].show);
          u.delBand(null);
          between(shown).forEach((band) => u.addBand(band));
          u.setData([series.at_s, ...sums(shown)]);
        }],
      },
    });
  }

  quantiles("latency", [
    ["p50", series.latency_ms.p50, "blue"],
    ["p90", series.latency_ms.p90, "amber"],
    ["p99", series.latency_ms.p99, "red"],
  ]);
  quantiles("trips", [
    ["report p50", series.round_trip_ms.p50, "blue"],
    ["report p99", series.round_trip_ms.p99, "blue", [5, 4]],
    ["welcome p50", series.welcome_ms.p50, "green"],
    ["welcome p99", series.welcome_ms.p99, "green", [5, 4]],
  ]);
  stacked("phases", series.phases, PHASES);
  stacked("states", series.states, STATES);
  plot("connects", [series.connects_per_s, series.failed_connects_per_s], [
    line("welcomed", "green", series.connects_per_s, rate),
    line("failed", "red", series.failed_connects_per_s, rate),
  ], {format: rate});
  const stepped = uPlot.paths.stepped({align: 1});
  const reasons = Object.keys(series.refused).sort((a, b) => series.refused[b].at(-1) - series.refused[a].at(-1));
  plot("refused", reasons.map((name) => series.refused[name]), reasons.map(
    (name, index) => line(name, OTHERS[index % OTHERS.length], series.refused[name], count, {paths: stepped}),
  ), {format: count});

  for (const button of document.querySelectorAll(".command button")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "Copied";
    });
  }
})();
