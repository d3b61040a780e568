// Lets a table be sorted by a click on a heading; unknown cells stay last either way.
(() => {
  "use strict";
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    return "key" in cell.dataset ? (cell.dataset.key === "" ? null : Number(cell.dataset.key)) : cell.textContent;
  };
  const compare = (one, other) =>
    typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other), undefined, { numeric: true });

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const isDescending = heading.getAttribute("aria-sort") === "ascending";
        for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
        const keyed = [...body.rows].map((row) => [keyOf(row, column), row]);
        const known = keyed.filter(([key]) => key !== null).sort(([one], [other]) => (isDescending ? compare(other, one) : compare(one, other)));
        body.append(...[...known, ...keyed.filter(([key]) => key === null)].map(([, row]) => row));
      });
    });
  }
})();
