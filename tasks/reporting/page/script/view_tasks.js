// The tasks of one adapter: what it gained and lost on each, within which interval, and why its verdict is what it is.

const CORRECTED = {
  holm: "corrected by Holm for all tests of the run",
  none: "corrected by Holm for the tests of this adapter alone; for the run's other adapters, and for looking more " +
    "than once, the level that it has to reach is lower instead",
};
const correctedWords = (adjust) => CORRECTED[adjust] ?? "for which other tests it is corrected was not recorded";

const unitOfTask = (one) => one.unit ?? (one.metric === "nll_per_token" ? "nats" : "points");
/** The difference of a task, of which more is better. */
const differenceOf = (task) => ({ unit: unitOfTask(task),
  ...turned({ delta: task.delta, low: task.ci_low, high: task.ci_high }, task.higher_is_better) });

function tasksOf(one) {
  const tasks = (one.tasks ?? []).map((task) => ({ ...task, ...differenceOf(task),
    margin: task.role === "target" ? task.margin : minus(task.margin) }))
    .sort((a, b) => (b.role === "target") - (a.role === "target"));
  if (!tasks.length) return [h("p", { class: "missing" }, "No task was judged.")];
  const confidence = real(one.alpha) ? `${short(100 * (1 - 2 * one.alpha))} %` : "";
  const units = [...new Set(tasks.map((task) => task.unit))];
  const charts = units.map((unit, index) =>
    tasksChart(tasks.filter((task) => task.unit === unit), unit, confidence, index === 0));
  return [h("section", null, h("h3", null, "Tasks"), ...charts, table({ rows: tasks, columns: taskColumns(one),
    caption: `Each task, with ${confidence} intervals; differences turned so that more is better` }))];
}

function tasksChart(tasks, unit, confidence, isFirst) {
  const scaled = ({ delta, low, high, margin }) => [delta, low, high, margin].map((value) => inUnit(value, unit));
  const rowOf = (task) => {
    const [delta, low, high, margin] = scaled(task);
    return { name: task.task, n: task.n, verdict: task.verdict, says: taskSays(task), delta, low, high, margin };
  };
  return figure({
    id: `tasks-${unit}`, title: `Difference to the base, ${unit}`,
    note: "Point at a line, or walk with the arrow keys.",
    question: isFirst ? "More is better. The interval of a general task has to stand right of its margin (the dashed " +
      "bar), that of a target right of the gain that was asked for." : null,
    draw: (width) => intervals({ width, x: `${unit} (${confidence} intervals)`, rows: tasks.map(rowOf) }),
    data: () => [
      ["task", "role", `difference (${unit})`, `low (${unit})`, `high (${unit})`, `margin (${unit})`, "n (documents)",
        "verdict"],
      ...tasks.map((task) => [task.task, task.role, ...scaled(task), task.n, task.verdict])],
  });
}

function taskColumns({ adjust }) {
  const isCounted = (task) => real(task.lost) && task.kind !== "graded";
  const needs = (task) => (task.verdict === "INCONCLUSIVE" && task.needed > task.n
    ? `needs about ${count(task.needed)} documents` : "");
  const scoreColumn = (label, key) => ({ label, number: true, value: (task) => task[key],
    cell: (task) => score(task[key], task.unit),
    copies: [[`${label} (% or nats)`, (task) => inUnit(task[key], task.unit)]] });
  return [
    { label: "Task", value: (task) => task.task,
      cell: (task) => h("div", null, task.task, h("small", null, kindOfTask(task))),
      copies: [["Task", (task) => task.task], ["Role", (task) => task.role], ["Metric", (task) => task.metric]] },
    { label: "n", unit: "documents", number: true, value: (task) => task.n, cell: (task) => count(task.n) },
    scoreColumn("Base", "base"), scoreColumn("Adapter", "adapter"),
    { label: "Difference", number: true, value: (task) => task.delta,
      copies: differenceCopies("Difference", (task) => task),
      cell: (task) => h("div", null, h("strong", null, change(task.delta, task.unit)), ` ${task.unit}`,
        h("small", null, `${change(task.low, task.unit)} to ${change(task.high, task.unit)}`)) },
    { label: "Margin", number: true, hint: "the gain a target had to reach, or the loss a general task was allowed",
      value: (task) => task.margin, cell: (task) => change(task.margin, task.unit),
      copies: [["Margin (points or nats)", (task) => inUnit(task.margin, task.unit)]] },
    { label: "Lost / gained", number: true, value: (task) => task.lost,
      hint: "documents that only the base got right, and that only the adapter did",
      cell: (task) => (isCounted(task) ? `${count(task.lost)} / ${count(task.gained)}` : "–"),
      copies: [["Lost (documents)", (task) => (isCounted(task) ? task.lost : null)],
        ["Gained (documents)", (task) => (isCounted(task) ? task.gained : null)]] },
    { label: "p, corrected", number: true, value: probabilityOf, cell: (task) => probability(probabilityOf(task)),
      hint: "probability of such figures if what the verdict says were false (of an open one, if PASS were), " +
        correctedWords(adjust) },
    { label: "KL, nats", number: true, value: (task) => task.kl, cell: (task) => short(task.kl),
      hint: "Kullback-Leibler divergence of the adapter's answers from the base's, per token" },
    { label: "Verdict", value: (task) => task.verdict,
      cell: (task) => h("div", null, verdictMark(task.verdict), h("small", { dir: "auto" }, needs(task))) },
    { label: "Why", value: (task) => task.reason,
      cell: (task) => h("small", { class: "why", dir: "auto" }, task.reason) },
  ];
}

const kindOfTask = (task) => [task.role, task.metric, task.tier !== "critical" ? task.tier : null,
  task.decides === false ? "shown only" : null].filter(Boolean).join(", ");
const probabilityOf = (task) => (task.verdict === "FAIL"
  ? (task.p_breach_adjusted ?? task.p_breach) : (task.p_value_adjusted ?? task.p_value));
const taskSays = (task) =>
  `${isolated(task.task)}: ${measured(task)}, ${marginWords(task.margin, task.unit)}: ${task.verdict}`;
