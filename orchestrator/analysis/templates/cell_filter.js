// SPDX-License-Identifier: GPL-2.0-only
// Narrows the table of cells; without scripts the page shows all of them. The filter is part of the address
// (#cells?text=...), so that a link can point at what somebody saw.
"use strict";
(() => {
  const form = document.getElementById("cell-filter");
  const rows = [...document.querySelectorAll("#cell-table tbody tr")];
  const text = form.elements.text, outcome = form.elements.outcome, count = form.querySelector("output");
  const apply = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const said = row.textContent.toLowerCase();
      const wanted = !outcome.value || (outcome.value === "not-ok" ? row.dataset.outcome !== "ok" : row.dataset.outcome === outcome.value);
      row.hidden = !(wanted && words.every((word) => said.includes(word)));
      shown += !row.hidden;
    }
    count.value = `${shown} of ${rows.length} cells`;
  };
  form.hidden = false;
  const changed = () => {
    apply();
    const asked = new URLSearchParams(new FormData(form));
    history.replaceState(null, "", `#cells?${asked}`);
  };
  form.addEventListener("input", changed);
  form.addEventListener("change", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  const asked = new URLSearchParams(location.hash.split("?")[1] || "");
  text.value = asked.get("text") || "";
  outcome.value = asked.get("outcome") || "";
  if (outcome.selectedIndex < 0) outcome.selectedIndex = 0;
  if (location.hash.startsWith("#cells")) document.getElementById("cells").scrollIntoView();
  apply();
})();
