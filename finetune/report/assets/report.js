// Enhances the page; everything on it can be read without this script.
(() => {
  "use strict";
  // tables ------------------------------------------------------------------------------------
  function getKey(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  }

  function sortTable(table, column, header) {
    const isNumber = header.dataset.sort === "number";
    const first = isNumber ? "descending" : "ascending";
    const current = header.getAttribute("aria-sort");
    const other = first === "ascending" ? "descending" : "ascending";
    const order = current === first ? other : first;
    const sign = order === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const rows = [...body.rows];
    rows.sort((a, b) => {
      const [one, two] = [getKey(a, column), getKey(b, column)];
      if (!isNumber) return sign * one.localeCompare(two, undefined, { numeric: true });
      const [x, y] = [one === "" ? NaN : Number(one), two === "" ? NaN : Number(two)];
      // undefined values come last in both orders
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return sign * (x - y);
    });
    body.append(...rows);
    for (const cell of table.tHead.rows[0].cells) {
      if (cell.dataset.sort) cell.setAttribute("aria-sort", cell === header ? order : "none");
    }
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      if (!header.dataset.sort) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sortTable(table, column, header));
      header.append(button);
      if (!header.hasAttribute("aria-sort")) header.setAttribute("aria-sort", "none");
    });
  }

  // boxes that scroll can be reached by keyboard
  function markScrollBoxes() {
    for (const box of document.querySelectorAll(".table-box, pre")) {
      if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }

  // navigation --------------------------------------------------------------------------------
  const links = new Map();
  for (const link of document.querySelectorAll(".page-nav a")) links.set(link.hash.slice(1), link);
  const sections = [...document.querySelectorAll("main > section")];

  function markSection() {
    const passed = sections.filter((section) => section.getBoundingClientRect().top < 160);
    const current = passed.at(-1) ?? sections[0];
    for (const [name, link] of links) {
      if (current && name === current.id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  // charts ------------------------------------------------------------------------------------
  const plots = [];
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);

  function resolveColor(color) {
    probe.style.color = color.startsWith("--") ? `var(${color})` : color;
    return getComputedStyle(probe).color;
  }

  function formatValue(value, kind) {
    if (value === null || value === undefined) return "";
    if (kind === "percent") return `${(value * 100).toFixed(1)}%`;
    if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1).replace("e-0", "e-");
    return String(Number(value.toPrecision(3)));
  }

  function formatTicks(kind) {
    return (plot, ticks) =>
      ticks.map((tick) => {
        if (tick === null) return "";
        if (kind === "percent") return `${Number((tick * 100).toPrecision(4))}%`;
        if (tick !== 0 && Math.abs(tick) < 1e-3) return tick.toExponential().replace("e-0", "e-");
        return String(Number(tick.toPrecision(6)));
      });
  }

  // phases behind the lines, and the best epoch
  function drawFrame(data) {
    return (plot) => {
      const { ctx, bbox } = plot;
      ctx.save();
      const ratio = window.devicePixelRatio || 1;
      data.bands.forEach(([first, last, label], number) => {
        const left = plot.valToPos(first, "x", true);
        const width = plot.valToPos(last, "x", true) - left;
        ctx.fillStyle = resolveColor(`--band-${number % 2}`);
        ctx.fillRect(left, bbox.top, width, bbox.height);
        ctx.fillStyle = resolveColor("--muted");
        ctx.font = `${11 * ratio}px ${getComputedStyle(document.body).fontFamily}`;
        ctx.textAlign = "left";
        ctx.textBaseline = "alphabetic";
        let text = label;
        while (text && ctx.measureText(text).width > width - 6 * ratio) {
          text = text.length > 4 ? `${text.replace("\u2026", "").slice(0, -1).trimEnd()}\u2026` : "";
        }
        ctx.fillText(text, left + 4 * ratio, bbox.top - 5 * ratio);
      });
      if (data.mark !== null) {
        const x = plot.valToPos(data.mark, "x", true);
        ctx.strokeStyle = resolveColor("--text");
        ctx.globalAlpha = 0.7;
        ctx.setLineDash([2 * ratio, 3 * ratio]);
        ctx.lineWidth = 1.2 * ratio;
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
      }
      ctx.restore();
    };
  }

  function buildOptions(data, width, values) {
    const muted = () => resolveColor("--muted");
    const grid = { stroke: () => resolveColor("--line"), width: 1 };
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const isLog = data.kind === "log";
    return {
      width,
      height: 270,
      padding: [22, 8, 0, 0],
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, y: false, points: { size: 7 } },
      scales: {
        x: { time: false, range: () => data.xRange },
        y: { distr: isLog ? 3 : 1, range: () => data.range },
      },
      axes: [
        {
          stroke: muted, font, size: 20, label: data.xLabel, labelFont: font, labelSize: 16,
          grid: { show: false }, ticks: { show: false }, gap: 4, splits: () => data.xTicks,
        },
        {
          stroke: muted, font, grid, size: 52, gap: 4, ticks: { show: false },
          values: formatTicks(data.kind), splits: () => data.yTicks, filter: (plot, ticks) => ticks,
        },
      ],
      series: [
        {},
        ...data.series.map((line) => ({
          label: line.label,
          stroke: () => resolveColor(line.color),
          width: line.dash.length || line.isFaint ? 1.5 : 2,
          alpha: line.isFaint ? 0.45 : 1,
          dash: line.dash,
          spanGaps: false,
          points: { show: data.hasDots && !line.dash.length, size: 5, fill: () => resolveColor(line.color) },
        })),
      ],
      hooks: {
        drawClear: [drawFrame(data)],
        setCursor: [
          (plot) => {
            const { idx } = plot.cursor;
            data.series.forEach((line, number) => {
              const isKnown = idx !== null && idx !== undefined;
              values[number].textContent = isKnown ? formatValue(line.values[idx], data.kind) : "";
            });
          },
        ],
      },
    };
  }

  function buildChart(box) {
    const name = box.dataset.chart;
    const data = JSON.parse(document.querySelector(`script[data-for="${name}"]`).textContent);
    const entries = [...document.querySelectorAll(`[data-legend="${name}"] > li:not(.legend-mark)`)];
    const values = entries.map((entry) => entry.querySelector(".legend-value"));
    box.hidden = false;
    const columns = [data.x, ...data.series.map((line) => line.values)];
    const plot = new uPlot(buildOptions(data, box.clientWidth, values), columns, box);
    entries.forEach((entry, number) => {
      const text = entry.querySelector(".legend-entry");
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      text.replaceWith(button);
      button.append(text);
      button.addEventListener("click", () => {
        const show = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(show));
        plot.setSeries(number + 1, { show });
      });
    });
    plots.push({ plot, box });
  }

  function redrawCharts() {
    for (const { plot } of plots) plot.redraw();
  }

  function resizeCharts() {
    for (const { plot, box } of plots) {
      if (box.clientWidth && box.clientWidth !== plot.width) {
        plot.setSize({ width: box.clientWidth, height: 270 });
      }
    }
  }

  // charts are drawn in the colours of the theme
  new MutationObserver(redrawCharts).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);
  document.querySelectorAll(".chart-canvas").forEach(buildChart);
  window.addEventListener("resize", () => { resizeCharts(); markScrollBoxes(); });
  window.addEventListener("scroll", markSection, { passive: true });
  // closed details are printed, too
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) {
      details.dataset.opened = "print";
      details.open = true;
    }
  });
  window.addEventListener("afterprint", () => {
    for (const details of document.querySelectorAll("details[data-opened]")) {
      delete details.dataset.opened;
      details.open = false;
    }
  });
  markSection();
  markScrollBoxes();
})();
