// A day of a schedule: moves, selects, fills and copies in the grid of quarter hours, and draws them as a curve.
// Without it the grid is a plain form.
"use strict";
(() => {
  const ONE_QUARTER_S = 900;
  const DEEPEST_UNDO = 100;

  document.addEventListener("DOMContentLoaded", () => {
    const form = document.getElementById("day-form");
    const table = document.getElementById("slots");
    if (!form || !table) return;
    const cells = [...table.querySelectorAll(".sgm-slot")];
    // What was planned when the editing began.
    const began = JSON.parse(form.elements.based_on.value);
    const isEditable = cells.some((cell) => !cell.readOnly);
    const state = document.getElementById("slots-state");
    const undoButton = document.getElementById("undo");
    // Where a selection begins and ends, both inclusive, in the order of the day.
    let anchor = null;
    let head = null;
    const undone = [];
    // How far the server's clock is ahead of this one, in seconds.
    const ahead = Number(form.dataset.now) - Date.now() / 1000;

    const number = (text) => {
      const trimmed = text.trim().replace(",", ".");
      return trimmed === "" || !Number.isFinite(Number(trimmed)) ? null : Number(trimmed);
    };
    const isChanged = (cell, at) =>
      cell.value.trim() === "" ? began[at] !== null : number(cell.value) !== began[at];
    const chosen = () => (anchor === null ? [] : range(anchor, head));
    const range = (one, other) => {
      const [first, last] = one <= other ? [one, other] : [other, one];
      return Array.from({ length: last - first + 1 }, (_, at) => first + at);
    };

    // --- what is seen -----------------------------------------------------------------------------------

    function mark() {
      const inside = new Set(anchor === head ? [] : chosen());
      let changed = 0;
      cells.forEach((cell, at) => {
        const differs = isChanged(cell, at);
        changed += differs ? 1 : 0;
        cell.classList.toggle("sgm-slot-chosen", inside.has(at));
        cell.classList.toggle("sgm-slot-changed", differs);
      });
      const said = [];
      if (inside.size > 1) said.push(`${inside.size} quarter hours selected`);
      if (changed) said.push(`${changed} changed, not saved`);
      const text = said.join(", ");
      if (state.textContent !== text) state.textContent = text;
      if (undoButton) undoButton.hidden = undone.length === 0;
      draw();
    }

    function now() {
      const at = Date.now() / 1000 + ahead;
      for (const cell of cells) {
        const begins = Number(cell.dataset.begins);
        const isNow = begins <= at && at < begins + ONE_QUARTER_S;
        if (isNow === cell.classList.contains("sgm-slot-now")) continue;
        cell.classList.toggle("sgm-slot-now", isNow);
        const label = cell.getAttribute("aria-label").replace(/, now$/, "");
        cell.setAttribute("aria-label", isNow ? `${label}, now` : label);
        if (isNow) cell.setAttribute("aria-current", "time");
        else cell.removeAttribute("aria-current");
      }
    }

    // --- changing ---------------------------------------------------------------------------------------

    function remember() {
      undone.push(cells.map((cell) => cell.value));
      if (undone.length > DEEPEST_UNDO) undone.shift();
    }

    function put(places, text) {
      for (const at of places) {
        if (cells[at] && !cells[at].readOnly) cells[at].value = typeof text === "function" ? text(at) : text;
      }
      mark();
    }

    function undo() {
      const before = undone.pop();
      if (before) put(before.keys(), (at) => before[at]);
    }

    function go(at, { selects = false } = {}) {
      const there = Math.max(0, Math.min(cells.length - 1, at));
      head = there;
      if (!selects || anchor === null) anchor = there;
      cells[there].focus({ preventScroll: false });
      if (!selects) cells[there].select();
      mark();
    }

    // The cell above or below has the same minute; where the clock jumps, the nearest there is.
    function vertical(at, by) {
      const row = cells[at].closest("tr");
      const other = by > 0 ? row.nextElementSibling : row.previousElementSibling;
      if (!other) return at;
      const column = cells[at].closest("td").cellIndex;
      const found = other.cells[column]?.querySelector(".sgm-slot") || other.querySelector(".sgm-slot");
      return found ? cells.indexOf(found) : at;
    }

    table.addEventListener("focusin", (event) => {
      const at = cells.indexOf(event.target);
      if (at < 0) return;
      // (By Tab, by a click, or by `go`, which has set both already.)
      if (head !== at) {
        anchor = head = at;
        mark();
      }
      if (isEditable && !cells[at].readOnly) event.target.closest("td").append(handle);
    });

    let typing = null;
    table.addEventListener("beforeinput", (event) => {
      const at = cells.indexOf(event.target);
      if (at >= 0 && typing !== at) {
        typing = at;
        remember();
      }
    });
    table.addEventListener("focusout", () => (typing = null));
    table.addEventListener("input", (event) => {
      const places = chosen();
      if (places.length > 1) put(places, event.target.value);
      else mark();
    });

    table.addEventListener("keydown", (event) => {
      const at = cells.indexOf(event.target);
      if (at < 0 || event.isComposing) return;
      const selects = event.shiftKey;
      const from = head ?? at;
      const moves = { ArrowLeft: from - 1, ArrowRight: from + 1, ArrowUp: vertical(from, -1), ArrowDown: vertical(from, 1) };
      const control = event.ctrlKey || event.metaKey;
      if (event.key in moves && !control && !event.altKey) {
        // Inside of what is being typed the arrows stay those of the text.
        const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
        if (sideways && typing === at && !selects && caretInside(event)) return;
        event.preventDefault();
        go(moves[event.key], { selects });
      } else if (control && event.key === "Home") {
        event.preventDefault();
        go(0, { selects });
      } else if (control && event.key === "End") {
        event.preventDefault();
        go(cells.length - 1, { selects });
      } else if (event.key === "Enter") {
        // To save is a button: a day is not sent by a slip.
        event.preventDefault();
        go(at + (selects ? -1 : 1));
      } else if (event.key === "Escape") {
        go(at);
      } else if (event.key === "Delete" || (event.key === "Backspace" && chosen().length > 1)) {
        if (typing === at && chosen().length < 2 && caretInside(event)) return;
        event.preventDefault();
        remember();
        put(chosen(), "");
      } else if (control && event.key.toLowerCase() === "a") {
        event.preventDefault();
        anchor = 0;
        head = cells.length - 1;
        mark();
      } else if (control && event.key.toLowerCase() === "z" && undone.length) {
        event.preventDefault();
        undo();
      }
    });

    function caretInside(event) {
      const { selectionStart: start, selectionEnd: end, value } = event.target;
      if (start !== end) return false;
      if (event.key === "ArrowLeft") return start > 0;
      return start < value.length;
    }

    table.addEventListener("copy", (event) => {
      const places = chosen();
      if (cells.indexOf(event.target) < 0 || places.length === 0) return;
      event.preventDefault();
      event.clipboardData.setData("text/plain", places.map((at) => cells[at].value.trim()).join("\n"));
    });

    // One value fills the selection; several go from where it begins, as a spreadsheet's rows or columns have them.
    table.addEventListener("paste", (event) => {
      const at = cells.indexOf(event.target);
      if (at < 0) return;
      const text = event.clipboardData.getData("text/plain").replace(/\r?\n$/, "");
      const values = text.split(/\r?\n|\t|;/).map((one) => one.trim());
      const places = chosen();
      event.preventDefault();
      remember();
      if (values.length === 1) put(places, values[0]);
      else {
        const first = Math.min(...places);
        put(values.map((_, by) => first + by), (place) => values[place - first]);
      }
    });

    // --- pointers: the dot of a field fills others with its value, a mouse's drag over fields selects ------

    const handle = document.createElement("span");
    handle.className = "sgm-slot-handle";
    handle.setAttribute("aria-hidden", "true");
    const under = (event) => cells.indexOf(document.elementFromPoint(event.clientX, event.clientY));

    handle.addEventListener("pointerdown", (event) => {
      const from = head;
      if (from === null) return;
      event.preventDefault();
      event.stopPropagation();
      handle.setPointerCapture(event.pointerId);
      const before = cells.map((cell) => cell.value);
      const value = before[from];
      remember();
      const move = (moved) => {
        const at = under(moved);
        if (at < 0) return;
        anchor = from;
        head = at;
        const inside = new Set(range(from, at));
        put(cells.keys(), (place) => (inside.has(place) ? value : before[place]));
      };
      const end = (ended) => {
        handle.removeEventListener("pointermove", move);
        if (ended.type === "pointercancel") undo();
      };
      handle.addEventListener("pointermove", move);
      handle.addEventListener("pointerup", end, { once: true });
      handle.addEventListener("pointercancel", end, { once: true });
    });

    table.addEventListener("pointerdown", (event) => {
      const from = cells.indexOf(event.target);
      // A finger that moves here scrolls the page.
      if (from < 0 || event.pointerType === "touch" || event.button !== 0) return;
      if (event.shiftKey && anchor !== null) {
        event.preventDefault();
        go(from, { selects: true });
        return;
      }
      anchor = head = from;
      const move = (moved) => {
        const at = under(moved);
        if (at < 0 || at === head) return;
        moved.preventDefault();
        head = at;
        getSelection()?.removeAllRanges();
        mark();
      };
      addEventListener("pointermove", move);
      addEventListener("pointerup", () => removeEventListener("pointermove", move), { once: true });
    });

    // --- the form beside the grid --------------------------------------------------------------------------

    document.getElementById("fill")?.addEventListener("click", (event) => {
      const first = Number(document.getElementById("fill-from").value);
      const end = Number(document.getElementById("fill-until").value);
      const value = document.getElementById("fill-value").value.trim();
      // What is wrong with it the server says.
      if (end <= first || (value !== "" && number(value) === null)) return;
      event.preventDefault();
      remember();
      put(range(first, end - 1), value);
    });
    undoButton?.addEventListener("click", undo);

    let isSent = false;
    form.addEventListener("submit", () => (isSent = true));
    addEventListener("beforeunload", (event) => {
      if (!isSent && cells.some(isChanged)) event.preventDefault();
    });

    // --- the curve -----------------------------------------------------------------------------------------

    const place = document.getElementById("day-curve");
    let plot = null;
    const data = () => {
      const at = cells.map((cell) => Number(cell.dataset.begins));
      const values = cells.map((cell) => number(cell.value));
      // The last quarter hour has an end too.
      return [[...at, at[at.length - 1] + ONE_QUARTER_S], [...values, values[values.length - 1]]];
    };
    const colour = (name) => getComputedStyle(place).getPropertyValue(name).trim();

    function plotted() {
      if (!place || !("uPlot" in window)) return;
      plot?.destroy();
      const axis = { stroke: colour("--sgm-soft"), grid: { stroke: colour("--sgm-line") }, ticks: { stroke: colour("--sgm-line") } };
      plot = new uPlot(
        {
          width: Math.max(240, place.clientWidth),
          height: 260,
          tzDate: (at) => uPlot.tzDate(new Date(at * 1000), form.dataset.zone),
          legend: { show: true },
          scales: { y: { range: (_, least, most) => (least === null ? [0, 100] : [Math.min(0, least), Math.max(100, most)]) } },
          axes: [{ ...axis, values: (own, ticks) => ticks.map((at) => clock(at)) }, { ...axis, size: 48 }],
          series: [
            { label: "At", value: (_, at) => (at === null ? "–" : clock(at)) },
            {
              label: "Setpoint",
              stroke: colour("--sgm-link"),
              width: 2,
              paths: uPlot.paths.stepped({ align: 1 }),
              points: { show: false },
              value: (_, value) => (value === null ? "by default" : String(value)),
            },
          ],
          hooks: {
            draw: [
              (drawn) => {
                const at = Date.now() / 1000 + ahead;
                if (at < drawn.scales.x.min || at > drawn.scales.x.max) return;
                const x = Math.round(drawn.valToPos(at, "x", true));
                const { ctx, bbox } = drawn;
                ctx.save();
                ctx.strokeStyle = ctx.fillStyle = colour("--sgm-warn");
                ctx.lineWidth = 2 * devicePixelRatio;
                ctx.setLineDash([6, 4]);
                ctx.beginPath();
                ctx.moveTo(x, bbox.top);
                ctx.lineTo(x, bbox.top + bbox.height);
                ctx.stroke();
                ctx.font = `${12 * devicePixelRatio}px sans-serif`;
                ctx.textAlign = x > bbox.left + bbox.width / 2 ? "right" : "left";
                ctx.fillText(" now ", x, bbox.top + 12 * devicePixelRatio);
                ctx.restore();
              },
            ],
          },
        },
        data(),
        place,
      );
    }

    const shown = new Intl.DateTimeFormat("en-GB", { timeZone: form.dataset.zone, hour: "2-digit", minute: "2-digit" });
    const clock = (at) => shown.format(new Date(at * 1000));
    function draw() {
      plot?.setData(data());
    }

    plotted();
    mark();
    now();
    setInterval(() => {
      now();
      plot?.redraw(false);
    }, 10000);
    if (place && "ResizeObserver" in window) {
      new ResizeObserver(() => plot?.setSize({ width: Math.max(240, place.clientWidth), height: 260 })).observe(place);
    }
    // Another theme has other colours.
    new MutationObserver(plotted).observe(document.documentElement, { attributes: true, attributeFilter: ["class"] });
  });
})();
