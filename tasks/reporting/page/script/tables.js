// Tables: a button in each heading sorts, missing values go last either way, and all rows copy as TSV.
// A column is {label, value(row), cell(row)?, number?, kind?, hint?, unit?, text(row)?, copies?}: `value` sorts, and is
// copied unless `text` is given; `unit` stands in the copy's heading; `copies` are [heading, value(row)], of a column
// that is copied as several. What a label cannot say stands under the table.

const PAGE = 100; // rows drawn at once

/** What a reader chose of a table, for one that is built anew when the filters change. `sort` is "Size", or "-Size". */
const choices = (sort = "") => ({ shown: PAGE,
  order: sort ? { label: sort.replace(/^-/, ""), down: sort.startsWith("-") } : null });

/** `chosen` keeps order and length; `sorted(sort)` hears of a new order. */
function table({ caption, columns, rows, chosen = choices(), sorted = () => {}, empty = "nothing here" }) {
  const body = h("tbody");
  const more = h("button", { type: "button", class: "quiet", click: () => ((chosen.shown += PAGE * 5), draw()) });
  const kindOf = (column) => (column.number ? "number" : (column.kind ?? null));
  const isFirst = (column) => chosen.order?.label === column.label;
  const sortBy = (column) => {
    const { label } = column;
    chosen.order = { label, down: isFirst(column) ? !chosen.order.down : Boolean(column.number) };
    sorted(`${chosen.order.down ? "-" : ""}${label}`);
    draw();
  };
  const headings = columns.map((column) => h("th", { scope: "col", class: kindOf(column) },
    h("button", { type: "button", click: () => sortBy(column) },
      column.label, h("span", { class: "arrow", "aria-hidden": "true" }))));

  function inOrder() {
    const by = columns.find(isFirst);
    if (!by) return rows;
    const keyed = rows.map((row) => [by.value(row), row]);
    const lacks = (key) => key === null || key === undefined || key === "" || Number.isNaN(key);
    keyed.sort(([a], [b]) => {
      if (lacks(a) || lacks(b)) return lacks(a) - lacks(b);
      const numbers = typeof a === "number" && typeof b === "number";
      const least = numbers ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
      return chosen.order.down ? -least : least;
    });
    return keyed.map(([, row]) => row);
  }

  function rowOf(row) {
    return h("tr", null, columns.map((column, index) => {
      const value = column.cell ? column.cell(row) : column.value(row);
      const content = value === null || value === undefined || value === "" ? missing() : value;
      const [name, scope] = index ? ["td", null] : ["th", "row"];
      return h(name, { scope, class: kindOf(column), "data-label": column.label }, content);
    }));
  }

  function draw(most = chosen.shown) {
    columns.forEach((column, index) => {
      const [here, down] = [isFirst(column), chosen.order?.down];
      headings[index].setAttribute("aria-sort", here ? (down ? "descending" : "ascending") : "none");
      headings[index].querySelector(".arrow").textContent = here ? (down ? " ↓" : " ↑") : "";
    });
    const all = inOrder();
    body.replaceChildren(...all.slice(0, most).map(rowOf));
    if (!all.length) body.append(h("tr", null, h("td", { colspan: columns.length, class: "missing" }, empty)));
    more.hidden = all.length <= most;
    more.textContent = `${count(Math.min(most, all.length))} of ${count(all.length)} rows shown – show more`;
  }

  draw();
  const explained = columns.filter((column) => column.hint);
  const made = h("div", { class: "table" },
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
      h("table", null, h("caption", null, caption), h("thead", null, h("tr", null, headings)), body)),
    explained.length ? h("p", { class: "hints" },
      explained.map((column) => [h("b", null, column.label), `: ${column.hint}. `])) : null,
    h("div", { class: "tools" }, more, h("button", { type: "button", class: "quiet",
      click: () => copy(tsvOf(columns, inOrder()), `${count(rows.length)} rows copied as TSV`) }, "Copy as TSV")));
  made.whole = () => draw(rows.length); // on paper nobody can ask for more
  made.asChosen = () => draw();
  return made;
}

function tsvOf(columns, rows) {
  const copied = columns.flatMap(({ label, unit, text, value, copies }) =>
    copies ?? [[unit ? `${label} (${unit})` : label, text ?? value]]);
  return tsv([copied.map(([heading]) => heading), ...rows.map((row) => copied.map(([, of]) => of(row)))]);
}

/** `copies` of a difference {delta, low, high, unit}: as it is shown, in the unit of each row. */
const differenceCopies = (label, of) => [
  [`${label} (points or nats)`, (row) => inUnit(of(row)?.delta, of(row)?.unit)],
  [`${label}, low`, (row) => inUnit(of(row)?.low, of(row)?.unit)],
  [`${label}, high`, (row) => inUnit(of(row)?.high, of(row)?.unit)],
  [`${label}, unit`, (row) => of(row)?.unit],
];

const tsv = (lines) => lines.map((line) => line.map(cell).join("\t")).join("\n");

/** One cell of TSV, as spreadsheets read it: text that they would take for a formula is marked as text, and what holds
 *  quotes, tabs or line breaks is quoted. Of a number, the digits that are not its binary form's. */
function cell(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (typeof value === "number") return String(Number(value.toPrecision(15)));
  const text = String(value);
  const safe = /^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]/.test(text) ? `'${text}` : text;
  return /["\t\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
