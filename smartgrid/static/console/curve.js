// Draws the power of a site: <section data-curve="ADDRESS" data-zone="ZONE"> with buttons of `data-span`, an element
// `.sgm-curve` to draw in, and one with `data-summary` for the same in words.
"use strict";
(() => {
  // Means of quarters and hours do not change every ten seconds.
  const EVERY_MS = { hour: 10_000, day: 60_000, week: 60_000 };
  const HEIGHT = 280;
  const KEPT = "sgm-curve-span";

  // As the page's own words have them, in either theme.
  const colour = (element, name) => getComputedStyle(element).getPropertyValue(name).trim();

  function begin(section) {
    const place = section.querySelector(".sgm-curve");
    const summary = section.querySelector("[data-summary]");
    const buttons = [...section.querySelectorAll("[data-span]")];
    const zone = section.dataset.zone || "UTC";
    let span = buttons[0].dataset.span;
    let plot = null;
    let shape = "";
    let asked = 0;
    let askedAt = 0;
    let newest = null;

    const clock = (options) => new Intl.DateTimeFormat("en-GB", { timeZone: zone, hourCycle: "h23", ...options });
    const hours = clock({ hour: "2-digit", minute: "2-digit" });
    const days = clock({ weekday: "short", day: "2-digit", hour: "2-digit", minute: "2-digit" });
    const moments = clock({ day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });
    const kw = (_, value) => (value === null || value === undefined ? "–" : `${value.toFixed(1)} kW`);

    // What can be shown: the name, its column, a colour of the page, and whether it is a line of dashes.
    function lines(curve) {
      const constant = (value) => curve.at.map(() => value);
      return [
        { label: "Devices", data: curve.devices, stroke: "--sgm-info", width: 2 },
        curve.meter && { label: "Connection", data: curve.meter, stroke: "--sgm-good", width: 2 },
        { label: "Commanded", data: curve.commanded, stroke: "--sgm-warn", width: 2, dash: [6, 4], stepped: true },
        curve.setpoint !== null && {
          label: "Loop setpoint now",
          data: constant(curve.setpoint),
          stroke: "--sgm-soft",
          width: 1,
          dash: [2, 3],
        },
        curve.limit !== null && {
          label: "Export limit",
          data: constant(curve.limit),
          stroke: "--sgm-bad",
          width: 1,
          dash: [10, 4],
        },
      ].filter(Boolean);
    }

    function draw(curve) {
      const shown = lines(curve);
      const data = [curve.at, ...shown.map((line) => line.data)];
      const now = `${shown.map((line) => line.label).join()} ${document.documentElement.className} ${curve.span}`;
      if (plot !== null && now === shape) {
        plot.setData(data);
        return;
      }
      if (plot !== null) plot.destroy();
      shape = now;
      const ink = colour(section, "--sgm-soft");
      const grid = { stroke: colour(section, "--sgm-line"), width: 1 };
      plot = new uPlot(
        {
          width: Math.max(240, place.clientWidth),
          height: HEIGHT,
          tzDate: (at) => uPlot.tzDate(new Date(at * 1000), zone),
          cursor: { drag: { x: false, y: false } },
          scales: { x: { time: true }, y: { range: (_, low, high) => uPlot.rangeNum(Math.min(0, low ?? 0), high ?? 1, 0.1, true) } },
          axes: [
            {
              stroke: ink,
              grid,
              ticks: grid,
              space: curve.span === "week" ? 90 : 60,
              values: (_, all) => all.map((at) => (curve.span === "week" ? days : hours).format(at * 1000)),
            },
            { stroke: ink, grid, ticks: grid, size: 64 },
          ],
          series: [
            { label: "Time", value: (_, at) => (at === null || at === undefined ? "–" : moments.format(at * 1000)) },
            ...shown.map((line) => ({
              label: line.label,
              stroke: colour(section, line.stroke),
              width: line.width,
              dash: line.dash,
              spanGaps: false,
              points: { show: false },
              paths: line.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
              value: kw,
            })),
          ],
        },
        data,
        place,
      );
    }

    async function load() {
      const mine = ++asked;
      askedAt = Date.now();
      try {
        const response = await fetch(`${section.dataset.curve}?span=${span}`, {
          credentials: "same-origin",
          redirect: "manual",
        });
        if (!response.ok) throw new Error(String(response.status));
        const curve = await response.json();
        // Whoever has pressed another button meanwhile wants that one.
        if (mine !== asked) return;
        newest = curve;
        draw(curve);
        if (summary.textContent !== curve.summary) summary.textContent = curve.summary;
      } catch {
        if (mine === asked) summary.textContent = "The curve may be old: it could not be fetched. It is asked for again.";
      }
    }

    function choose(chosen) {
      span = chosen;
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.span === span));
      try {
        sessionStorage.setItem(KEPT, span);
      } catch {
        // Then the next page begins with the hour.
      }
      load();
    }

    for (const button of buttons) button.addEventListener("click", () => choose(button.dataset.span));
    new ResizeObserver(() => {
      if (plot !== null && place.clientWidth > 0) plot.setSize({ width: place.clientWidth, height: HEIGHT });
    }).observe(place);
    // Another theme has other colours.
    new MutationObserver(() => newest !== null && draw(newest)).observe(document.documentElement, {
      attributes: true,
      attributeFilter: ["class"],
    });
    const isDue = () => !document.hidden && Date.now() - askedAt >= EVERY_MS[span];
    setInterval(() => isDue() && load(), 1000);
    document.addEventListener("visibilitychange", () => isDue() && load());

    let kept = null;
    try {
      kept = sessionStorage.getItem(KEPT);
    } catch {
      // As if nothing was kept.
    }
    choose(buttons.some((button) => button.dataset.span === kept) ? kept : span);
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("[data-curve]").forEach(begin));
})();
