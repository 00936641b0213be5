// Keeps the parts of a page live.
//
// <div data-live="ADDRESS" data-on="device,node" data-site="ID" data-every="10"> is fetched anew, and changed only
// where it differs, when one of these events happens (at that site, if it names one) and every so many seconds (10
// at least). Between two fetches of a part lies a second or more, however much happens.
"use strict";
(() => {
  const GAP_MS = 1000;
  const LEAST_EVERY_S = 10;
  const parts = () => document.querySelectorAll("[data-live]");
  const state = new WeakMap();

  const say = (text) => {
    const banner = document.getElementById("live-state");
    if (!banner) return;
    banner.hidden = text === "";
    if (banner.textContent !== text) banner.textContent = text;
  };

  const of = (part) => {
    if (!state.has(part)) state.set(part, { busy: false, again: false, at: 0, timer: null });
    return state.get(part);
  };

  // Whoever types, or has a dialog open inside, is not disturbed.
  const isHeld = (part) =>
    part.querySelector("dialog[open]") !== null ||
    (part.contains(document.activeElement) && document.activeElement.matches("input, select, textarea"));

  async function refresh(part) {
    const its = of(part);
    if (its.busy) {
      its.again = true;
      return;
    }
    its.busy = true;
    its.again = false;
    its.at = Date.now();
    try {
      const response = await fetch(part.dataset.live, {
        headers: { "X-Requested-With": "live" },
        credentials: "same-origin",
        redirect: "manual",
      });
      if (response.type === "opaqueredirect" || response.status === 401 || response.status === 403) {
        say("You are no longer logged in, or may no longer see this. Load the page again.");
      } else if (!response.ok) {
        say(`What you see may be old: the server answered ${response.status}. It is asked again.`);
      } else {
        const text = await response.text();
        if (!isHeld(part)) {
          Idiomorph.morph(part, text, { morphStyle: "innerHTML", ignoreActiveValue: true });
          part.dispatchEvent(new CustomEvent("sgm:refreshed", { bubbles: true }));
        }
        say("");
      }
    } catch {
      say("What you see may be old: the server cannot be reached. It is asked again.");
    } finally {
      its.busy = false;
      if (its.again) soon(part);
    }
  }

  function soon(part) {
    const its = of(part);
    if (its.timer !== null) return;
    const wait = Math.max(0, its.at + GAP_MS - Date.now());
    its.timer = setTimeout(() => {
      its.timer = null;
      refresh(part);
    }, wait);
  }

  function happened(kind, site) {
    for (const part of parts()) {
      const kinds = (part.dataset.on || "").split(",");
      const isItsSite = !part.dataset.site || !site || part.dataset.site === site;
      if (kinds.includes(kind) && isItsSite) soon(part);
    }
    document.dispatchEvent(new CustomEvent(`sgm:${kind}`, { detail: { site } }));
  }

  function listen(address) {
    const kinds = new Set([...parts()].flatMap((part) => (part.dataset.on || "").split(",")).filter(Boolean));
    if (kinds.size === 0) return;
    const sites = new Set([...parts()].map((part) => part.dataset.site || ""));
    const query = new URLSearchParams({ types: [...kinds].join(",") });
    if (sites.size === 1 && !sites.has("")) query.set("site_id", [...sites][0]);
    const source = new EventSource(`${address}?${query}`);
    for (const kind of kinds) {
      source.addEventListener(kind, (event) => {
        let site = "";
        try {
          site = JSON.parse(event.data).site_id || "";
        } catch {
          // Whatever it was, look.
        }
        happened(kind, site);
      });
    }
    source.addEventListener("reset", () => parts().forEach(soon));
    addEventListener("pagehide", () => source.close());
  }

  function tick() {
    if (document.hidden) return;
    for (const part of parts()) {
      const every = Math.max(LEAST_EVERY_S, Number(part.dataset.every) || LEAST_EVERY_S) * 1000;
      if (Date.now() - of(part).at >= every) soon(part);
    }
  }

  // --- countdowns: <time data-until="EPOCH SECONDS"> counts down to it by the server's clock.

  let ahead = null;
  function countdowns() {
    for (const element of document.querySelectorAll("[data-until]")) {
      const clock = element.closest("[data-now]");
      if (clock && clock.dataset.now !== clock.dataset.nowSeen) {
        clock.dataset.nowSeen = clock.dataset.now;
        ahead = Number(clock.dataset.now) - Date.now() / 1000;
      }
      const left = Math.max(0, Math.round(Number(element.dataset.until) - Date.now() / 1000 - (ahead || 0)));
      const minutes = Math.floor(left / 60);
      const text =
        left >= 3600
          ? `${Math.floor(left / 3600)} h ${String(minutes % 60).padStart(2, "0")} min`
          : left >= 60
            ? `${minutes} min ${String(left % 60).padStart(2, "0")} s`
            : `${left} s`;
      if (element.textContent !== text) element.textContent = text;
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const part of parts()) of(part).at = Date.now();
    const root = document.querySelector("[data-live-stream]");
    if (root && "EventSource" in window) listen(root.dataset.liveStream);
    setInterval(tick, 1000);
    setInterval(countdowns, 1000);
    countdowns();
    document.addEventListener("sgm:refreshed", countdowns);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) parts().forEach(soon);
    });
  });

  window.sgm = { refresh: (part) => refresh(part), say };
})();
