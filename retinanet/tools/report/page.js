
"use strict";

// Numbers as numbers, the largest first; texts by letter; what is not defined always last.
function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const key = (row) => {
    const cell = row.cells[column];
    if (cell.classList.contains("none")) return null;
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), undefined, { numeric: true });
  const rows = Array.from(body.rows, (row, place) => ({ row, place, key: key(row) }));
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
    return direction * compare(a.key, b.key) || a.place - b.place;
  });
  body.append(...rows.map((entry) => entry.row));
}

for (const table of document.querySelectorAll(".sortable table")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const other = first === "descending" ? "ascending" : "descending";
      const order = before === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      sortBy(table, column, order === "ascending" ? 1 : -1);
    });
  });
}

for (const filter of document.querySelectorAll(".filter")) {
  const rows = Array.from(filter.parentElement.querySelectorAll("tbody tr"));
  const box = filter.querySelector("input");
  filter.hidden = false; // without this script it would do nothing
  box.addEventListener("input", () => {
    const wanted = box.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    filter.querySelector("output").textContent = `${shown} of ${rows.length}`;
  });
}

const dialog = document.getElementById("enlarged");
let shown = null;

function enlarge(exhibit) {
  shown = exhibit;
  const copy = exhibit.cloneNode(true);
  copy.querySelector("button").setAttribute("aria-label", "Close");
  dialog.replaceChildren(copy);
  if (!dialog.open) dialog.showModal();
}

for (const button of document.querySelectorAll(".exhibit .views"))
  button.addEventListener("click", () => enlarge(button.closest(".exhibit")));
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
  if (step && shown[step]) enlarge(shown[step]);
});
