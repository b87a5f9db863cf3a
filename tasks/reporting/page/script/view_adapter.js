// One adapter: how it was trained, what it gained and lost on each task, which answers changed, and what it came from.

async function viewAdapter(main, { rest }) {
  const rows = await fleet();
  const at = rest.lastIndexOf("@");
  const row = rows.find((one) => (at < 0 ? one.name : idOf(one)) === rest);
  if (!row) {
    throw new Error(`this dashboard has no adapter ${rest}. Look for it in the fleet; it may be of another store.`);
  }
  const one = await details(row);
  const others = rows.filter((other) => other.name === row.name && other !== row).slice(0, 8);
  const links = others.map((other) => [h("a", { href: adapterHref(other) }, other.run_id), " "]);
  fill(main,
    h("h2", null, named(row.name), " ", verdictMark(one.verdict ?? one.status)),
    h("p", { class: "question" },
      "How was it trained, what did it learn, what did it forget, and which answers changed?"),
    h("p", null, "run ", one.run_id, ", ", when(one.started), " · ",
      h("a", { href: historyHref(row.name) }, "its releases"), links.length ? [" · other runs: ", links] : null),
    one.error ? h("div", { class: "error" }, prose(one.error)) : null,
    bulleted(one.reasons), bulleted(one.warnings, "warning"),
    facts(one), ...tasksOf(one), ...trainingOf(one), methodsOf(row, rows, one), ...cureOf(one), await flipsOf(one),
    sampleOf(one), lineageOf(one), settingsOf(one));
}

const bulleted = (lines, kind = null) =>
  (lines?.length ? h("ul", { class: kind }, lines.map((words) => h("li", null, prose(words)))) : null);

/** Its name, where it stands, and the text of it if there is any. */
function facts(one) {
  const pairs = [
    ["Method", methodOf(one)], ["Base", one.base_model], ["Data", one.data_source], ["Rows", rowsWords(one)],
    ["Trained", shareWords(one)], ["Steps", stepsWords(one)], ["Loss, nats per token", lossWords(one)],
    ["Speed", real(one.tokens_per_second) ? `${count(Math.round(one.tokens_per_second))} tokens per second` : null],
    ["Engine", engineWords(one)], ["Peak memory", memoryWords(one)], ["Device time", timeWords(one)],
    ["Size", sizeWords(one)],
    ["Release", one.release], ["Digest", one.digest?.slice(0, 12)], ["Commit", one.git_commit?.slice(0, 12)],
    ["Win rate", winWords(one.win_rate)],
  ].filter(([, words]) => words);
  const fact = ([name, words]) => h("div", null, h("dt", null, name), h("dd", { dir: "auto" }, words));
  return h("section", null, h("dl", { class: "facts" }, pairs.map(fact)),
    one.uris ? placesList(one, "places inline") : null);
}

const rowsWords = (one) => (real(one.rows_train) ? `${count(one.rows_train)} train, ` +
  `${count(one.rows_validation)} validation, ${count(one.rows_held_out)} held out` : null);
function shareWords({ trainable_params: trained, total_params: all }) {
  if (!real(trained) || !real(all)) return null;
  return `${count(trained)} of ${count(all)} parameters (${short(100 * trained / all)} %)`;
}
function stepsWords(one) {
  if (!real(one.steps)) return null;
  const isShort = real(one.planned_steps) && one.planned_steps !== one.steps;
  const of = isShort ? ` of ${count(one.planned_steps)}` : "";
  return `${count(one.steps)} steps${of}${one.stopped_early ? ", stopped early" : ""}, ${count(one.tokens)} tokens`;
}
function lossWords({ train_loss: train, validation_loss: validation }) {
  if (!real(train)) return null;
  return `${digits(train, 3)} train${real(validation) ? `, ${digits(validation, 3)} validation` : ""}`;
}
const memoryWords = (one) => (real(one.peak_memory_bytes)
  ? `${bytes(one.peak_memory_bytes)} (${one.device === "cpu" ? "process" : one.device ?? "device"})` : null);
function engineWords({ engine, pack, tokens, computed_tokens: computed }) {
  if (!engine) return null;
  const others = (pack?.length ?? 1) - 1;
  const shared = real(computed) && computed < tokens ? `${count(computed)} of ${count(tokens)} tokens computed` : null;
  return [engine, others > 0 ? `together with ${counted(others, "other")}` : null, shared].filter(Boolean).join(", ");
}
const timeWords = (one) => (real(one.device_seconds) ? `${duration(one.device_seconds)} ` +
  `(${duration(one.train_device_seconds)} training, ${duration(one.score_device_seconds)} answering)` : null);
const sizeWords = (one) => [["adapter", one.adapter_bytes], ["merged", one.merged_bytes], ["GGUF", one.gguf_bytes]]
  .filter(([, size]) => real(size)).map(([words, size]) => `${words} ${bytes(size)}`).join(", ");
function winWords(win) {
  if (!win) return null;
  const [rate, low, high] = [win.win_rate, win.ci_low, win.ci_high].map((share) => digits(100 * share, 1));
  return `${rate} % (${low} to ${high}), n ${count(win.n)}, judge ${win.judge}`;
}

const CURVES = [
  ["loss", "Loss", "nats per token", [["train", "loss"], ["validation", "validation_loss"]]],
  ["speed", "Speed", "tokens per second", [["speed", "tokens_per_second"]], { fromZero: true }],
  ["memory", "Memory", "GB", [["memory", "memory_bytes"]], { fromZero: true, times: 1e-9 }],
  ["learning-rate", "Learning rate", "per step", [["learning rate", "learning_rate"]], { fromZero: true }],
  ["gradient", "Gradient norm", "norm", [["gradient norm", "grad_norm"]]],
];

const CURVE_NOTES = {
  loss: (one, curve) => `n ${counted(curve.filter((at) => real(at.loss)).length, "logged step")}` +
    `${one.rows_validation ? `; validation over ${counted(one.rows_validation, "row")}` : ""}`,
  memory: (one) => (one.device === "cpu" ? "of the process" : "of the device, the most so far"),
};

function trainingOf(one) {
  const curve = one.curve ?? [];
  const charts = CURVES.map(([id, title, y, series, { fromZero = false, times = 1 } = {}]) => {
    const drawn = series.map(([name, key]) =>
      ({ name, points: curve.filter((at) => real(at[key])).map((at) => [at.step, times * at[key]]) }));
    if (drawn.every(({ points }) => points.length < 2)) return null;
    const scaled = (at) => series.map(([, key]) => (real(at[key]) ? times * at[key] : null));
    return figure({ id, title, question: null,
      note: CURVE_NOTES[id]?.(one, curve) ?? `n ${counted(drawn[0].points.length, "logged step")}`,
      draw: (width) => curves({ width: Math.min(width, 700), series: drawn, x: "optimizer step", y, fromZero }),
      data: () => [["step", ...series.map(([name]) => `${name} (${y})`)],
        ...curve.map((at) => [at.step, ...scaled(at)])] });
  }).filter(Boolean);
  if (!charts.length) return [];
  return [h("section", null, h("h3", null, "Training"), h("div", { class: "charts" }, charts))];
}

/** Prompt, LoRA, QLoRA, full: whatever answers the same data on the same base. */
function methodsOf(row, rows, one) {
  const same = rows.filter((other) => other.rivals === row.rivals && other.newest);
  if (!same.includes(row)) same.unshift(row);
  const compared = one.comparisons?.length ? comparisonsTable(one) : null;
  if (same.length < 2 && !compared) return null;
  const link = (other) => (other === row ? h("strong", null, other.name)
    : h("a", { href: adapterHref(other) }, other.name));
  return h("section", null, h("h3", null, "Methods compared"),
    table({ caption: "The newest of each name with the same data and base", rows: same, columns: [
      { label: "Adapter", value: (other) => other.name, cell: link,
        copies: [["Adapter", (other) => other.name], ["Run", (other) => other.run_id]] },
      { label: "Method", value: methodOf }, verdictColumn(), gainColumn(), worstColumn(), sizeOfColumn(), timeColumn(),
    ] }), compared);
}

/** Its answers against those of prompts of the base, on the target's documents. */
function comparisonsTable(one) {
  const taskOf = (each) => (one.tasks ?? []).find((task) => task.task === each.task);
  const isHigherBetter = (each) => taskOf(each)?.higher_is_better ?? each.metric !== "nll_per_token";
  const rows = one.comparisons.map((each) =>
    ({ ...each, ...differenceOf({ ...each, higher_is_better: isHigherBetter(each) }) }));
  return table({ caption: "Trained against prompted, on the same documents; more is better", rows, columns: [
    { label: "Over", value: (each) => each.over }, { label: "Task", value: (each) => each.task },
    { label: "n", unit: "documents", number: true, value: (each) => each.n, cell: (each) => count(each.n) },
    { label: "Difference", number: true, value: (each) => each.delta,
      cell: (each) => measured({ ...each, n: null }), copies: differenceCopies("Difference", (each) => each) },
    { label: "Better?", value: (each) => each.answer },
  ] });
}

function cureOf(one) {
  if (!one.cure) return [];
  const targets = (one.tasks ?? []).filter((task) => task.role === "target");
  const target = targets.find((task) => task.decides !== false) ?? targets[0] ?? {};
  const unit = unitOfTask(target);
  const gain = (each) => ({ unit, ...turned(
    { delta: each.target_delta, low: each.target_ci_low, high: each.target_ci_high }, target.higher_is_better) });
  const kept = (each) => ({ unit: "points",
    ...turned({ delta: each.pool_drop, low: each.pool_ci_low, high: each.pool_ci_high }, false) });
  const column = (label, of, more) => ({ label, number: true, ...more, value: (each) => of(each).delta,
    cell: (each) => measured(of(each)), copies: differenceCopies(label, of) });
  return [h("section", null, h("h3", null, "Cure"), h("p", { dir: "auto" }, one.cure.said), table({
    caption: "Candidates, the first as trained; differences to the base, more is better", rows: one.cure.curve ?? [],
    columns: [
      { label: "Candidate", value: ({ kind, scale, share }) =>
        (kind === "replay" ? `replay ${short(100 * share)} %` : `scale ${short(scale)}`) },
      column("Target", gain),
      column("General, average", kept, { hint: "the average of the general tasks that count right answers" }),
      verdictColumn(),
    ] }))];
}

function sampleOf(one) {
  if (!one.rows_sample?.length) return null;
  const said = (part) => h("div", { class: part.trained ? "trained" : null },
    h("dt", null, part.trained ? "▸ " : "", part.role), h("dd", null, prose(part.text)));
  const of = `${one.rows_sample.length} of ${counted(one.rows_train, "row")}`;
  const words = `${of}, the first; what was trained on is marked ▸.`;
  return h("section", null, h("h3", null, "Training rows"), h("p", { class: "question" }, words),
    one.rows_sample.map((row) => h("dl", { class: "conversation" }, row.parts.map(said))));
}

function lineageOf(one) {
  if (!one.lineage?.length) return null;
  const caption = "What it is made from, and what was made of it";
  return h("section", null, h("h3", null, "Lineage"), table({ caption, rows: one.lineage, columns: [
    { label: "Role", value: (each) => each.role },
    { label: "Artifact", value: (each) => each.place ?? each.name,
      cell: (each) => h("code", { class: "place", title: each.digest }, each.place ?? each.name) },
    { label: "Stage", value: (each) => each.stage },
    { label: "Made", unit: "UTC", value: (each) => each.created, cell: (each) => when(each.created) },
    { label: "Took", unit: "seconds", number: true, value: (each) => each.seconds,
      cell: (each) => duration(each.seconds) },
    { label: "Run", value: (each) => each.run_id },
    { label: "Commit", value: (each) => each.git_commit?.slice(0, 10) },
  ] }));
}

function settingsOf(one) {
  const shown = [["Settings", one.settings_json], ["Library versions", one.versions_json]].filter(([, text]) => text);
  const folded = ([title, text]) =>
    h("details", null, h("summary", null, title), h("pre", { dir: "auto" }, pretty(text)));
  return shown.length ? h("section", null, shown.map(folded)) : null;
}
function pretty(text) {
  try {
    return JSON.stringify(typeof text === "string" ? JSON.parse(text) : text, null, 2);
  } catch {
    return String(text);
  }
}
