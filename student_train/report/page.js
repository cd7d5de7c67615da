"use strict";
// Sort a table by the column whose head is clicked; again turns it round. What has no value stays last.
for (const head of document.querySelectorAll("table.sortable th button")) {
  head.addEventListener("click", () => {
    const cell = head.closest("th");
    const column = [...cell.parentNode.children].indexOf(cell);
    const numeric = cell.classList.contains("numeric");
    const before = cell.getAttribute("aria-sort");
    const down = before === null ? numeric : before === "ascending";
    for (const other of cell.parentNode.children) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = cell.closest("table").tBodies[0];
    const key = (row) => row.cells[column].dataset.value;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      const difference = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -difference : difference;
    };
    body.append(...[...body.rows].sort(order));
  });
}
