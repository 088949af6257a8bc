// Draws a chart of each table, and looks now and then what is new. Without it the page is whole: the tables
// are what charts are made of. Nothing here turns a text into markup: values only become numbers and text.
"use strict";
(() => {
  const REFRESH_MS = 20000;
  const UNITS = {
    count: new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }),
    usd: new Intl.NumberFormat("en", { style: "currency", currency: "USD", maximumSignificantDigits: 3 }),
    seconds: { format: (value) => `${Number(value.toFixed(2))} s` },
  };
  // Steps of an axis that counts: 1, 2, 5, 10, 20, ...
  const WHOLE = Array.from({ length: 30 }, (_, n) => [1, 2, 5][n % 3] * 10 ** Math.floor(n / 3));
  const root = document.documentElement;
  root.classList.add("js"); // before the first paint, so that tables do not flash by
  const drawn = new Map();

  const read = (table) => {
    const columns = [...table.tHead.rows[0].cells].slice(1).map((cell) => ({
      label: cell.textContent,
      colour: cell.dataset.colour,
    }));
    const rows = [...table.tBodies[0].rows].map((row) => {
      const [head, ...cells] = row.cells;
      const found = cells.map((cell) => cell.querySelector("data"));
      return {
        label: head.textContent,
        short: head.querySelector("time").dataset.short,
        texts: cells.map((cell) => cell.textContent),
        values: found.map((data) => (data ? Number(data.value) : null)),
      };
    });
    return { columns, rows };
  };

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Each of the stacked bars reaches from the ground to the sum so far; the highest is drawn first.
  const stacked = ({ columns, rows }) => {
    const sums = columns.map((_, n) => rows.map((row) => row.values.slice(0, n + 1).reduce((a, b) => a + b, 0)));
    const bars = uPlot.paths.bars({ size: [0.72, 36] });
    const series = columns.map((column) => {
      const fill = colour(`--fill-${column.colour}`);
      return { fill, stroke: fill, width: 0, paths: bars, points: { show: false } };
    });
    return { data: sums.reverse(), series: series.reverse() };
  };

  const lines = ({ columns, rows }) => ({
    data: columns.map((_, n) => rows.map((row) => row.values[n])),
    series: columns.map((column, n) => {
      const stroke = colour(`--fill-${column.colour}`);
      const dash = n ? [6, 4] : undefined;
      return { stroke, width: 2, dash, spanGaps: false, points: { show: true, size: 6, fill: stroke } };
    }),
  });

  // A whole number of texts, as many as there is room for, always with the last one.
  const ticks = (count, width) => {
    const step = Math.max(1, Math.ceil((count * 58) / width));
    return Array.from({ length: count }, (_, n) => n).filter((n) => (count - 1 - n) % step === 0);
  };

  const draw = (section) => {
    const plot = section.querySelector(".plot");
    if (!plot) return;
    const readout = section.querySelector(".readout");
    const table = read(section.querySelector(".numbers table"));
    const kind = section.dataset.kind === "lines" ? lines(table) : stacked(table);
    const format = UNITS[section.dataset.unit];
    const count = table.rows.length;
    const axis = { stroke: colour("--muted"), font: "12px system-ui, sans-serif", ticks: { show: false } };
    const tell = (chart) => {
      const row = table.rows[chart.cursor.idx];
      readout.textContent = row
        ? `${row.label}: ${table.columns.map((column, n) => `${row.texts[n]} ${column.label}`).join(", ")}`
        : "";
    };
    const options = {
      width: plot.clientWidth,
      height: plot.clientHeight,
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      padding: [8, 20, 0, 0],
      scales: {
        x: { time: false, range: [-0.6, count - 0.4] },
        y: { range: (_, __, most) => [0, most > 0 ? most * 1.08 : 1] },
      },
      axes: [
        {
          ...axis,
          size: 28,
          grid: { show: false },
          splits: (chart) => ticks(count, chart.bbox.width / devicePixelRatio),
          values: (_, places) => places.map((n) => table.rows[n].short),
        },
        {
          ...axis,
          size: section.dataset.unit === "usd" ? 68 : 48,
          grid: { stroke: colour("--grid"), width: 1 },
          incrs: section.dataset.unit === "count" ? WHOLE : undefined,
          values: (_, values) => values.map((value) => format.format(value)),
        },
      ],
      series: [{}, ...kind.series],
      hooks: { setCursor: [tell] },
    };
    drawn.get(section.id)?.destroy();
    drawn.set(section.id, new uPlot(options, [table.rows.map((_, n) => n), ...kind.data], plot));
  };

  const drawSafely = (section) => {
    const numbers = section.querySelector(".numbers");
    try {
      draw(section);
      if (numbers) numbers.open = false;
    } catch (error) {
      section.classList.add("failed"); // the table stays
      console.error(error);
    }
    numbers?.classList.add("ready");
  };

  const charts = () => document.querySelectorAll(".chart");

  const fit = () => {
    for (const section of charts()) {
      const plot = section.querySelector(".plot");
      const chart = drawn.get(section.id);
      if (plot && chart && plot.clientWidth !== chart.width) {
        chart.setSize({ width: plot.clientWidth, height: plot.clientHeight });
      }
    }
  };

  // What is new

  let seen = Date.now();
  let timer = 0;

  const names = (page) => [...page.querySelectorAll("[data-part]")].map((section) => section.id).join();

  const take = (other) => {
    if (names(other) !== names(document)) {
      location.reload(); // other parts than before, such as the first chart
      return;
    }
    for (const section of other.querySelectorAll("[data-part]")) {
      const old = document.getElementById(section.id);
      // A part that somebody is in with the keyboard keeps still until the next time.
      if (old.querySelector(":focus-visible")) continue;
      const key = section.textContent.replace(/\s+/g, " ") + section.className;
      old.dataset.key ??= old.textContent.replace(/\s+/g, " ") + old.className;
      if (old.dataset.key === key) continue;
      const fresh = document.importNode(section, true);
      fresh.dataset.key = key;
      const open = old.querySelector(".numbers")?.open;
      old.replaceWith(fresh);
      if (fresh.classList.contains("chart")) {
        drawSafely(fresh);
        const numbers = fresh.querySelector(".numbers");
        if (numbers && open) numbers.open = true;
      }
    }
    document.title = other.title;
  };

  const tellNews = (text) => {
    const news = document.getElementById("news");
    if (news.textContent !== text) news.textContent = text;
  };

  const refresh = () => {
    // A document from XMLHttpRequest: parsed by the browser, and no script of it is ever run.
    const request = new XMLHttpRequest();
    request.open("GET", location.pathname + location.search);
    request.setRequestHeader("Accept", "text/html");
    request.responseType = "document";
    request.timeout = 15000;
    request.onload = () => {
      seen = Date.now();
      if (request.status === 200 && request.response) {
        take(request.response);
        tellNews("");
      } else {
        lost();
      }
    };
    request.onerror = request.ontimeout = lost;
    request.onloadend = plan;
    request.send();
  };

  const lost = () => {
    const at = new Date(seen).toLocaleTimeString();
    tellNews(`Askfirst does not answer; what you see is of ${at}. It is tried again by itself.`);
  };

  const plan = () => {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(refresh, REFRESH_MS);
  };

  document.addEventListener("DOMContentLoaded", () => {
    charts().forEach(drawSafely);
    new ResizeObserver(fit).observe(document.querySelector("main"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts().forEach(draw));
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) clearTimeout(timer);
      else if (Date.now() - seen > REFRESH_MS) refresh();
      else plan();
    });
    plan();
  });
})();
