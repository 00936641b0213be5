"use strict";

// What somebody has chosen stays chosen when the list is fetched anew.
(() => {
  const chosen = new Set();

  document.addEventListener("change", (event) => {
    if (!event.target.matches("input[name=alarm]")) return;
    if (event.target.checked) chosen.add(event.target.value);
    else chosen.delete(event.target.value);
  });

  document.addEventListener("sgm:refreshed", () => {
    for (const box of document.querySelectorAll("input[name=alarm]")) box.checked = chosen.has(box.value);
  });
})();
