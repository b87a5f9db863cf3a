// Filters are part of the address, so that a filtered view can be sent to somebody.

const FILTERS = [
  { key: "verdict", label: "Verdict", of: (row) => row.verdict ?? row.status },
  { key: "base", label: "Base", of: (row) => row.base_model },
  { key: "data", label: "Data", of: (row) => row.data_source },
  { key: "method", label: "Method", of: (row) => methodOf(row) },
];
/** [verdict, how many], those of a verdict first. */
function tally(rows) {
  const found = new Map([...Object.keys(MARKS).map((verdict) => [verdict, 0])]);
  for (const { verdict, status } of rows) found.set(verdict ?? status, (found.get(verdict ?? status) ?? 0) + 1);
  return [...found].filter(([, times]) => times);
}
const methodOf = (row) => (row.precision === "nf4" && row.method !== "qlora" ? `${row.method}, 4 bit` : row.method);

/** The bar of filters above `draw(rows)`, which is called anew with what is left. */
function filtered(rows, query, draw) {
  const values = Object.fromEntries(query);
  const left = h("p", { class: "left", role: "status" });

  function apply() {
    const wanted = (values.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const from = values.from ? new Date(`${values.from}T00:00:00`).getTime() : -Infinity;
    const until = values.until ? new Date(`${values.until}T23:59:59.999`).getTime() : Infinity;
    const kept = rows.filter((row) =>
      FILTERS.every(({ key, of }) => !values[key] || of(row) === values[key]) &&
      (values.newest !== "1" || row.newest) &&
      ((from === -Infinity && until === Infinity) || (row.time >= from && row.time <= until)) &&
      wanted.every((word) => row.words.includes(word)));
    const of = kept.length === rows.length ? "" : `${count(kept.length)} of `;
    const found = tally(kept).map(([verdict, times]) =>
      h("span", null, h("strong", null, count(times)), " ", verdictMark(verdict)));
    left.replaceChildren(`${of}${counted(rows.length, "adapter")}`, ...found);
    draw(kept);
  }
  /** Into the address, and no more. */
  function keep(key, value) {
    if (value) values[key] = value;
    else delete values[key];
    const asked = new URLSearchParams(values).toString();
    history.replaceState(null, "", `${location.hash.split("?")[0] || "#/fleet"}${asked ? `?${asked}` : ""}`);
  }
  const set = (key, value) => (keep(key, value), apply());

  const search = h("input", { type: "search", value: values.q ?? "", placeholder: "name, task, run …",
    input: (event) => {
      clearTimeout(search.timer);
      search.timer = setTimeout(() => set("q", event.target.value.trim()), 150);
    } });
  const selects = FILTERS.map(({ key, label, of }) => {
    const found = [...new Set(rows.map(of).filter((value) => value !== null && value !== undefined))].sort();
    if (values[key] && !found.includes(values[key])) found.push(values[key]);
    const select = h("select", { change: (event) => set(key, event.target.value) },
      h("option", { value: "" }, "all"),
      found.map((value) => h("option", { value, selected: values[key] === value }, value)));
    return h("label", null, h("span", null, label), select);
  });
  const day = (key, label) => h("label", null, h("span", null, label),
    h("input", { type: "date", value: values[key] ?? "", change: (event) => set(key, event.target.value) }));
  const bar = h("form", { class: "filters", role: "search", submit: (event) => event.preventDefault() },
    h("label", { class: "wide" }, h("span", null, "Search"), search), selects,
    day("from", "From"), day("until", "Until"),
    rows.every((row) => row.newest) ? null : h("label", { class: "tick" },
      h("input", { type: "checkbox", checked: values.newest === "1",
        change: (event) => set("newest", event.target.checked ? "1" : "") }), "newest of each name"));
  return { bar, left, apply, keep };
}
