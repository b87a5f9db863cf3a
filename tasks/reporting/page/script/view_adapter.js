// One adapter: how it was trained, what it gained and lost on each task, which answers changed, and what it came from.

async function viewAdapter(main, { rest }) {
  const rows = await fleet();
  const at = rest.lastIndexOf("@");
  const row = at < 0 ? rows.find((one) => one.name === rest) : rows.find((one) => idOf(one) === rest);
  if (!row) throw new Error(`this dashboard has no adapter ${rest}. Look for it in the fleet; it may be of another store.`);
  const one = await details(row);
  const others = rows.filter((other) => other.name === row.name && other !== row);
  fill(main,
    h("h2", null, named(row.name), " ", verdictMark(one.verdict ?? one.status)),
    h("p", { class: "question" }, "How was it trained, what did it learn, what did it forget, and which answers changed?"),
    h("p", null, "run ", one.run_id, ", ", when(one.started), " · ", h("a", { href: historyHref(row.name) }, "its releases"),
      others.length ? [" · other runs: ", others.slice(0, 8).map((other) => [h("a", { href: adapterHref(other) }, other.run_id), " "])] : null),
    one.error ? h("div", { class: "error" }, prose(one.error)) : null,
    bulleted(one.reasons), bulleted(one.warnings, "warning"), facts(one), ...tasksOf(one), ...trainingOf(one), methodsOf(row, rows, one),
    ...cureOf(one), await flipsOf(one), sampleOf(one), lineageOf(one), settingsOf(one));
}

const bulleted = (lines, kind = null) => (lines?.length ? h("ul", { class: kind }, lines.map((words) => h("li", null, prose(words)))) : null);
const unitOfTask = (one) => one.unit ?? (one.metric === "nll_per_token" ? "nats" : "points");

/** Its name, where it stands, and the text of it if there is any. */
function facts(one) {
  const share = real(one.trainable_params) && real(one.total_params) ? `${count(one.trainable_params)} of ${count(one.total_params)} parameters (${short(100 * one.trainable_params / one.total_params)} %)` : null;
  const steps = real(one.steps) ? `${count(one.steps)} steps${real(one.planned_steps) && one.planned_steps !== one.steps ? ` of ${count(one.planned_steps)}` : ""}${one.stopped_early ? ", stopped early" : ""}, ${count(one.tokens)} tokens` : null;
  const pairs = [
    ["Method", methodOf(one)], ["Base", one.base_model], ["Data", one.data_source],
    ["Rows", real(one.rows_train) ? `${count(one.rows_train)} train, ${count(one.rows_validation)} validation, ${count(one.rows_held_out)} held out` : null],
    ["Trained", share], ["Steps", steps],
    ["Loss, nats per token", real(one.train_loss) ? `${digits(one.train_loss, 3)} train${real(one.validation_loss) ? `, ${digits(one.validation_loss, 3)} validation` : ""}` : null],
    ["Speed", real(one.tokens_per_second) ? `${count(Math.round(one.tokens_per_second))} tokens per second` : null],
    ["Peak memory", real(one.peak_memory_bytes) ? `${bytes(one.peak_memory_bytes)} (${one.device === "cpu" ? "process" : one.device ?? "device"})` : null],
    ["Device time", real(one.device_seconds) ? `${duration(one.device_seconds)} (${duration(one.train_device_seconds)} training, ${duration(one.score_device_seconds)} answering)` : null],
    ["Size", [["adapter", one.adapter_bytes], ["merged", one.merged_bytes], ["GGUF", one.gguf_bytes]].filter(([, size]) => real(size)).map(([words, size]) => `${words} ${bytes(size)}`).join(", ")],
    ["Release", one.release], ["Digest", one.digest?.slice(0, 12)], ["Commit", one.git_commit?.slice(0, 12)],
    ["Win rate", one.win_rate ? `${digits(100 * one.win_rate.win_rate, 1)} % (${digits(100 * one.win_rate.ci_low, 1)} to ${digits(100 * one.win_rate.ci_high, 1)}), n ${count(one.win_rate.n)}, judge ${one.win_rate.judge}` : null],
  ].filter(([, words]) => words);
  return h("section", null, h("dl", { class: "facts" }, pairs.map(([name, words]) => h("div", null, h("dt", null, name), h("dd", { dir: "auto" }, words)))),
    one.uris ? placesList(one, "places inline") : null);
}

function tasksOf(one) {
  const tasks = (one.tasks ?? []).map((task) => {
    const turn = task.higher_is_better === false ? -1 : 1;
    const [low, high] = turn > 0 ? [task.ci_low, task.ci_high] : [real(task.ci_high) ? -task.ci_high : null, real(task.ci_low) ? -task.ci_low : null];
    const margin = real(task.margin) ? (task.role === "target" ? task.margin : -task.margin) : null;
    return { ...task, unit: unitOfTask(task), delta: real(task.delta) ? turn * task.delta : null, low, high, margin };
  }).sort((a, b) => (b.role === "target") - (a.role === "target"));
  if (!tasks.length) return [h("p", { class: "missing" }, "No task was judged.")];
  const confidence = real(one.alpha) ? `${short(100 * (1 - 2 * one.alpha))} %` : "";
  const units = [...new Set(tasks.map((task) => task.unit))];
  const charts = units.map((unit, index) => {
    const of = tasks.filter((task) => task.unit === unit);
    const { times } = unitOf(unit);
    const scaled = (value) => (real(value) ? value * times : null);
    return figure({
      id: `tasks-${unit}`, title: `Difference to the base, ${unit}`, note: "Point at a line, or walk with the arrow keys.",
      question: index ? null : "More is better. The interval of a general task has to stand right of its margin (the dashed bar), that of a target right of the gain that was asked for.",
      draw: (width) => intervals({ width, x: `${unit} (${confidence} intervals)`, rows: of.map((task) => ({ name: task.task, n: task.n, verdict: task.verdict, says: taskSays(task),
        delta: scaled(task.delta), low: scaled(task.low), high: scaled(task.high), margin: scaled(task.margin) })) }),
      data: () => [["task", "role", `difference (${unit})`, "low", "high", "margin", "n", "verdict"], ...of.map((task) => [task.task, task.role, scaled(task.delta), scaled(task.low), scaled(task.high), scaled(task.margin), task.n, task.verdict])],
    });
  });
  return [h("section", null, h("h3", null, "Tasks"), ...charts, table({ caption: `Each task, with ${confidence} intervals; differences turned so that more is better`, rows: tasks, columns: [
    { label: "Task", value: (task) => task.task, cell: (task) => h("div", null, task.task, h("small", null, [task.role, task.metric, task.tier !== "critical" ? task.tier : null, task.decides === false ? "shown only" : null].filter(Boolean).join(", "))) },
    { label: "n", number: true, value: (task) => task.n, cell: (task) => count(task.n) },
    { label: "Base", number: true, value: (task) => task.base, cell: (task) => score(task.base, task.unit) },
    { label: "Adapter", number: true, value: (task) => task.adapter, cell: (task) => score(task.adapter, task.unit) },
    { label: "Difference", number: true, value: (task) => task.delta, cell: (task) => h("div", null, h("strong", null, change(task.delta, task.unit)), ` ${task.unit}`, h("small", null, `${change(task.low, task.unit)} to ${change(task.high, task.unit)}`)) },
    { label: "Margin", number: true, hint: "the gain a target had to reach, or the loss a general task was allowed", value: (task) => task.margin, cell: (task) => change(task.margin, task.unit) },
    { label: "Lost / gained", number: true, hint: "documents that only the base got right, and that only the adapter did", value: (task) => task.lost, cell: (task) => (real(task.lost) && task.kind !== "graded" ? `${count(task.lost)} / ${count(task.gained)}` : "–") },
    { label: "p after Holm", number: true, hint: "probability of such figures if what the verdict says were false (of an open one, if PASS were), corrected for all tests of the run", value: probabilityOf, cell: (task) => probability(probabilityOf(task)) },
    { label: "KL, nats", number: true, hint: "Kullback-Leibler divergence of the adapter's answers from the base's, per token", value: (task) => task.kl, cell: (task) => short(task.kl) },
    { label: "Verdict", value: (task) => task.verdict, cell: (task) => h("div", null, verdictMark(task.verdict), h("small", { dir: "auto" }, task.verdict === "INCONCLUSIVE" && task.needed > task.n ? `needs about ${count(task.needed)} documents` : "")) },
    { label: "Why", value: (task) => task.reason, cell: (task) => h("small", { class: "why", dir: "auto" }, task.reason) },
  ] }))];
}

const probabilityOf = (task) => (task.verdict === "FAIL" ? (task.p_breach_adjusted ?? task.p_breach) : (task.p_value_adjusted ?? task.p_value));
const taskSays = (task) => `${isolated(task.task)}: ${measured(task)}, margin ${change(task.margin, task.unit)}: ${task.verdict}`;

const CURVES = [
  ["loss", "Loss", "nats per token", [["train", "loss"], ["validation", "validation_loss"]]],
  ["speed", "Speed", "tokens per second", [["speed", "tokens_per_second"]], { fromZero: true }],
  ["memory", "Memory", "GB", [["memory", "memory_bytes"]], { fromZero: true, times: 1e-9 }],
  ["learning-rate", "Learning rate", "per step", [["learning rate", "learning_rate"]], { fromZero: true }],
  ["gradient", "Gradient norm", "norm", [["gradient norm", "grad_norm"]]],
];

const CURVE_NOTES = {
  loss: (one, curve) => `n ${counted(curve.filter((at) => real(at.loss)).length, "logged step")}${one.rows_validation ? `; validation over ${counted(one.rows_validation, "row")}` : ""}`,
  memory: (one) => (one.device === "cpu" ? "of the process" : "of the device, the most so far"),
};

function trainingOf(one) {
  const curve = one.curve ?? [];
  const charts = CURVES.map(([id, title, y, series, { fromZero = false, times = 1 } = {}]) => {
    const drawn = series.map(([name, key]) => ({ name, points: curve.filter((at) => real(at[key])).map((at) => [at.step, times * at[key]]) }));
    if (drawn.every(({ points }) => points.length < 2)) return null;
    return figure({ id, title, question: null, note: CURVE_NOTES[id]?.(one, curve) ?? `n ${counted(drawn[0].points.length, "logged step")}`,
      draw: (width) => curves({ width: Math.min(width, 700), series: drawn, x: "optimizer step", y, fromZero }),
      data: () => [["step", ...series.map(([name]) => `${name} (${y})`)], ...curve.map((at) => [at.step, ...series.map(([, key]) => (real(at[key]) ? times * at[key] : null))])] });
  }).filter(Boolean);
  if (!charts.length) return [];
  return [h("section", null, h("h3", null, "Training"), h("div", { class: "charts" }, charts))];
}

/** Prompt, LoRA, QLoRA, full: whatever answers the same data on the same base. */
function methodsOf(row, rows, one) {
  const same = rows.filter((other) => other.rivals === row.rivals && other.newest);
  if (!same.includes(row)) same.unshift(row);
  const compared = (one.comparisons ?? []).length ? table({ caption: "Trained against prompted, on the same documents", rows: one.comparisons, columns: [
    { label: "Over", value: (each) => each.over }, { label: "Task", value: (each) => each.task }, { label: "n", number: true, value: (each) => each.n },
    { label: "Difference", number: true, value: (each) => each.delta, cell: (each) => measured({ ...each, n: null, low: each.ci_low, high: each.ci_high, unit: unitOfTask(each) }) },
    { label: "Better?", value: (each) => each.answer },
  ] }) : null;
  if (same.length < 2 && !compared) return null;
  return h("section", null, h("h3", null, "Methods compared"), table({ caption: "The newest of each name with the same data and base", rows: same, columns: [
    { label: "Adapter", value: (other) => other.name, cell: (other) => (other === row ? h("strong", null, other.name) : h("a", { href: adapterHref(other) }, other.name)) },
    { label: "Method", value: methodOf }, { label: "Verdict", value: (other) => other.verdict ?? other.status, cell: (other) => verdictMark(other.verdict ?? other.status) },
    { label: "Target gain", number: true, value: (other) => other.target?.gain, cell: (other) => gainCell(other.target) },
    { label: "Worst general task", number: true, value: (other) => loss(other.worst?.drop), cell: (other) => worstCell(other.worst) },
    { label: "Size", number: true, value: (other) => other.adapter_bytes, cell: (other) => bytes(other.adapter_bytes) },
    { label: "Device time", number: true, value: (other) => other.device_seconds, cell: (other) => duration(other.device_seconds) },
  ] }), compared);
}

function cureOf(one) {
  if (!one.cure) return [];
  const rows = one.cure.curve ?? [];
  return [h("section", null, h("h3", null, "Cure"), h("p", { dir: "auto" }, one.cure.said), table({ caption: "Candidates, the first as trained", rows, columns: [
    { label: "Candidate", value: (each) => (each.kind === "replay" ? `replay ${short(100 * each.share)} %` : `scale ${short(each.scale)}`) },
    { label: "Target, points", number: true, value: (each) => each.target_delta, cell: (each) => measured({ delta: each.target_delta, low: each.target_ci_low, high: each.target_ci_high, unit: "points" }) },
    { label: "General, average, points", number: true, value: (each) => loss(each.pool_drop), cell: (each) => measured({ delta: loss(each.pool_drop), low: loss(each.pool_ci_high), high: loss(each.pool_ci_low), unit: "points" }) },
    { label: "Verdict", value: (each) => each.verdict, cell: (each) => verdictMark(each.verdict) },
  ] }))];
}

function sampleOf(one) {
  if (!one.rows_sample?.length) return null;
  return h("section", null, h("h3", null, "Training rows"), h("p", { class: "question" }, `${one.rows_sample.length} of ${counted(one.rows_train, "row")}, the first; what was trained on is marked ▸.`),
    one.rows_sample.map((row) => h("dl", { class: "conversation" }, row.parts.map((part) => h("div", { class: part.trained ? "trained" : null },
      h("dt", null, part.trained ? "▸ " : "", part.role), h("dd", null, prose(part.text)))))));
}

function lineageOf(one) {
  if (!one.lineage?.length) return null;
  return h("section", null, h("h3", null, "Lineage"), table({ caption: "What it is made from, and what was made of it", rows: one.lineage, columns: [
    { label: "Role", value: (each) => each.role }, { label: "Artifact", value: (each) => each.place ?? each.name, cell: (each) => h("code", { class: "place", title: each.digest }, each.place ?? each.name) },
    { label: "Stage", value: (each) => each.stage }, { label: "Made", value: (each) => each.created, cell: (each) => when(each.created) },
    { label: "Took", number: true, value: (each) => each.seconds, cell: (each) => duration(each.seconds) }, { label: "Run", value: (each) => each.run_id }, { label: "Commit", value: (each) => each.git_commit?.slice(0, 10) },
  ] }));
}

function settingsOf(one) {
  const shown = [["Settings", one.settings_json], ["Library versions", one.versions_json]].filter(([, text]) => text);
  return shown.length ? h("section", null, shown.map(([title, text]) => h("details", null, h("summary", null, title), h("pre", { dir: "auto" }, pretty(text))))) : null;
}
function pretty(text) {
  try {
    return JSON.stringify(typeof text === "string" ? JSON.parse(text) : text, null, 2);
  } catch {
    return String(text);
  }
}
