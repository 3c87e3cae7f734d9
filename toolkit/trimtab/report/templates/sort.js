for (const table of document.querySelectorAll("table")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column]?.dataset.sort ?? "";
      const rows = [...table.tBodies[0].rows];
      const known = rows.filter((row) => key(row) !== "");
      const numeric = known.every((row) => !isNaN(key(row)));
      known.sort((a, b) => (numeric ? key(a) - key(b) : key(a).localeCompare(key(b))));
      if (!up) known.reverse();
      table.tBodies[0].append(...known, ...rows.filter((row) => key(row) === ""));
    });
  });
}
