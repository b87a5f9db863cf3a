// Tables: a button in each heading sorts, missing values go last either way, and all rows copy as TSV.
// A column is {label, value(row), cell(row)?, number?, text(row)?, kind?, hint?}: `value` sorts, and copies unless `text` is
// given; what a label cannot say stands under the table.

const PAGE = 100; // rows drawn at once

function table({ caption, columns, rows, sorted = null, empty = "nothing here" }) {
  let order = sorted;
  let shown = PAGE;
  const body = h("tbody");
  const more = h("button", { type: "button", class: "quiet", click: () => ((shown += PAGE * 5), draw()) });
  const headings = columns.map((column, index) =>
    h("th", { scope: "col", class: column.number ? "number" : (column.kind ?? null) },
      h("button", { type: "button", click: () => {
        order = { index, down: order?.index === index ? !order.down : Boolean(column.number) };
        draw();
      } }, column.label, h("span", { class: "arrow", "aria-hidden": "true" }))));

  function inOrder() {
    if (!order) return rows;
    const { value } = columns[order.index];
    const keyed = rows.map((row) => [value(row), row]);
    const lacks = (key) => key === null || key === undefined || key === "" || Number.isNaN(key);
    keyed.sort(([a], [b]) => {
      if (lacks(a) || lacks(b)) return lacks(a) - lacks(b);
      const least = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
      return order.down ? -least : least;
    });
    return keyed.map(([, row]) => row);
  }

  function draw() {
    headings.forEach((heading, index) => {
      const here = order?.index === index;
      heading.setAttribute("aria-sort", here ? (order.down ? "descending" : "ascending") : "none");
      heading.querySelector(".arrow").textContent = here ? (order.down ? " ↓" : " ↑") : "";
    });
    const all = inOrder();
    body.replaceChildren(...all.slice(0, shown).map((row) =>
      h("tr", null, columns.map((column, index) => {
        const value = column.cell ? column.cell(row) : column.value(row);
        const content = value === null || value === undefined || value === "" ? missing() : value;
        return h(index ? "td" : "th", { scope: index ? null : "row", class: column.number ? "number" : (column.kind ?? null), "data-label": column.label }, content);
      }))));
    if (!all.length) body.append(h("tr", null, h("td", { colspan: columns.length, class: "missing" }, empty)));
    more.hidden = all.length <= shown;
    more.textContent = `${count(Math.min(shown, all.length))} of ${count(all.length)} rows shown – show more`;
  }

  draw();
  const tsv = () => [columns.map((column) => cell(column.label)), ...inOrder().map((row) =>
    columns.map((column) => cell((column.text ?? column.value)(row))))].map((line) => line.join("\t")).join("\n");
  return h("div", { class: "table" },
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
      h("table", null, h("caption", null, caption), h("thead", null, h("tr", null, headings)), body)),
    columns.some((column) => column.hint) ? h("p", { class: "hints" }, columns.filter((column) => column.hint).map((column) => [h("b", null, column.label), `: ${column.hint}. `])) : null,
    h("div", { class: "tools" }, more,
      h("button", { type: "button", class: "quiet", click: () => copy(tsv(), `${count(rows.length)} rows copied as TSV`) }, "Copy as TSV")));
}

/** One cell of TSV: no tab or line break, and text that a spreadsheet would take for a formula is marked as text. */
function cell(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (typeof value === "number") return String(value);
  const flat = String(value).replace(/[\t\r\n]+/g, " ");
  return /^[=+\-@]/.test(flat) ? `'${flat}` : flat;
}
