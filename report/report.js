// Tables sort by a click on a column's head; rows without a figure stay at the end.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const down = head.getAttribute("aria-sort") !== "descending";
    const place = head.cellIndex;
    const key = (row) => row.cells[place].dataset.v ?? row.cells[place].textContent.trim();
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const numbers = !isNaN(x) && !isNaN(y);
      const difference = numbers ? x - y : x.localeCompare(y);
      return down ? -difference : difference;
    };
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...[...body.rows].sort(order));
  });
}
// Samples: those that hold a text, and where arms differ.
const filter = document.querySelector(".filter");
if (filter) {
  const [find, show, told] = filter.querySelectorAll("input, select, output");
  const samples = [...document.querySelectorAll("#read article")];
  filter.hidden = false;
  filter.addEventListener("input", () => {
    for (const one of samples) {
      one.hidden = !one.textContent.toLowerCase().includes(find.value.toLowerCase()) ||
        !one.dataset.differs.includes(show.value);
    }
    told.value = `${samples.filter((one) => !one.hidden).length} of ${samples.length}`;
  });
}
// Print shows what is folded, and folds it again.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const one of folded) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of folded) one.open = false;
});
