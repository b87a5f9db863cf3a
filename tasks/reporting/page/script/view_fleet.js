// Fleet: what is there, did it pass, what did it gain and lose, what did it cost? What changed since the last release?

async function viewFleet(main, { query }) {
  const rows = await fleet();
  const list = h("div");
  const changes = h("div");
  const jump = h("p", null);
  const chosen = { list: choices(new Map(query).get("sort")), changes: choices() }; // they outlive a table
  const { bar, left, apply, keep } = filtered(rows, query, (kept) => {
    list.replaceChildren(fleetTable(kept, chosen.list, (sort) => keep("sort", sort)));
    const changed = kept.filter((row) => row.newest && row.since_release);
    changes.replaceChildren(sinceRelease(changed, rows, chosen.changes));
    const words = `${counted(changed.length, "name")} trained again since a release: what changed?`;
    jump.replaceChildren(...(changed.length ? [h("button", { type: "button", class: "quiet",
      click: () => changes.querySelector("h3").focus() }, words)] : []));
  });
  fill(main, h("h2", null, "Fleet"),
    h("p", { class: "question" }, "Which adapters are there, and which may be trusted? Newest first."),
    bar, left, jump, list, changes);
  apply();
}

const taskName = (name) => h("bdi", { title: name }, clip(name, 18));
const gainOf = (figure) => figure && { ...figure, delta: figure.gain, low: figure.gain_low, high: figure.gain_high };
/** Of a drop: less is worse. */
const lossOf = (figure) => figure &&
  { ...figure, delta: minus(figure.drop), low: minus(figure.drop_high), high: minus(figure.drop_low) };

function figureCell(figure) {
  if (!figure?.task) return missing();
  const { delta, low, high, unit } = figure;
  const used = real(figure.used) && figure.used > 0 ? `${digits(100 * figure.used, 0)} % of its margin` : null;
  return h("div", null, h("strong", null, change(delta, unit)), ` ${unit}`, h("small", null,
    real(low) ? [`${change(low, unit)} to ${change(high, unit)}`, h("br")] : null,
    `n ${count(figure.n)}, `, taskName(figure.task), used ? [h("br"), used] : null));
}

/** A column of a task's figure with its interval; it is copied as the figures that it shows. */
const figureColumn = (label, of, more = {}) => ({ label, number: true, ...more,
  value: (row) => of(row)?.delta, cell: (row) => figureCell(of(row)),
  copies: [[`${label}: task`, (row) => of(row)?.task], ...differenceCopies(label, of),
    [`${label}, n (documents)`, (row) => of(row)?.n]] });
const gainColumn = () => figureColumn("Target gain", (row) => gainOf(row.target));
const worstColumn = () => figureColumn("Worst general task", (row) => lossOf(row.worst),
  { hint: "the one that used up most of the loss it was allowed, which is its margin" });

const verdictColumn = () => ({ label: "Verdict",
  value: (row) => row.verdict ?? row.status, cell: (row) => verdictMark(row.verdict ?? row.status) });
const sizeOfColumn = () => ({ label: "Size", unit: "bytes", number: true,
  value: (row) => row.adapter_bytes, cell: (row) => bytes(row.adapter_bytes) });
const timeColumn = () => ({ label: "Device time", unit: "seconds", number: true,
  hint: "training and answering, each device counted", value: (row) => row.device_seconds,
  cell: ({ device_seconds: seconds }) =>
    h("span", { title: real(seconds) ? `${short(seconds)} device-seconds` : null }, duration(seconds)) });
const runColumn = () => ({ label: "Run",
  value: (row) => row.started, cell: (row) => h("div", null, when(row.started), h("small", null, row.run_id)),
  copies: [["Run", (row) => row.run_id], ["Started (UTC)", (row) => row.started]] });

function fleetTable(rows, chosen, sorted) {
  const released = (row) => (row.release ? [", released as ", named(row.release)] : "");
  const caption = "All adapters of all runs. Differences to the base, more is better, " +
    `with ${confidenceOf(rows)}; n counts documents`;
  return table({ caption, rows, chosen, sorted, empty: "no adapter fits these filters", columns: [
    { label: "Adapter", value: (row) => row.name,
      cell: (row) => h("div", null, h("a", { href: adapterHref(row) }, row.name),
        h("small", null, named(row.recipe), released(row))),
      copies: [["Adapter", (row) => row.name], ["Recipe", (row) => row.recipe], ["Release", (row) => row.release]] },
    verdictColumn(), gainColumn(), worstColumn(), sizeOfColumn(), timeColumn(),
    { label: "Method", value: methodOf },
    { label: "Base", value: (row) => row.base_model, cell: (row) => tailOf(row.base_model) },
    { label: "Data", value: (row) => row.data_source, cell: (row) => tailOf(row.data_source) },
    runColumn(),
    { label: "Links", kind: "links", value: () => null, cell: placesCell, copies: [] },
  ] });
}

/** The last step of a path; the whole is its title. */
function tailOf(path) {
  if (!path) return missing();
  const words = clip(String(path).split("/").pop() || String(path), 34);
  return h("span", { class: words.length > 14 ? "clip" : "whole", title: path }, words);
}

/** "90 % intervals", if all rows were judged at one level. */
function confidenceOf(rows) {
  const levels = [...new Set(rows.map((row) => row.alpha).filter(real))];
  return levels.length === 1 ? `${short(100 * (1 - 2 * levels[0]))} % intervals` : "intervals at each run's own level";
}

/** Where its files lie: asked of the details, when somebody wants to know. */
function placesCell(row) {
  const list = h("div", null, "…");
  return h("details", { toggle: async () => {
    try {
      list.replaceChildren(placesList(await details(row)));
    } catch (error) {
      list.replaceChildren();
      trouble(error, list);
    }
  } }, h("summary", null, "show"), list);
}

const PLACES = {
  adapter: "adapter", merged: "merged model", gguf: "GGUF", card: "model card", summary: "summary with the recipe",
  verdict: "verdict", data: "data", base: "base",
};
const placesList = (one, kind = "places") => h("ul", { class: kind },
  Object.entries(PLACES).filter(([key]) => one?.uris?.[key])
    .map(([key, words]) => h("li", null, place(one.uris[key], words))));

/** The newest of each name against the last release of it that an earlier run made; `rows` are those of all runs. */
function sinceRelease(changed, rows, chosen) {
  if (!changed.length) return h("p", { class: "missing" }, "Nothing here was trained again since a release of it.");
  const known = new Map(rows.map((row) => [idOf(row), row]));
  const then = ({ name, since_release: { run_id } }) => known.get(idOf({ name, run_id }));
  const caption = "The newest of each name against the last release before it. " +
    "Gains over the base, then and now; more is better";
  return h("section", null, h("h3", { tabindex: "-1" }, "Since the last release"),
    table({ caption, rows: changed, chosen, columns: [
      { label: "Adapter", value: (row) => row.name, cell: (row) => h("a", { href: adapterHref(row) }, row.name) },
      { label: "Last release", value: (row) => row.since_release.release,
        cell: (row) => h("a", { href: historyHref(row.name) }, row.since_release.release) },
      { label: "Verdict", value: (row) => `${row.since_release.verdict} → ${row.verdict ?? row.status}` },
      changeColumn("Target gain, change", (row) => ({ now: gainOf(row.target), then: then(row)?.target,
        before: row.since_release.gain_before, by: row.since_release.gain_change })),
      changeColumn("Worst task, change", (row) => ({ now: lossOf(row.worst), then: then(row)?.worst,
        before: row.since_release.worst_before, by: row.since_release.worst_change })),
      { label: "Tasks whose verdict changed", value: (row) => changedTasks(row) || "none" },
    ] }));
}

const changeColumn = (label, of) => ({ label, number: true,
  value: (row) => of(row).by, cell: (row) => thenAndNow(of(row)),
  copies: [[`${label}: task`, (row) => of(row).now?.task],
    [`${label} (points or nats)`, (row) => inUnit(of(row).by, of(row).now?.unit)],
    [`${label}: before`, (row) => (real(of(row).by) ? inUnit(of(row).before, of(row).now?.unit) : null)],
    [`${label}: now`, (row) => inUnit(of(row).now?.delta, of(row).now?.unit)],
    [`${label}, unit`, (row) => of(row).now?.unit]] });

/** The change, and both figures; where another task stood there then, or none that is known, only the newer. */
function thenAndNow({ now, then, before, by }) {
  if (!now?.task) return missing();
  const why = then?.task && then.task !== now.task ? "another task then" : "not known then";
  return h("div", null,
    real(by) ? [h("strong", null, change(by, now.unit)), ` ${now.unit}`] : h("span", { class: "missing" }, why),
    h("small", null, real(by) ? `${change(before, now.unit)} → ` : "now ",
      change(now.delta, now.unit), ` (n ${count(now.n)}), `, taskName(now.task)));
}
const changedTasks = (row) =>
  (row.since_release.tasks_changed ?? []).map((one) => `${one.task}: ${one.before} → ${one.after}`).join("; ");
