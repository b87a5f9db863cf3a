// Fleet: what is there, did it pass, what did it gain and lose, what did it cost? And: what changed since the last release?

async function viewFleet(main, { query }) {
  const rows = await fleet();
  const list = h("div");
  const changes = h("div");
  const jump = h("p", null);
  const { bar, left, apply } = filtered(rows, query, (kept) => {
    list.replaceChildren(fleetTable(kept));
    const changed = kept.filter((row) => row.newest && row.since_release);
    changes.replaceChildren(sinceRelease(changed));
    jump.replaceChildren(...(changed.length ? [h("button", { type: "button", class: "quiet", click: () => changes.querySelector("h3").focus() },
      `${counted(changed.length, "name")} trained again since a release: what changed?`)] : []));
  });
  fill(main, h("h2", null, "Fleet"), h("p", { class: "question" }, "Which adapters are there, and which may be trusted? Newest first."), bar, left, jump, list, changes);
  apply();
}

const gainCell = (figure) => figure?.task ? h("div", null,
  h("strong", null, change(figure.gain, figure.unit)), ` ${figure.unit}`,
  h("small", null, real(figure.gain_low) ? [`${change(figure.gain_low, figure.unit)} to ${change(figure.gain_high, figure.unit)}`, h("br")] : null, `n ${count(figure.n)}, `, taskName(figure.task))) : missing();
const taskName = (name) => h("bdi", { title: name }, clip(name, 18));
const loss = (value) => (real(value) ? -value || 0 : null); // a drop as a difference: less is worse
const worstCell = (figure) => figure?.task ? h("div", null,
  h("strong", null, change(loss(figure.drop), figure.unit)), ` ${figure.unit}`,
  h("small", null, real(figure.drop_low) ? [`${change(loss(figure.drop_high), figure.unit)} to ${change(loss(figure.drop_low), figure.unit)}`, h("br")] : null,
    `n ${count(figure.n)}, `, taskName(figure.task), real(figure.used) && figure.used > 0 ? [h("br"), `${digits(100 * figure.used, 0)} % of its margin`] : null)) : missing();
const asText = (figure, value) => (figure?.task ? `${figure.task}: ${value}` : "");

function fleetTable(rows) {
  return table({ caption: `All adapters of all runs. Differences to the base, more is better, with ${confidenceOf(rows)}; n counts documents`, rows, empty: "no adapter fits these filters", columns: [
    { label: "Adapter", value: (row) => row.name, text: (row) => idOf(row),
      cell: (row) => h("div", null, h("a", { href: adapterHref(row) }, row.name), h("small", null, named(row.recipe), row.release ? [", released as ", named(row.release)] : "")) },
    { label: "Verdict", value: (row) => row.verdict ?? row.status, cell: (row) => verdictMark(row.verdict ?? row.status) },
    { label: "Target gain", number: true, value: (row) => row.target?.gain, cell: (row) => gainCell(row.target),
      text: (row) => asText(row.target, row.target && measured({ ...row.target, delta: row.target.gain, low: row.target.gain_low, high: row.target.gain_high })) },
    { label: "Worst general task", number: true, value: (row) => loss(row.worst?.drop), cell: (row) => worstCell(row.worst),
      hint: "the one that used up most of the loss it was allowed, which is its margin",
      text: (row) => asText(row.worst, row.worst && measured({ ...row.worst, delta: loss(row.worst.drop), low: loss(row.worst.drop_high), high: loss(row.worst.drop_low) })) },
    { label: "Size", number: true, value: (row) => row.adapter_bytes, cell: (row) => bytes(row.adapter_bytes) },
    { label: "Device time", number: true, value: (row) => row.device_seconds, hint: "training and answering, each device counted", cell: (row) => h("span", { title: real(row.device_seconds) ? `${short(row.device_seconds)} device-seconds` : null }, duration(row.device_seconds)) },
    { label: "Method", value: methodOf },
    { label: "Base", value: (row) => row.base_model, cell: (row) => tailOf(row.base_model) },
    { label: "Data", value: (row) => row.data_source, cell: (row) => tailOf(row.data_source) },
    { label: "Run", value: (row) => row.started, cell: (row) => h("div", null, when(row.started), h("small", null, row.run_id)) },
    { label: "Links", kind: "links", value: () => null, cell: placesCell },
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
      list.replaceChildren(error.message);
    }
  } }, h("summary", null, "show"), list);
}

const PLACES = { adapter: "adapter", merged: "merged model", gguf: "GGUF", card: "model card", summary: "summary with the recipe", verdict: "verdict", data: "data", base: "base" };
const placesList = (one, kind = "places") => h("ul", { class: kind }, Object.entries(PLACES).filter(([key]) => one?.uris?.[key]).map(([key, words]) =>
  h("li", null, place(one.uris[key], words))));

/** The newest of each name against the last release of it that an earlier run made. */
function sinceRelease(changed) {
  if (!changed.length) return h("p", { class: "missing" }, "Nothing here was trained again since a release of it.");
  return h("section", null, h("h3", { tabindex: "-1" }, "Since the last release"),
    table({ caption: "The newest of each name against the last release before it. Gains over the base, then and now; more is better", rows: changed, columns: [
      { label: "Adapter", value: (row) => row.name, cell: (row) => h("a", { href: adapterHref(row) }, row.name) },
      { label: "Last release", value: (row) => row.since_release.release, cell: (row) => h("a", { href: historyHref(row.name) }, row.since_release.release) },
      { label: "Verdict", value: (row) => `${row.since_release.verdict} → ${row.verdict ?? row.status}` },
      { label: "Target gain, change", number: true, value: (row) => row.since_release.gain_change, cell: (row) => thenAndNow(row.since_release.gain_before, row.since_release.gain_change, row.target) },
      { label: "Worst task, change", number: true, value: (row) => row.since_release.worst_change, cell: (row) => thenAndNow(row.since_release.worst_before, row.since_release.worst_change, row.worst) },
      { label: "Tasks whose verdict changed", value: (row) => changedTasks(row) || "none" },
    ] }));
}
/** The change, and both figures; where another task stands there now, only that. */
const thenAndNow = (before, by, now) => now?.task ? h("div", null,
  real(by) ? [h("strong", null, change(by, now.unit)), ` ${now.unit}`] : h("span", { class: "missing" }, "another task then"),
  h("small", null, real(before) ? `${change(before, now.unit)} → ` : "now ", change(now.gain ?? loss(now.drop), now.unit), ` (n ${count(now.n)}), `, taskName(now.task))) : missing();
const changedTasks = (row) => (row.since_release.tasks_changed ?? []).map((one) => `${one.task}: ${one.before} → ${one.after}`).join("; ");
