// The bench: what can these tests tell at all? Documents needed for a margin, the noise of the base against itself, and
// whether damage that was made on purpose was noticed.

const SELF_TESTS = {
  again: "the base against itself", noised: "a noised adapter", "one-answer": "an adapter of one answer",
};
const PRECISION = { none: "16 bit", nf4: "4 bit" };
const MOST_BASES = 6; // with a chart; the table has all

const baseWords = (one) => `${one.base_model}, ${PRECISION[one.precision] ?? one.precision}`;
const WHERE = [
  { label: "Base", value: (one) => one.base_model, cell: (one) => tailOf(one.base_model) },
  { label: "Precision", value: (one) => PRECISION[one.precision] ?? one.precision },
];
const sized = (value, unit) =>
  (real(value) ? `${digits(inUnit(value, unit), unitOf(unit).places)} ${unit}` : "–");
/** A column of sizes of a drop, in the unit of each row's task. */
const sizeColumn = (label, hint, key) => ({ label, hint, number: true,
  value: (one) => one[key], cell: (one) => sized(one[key], one.unit),
  copies: [[`${label} (points or nats)`, (one) => inUnit(one[key], one.unit)]] });

async function viewBench(main) {
  const bench = await need("bench");
  const tasks = bench.tasks ?? [];
  fill(main, h("h2", null, "Bench"),
    h("p", { class: "question" },
      "How much can be believed: how small a loss do these tasks notice, and did they notice damage made on purpose?"),
    neededCharts(tasks), tasksOfBench(tasks),
    h("h3", null, "Noise floor"), noiseFloor(bench.noise_floor ?? []),
    h("h3", null, "Self-tests"), selfTests(bench.self_tests ?? []));
}

function neededCharts(tasks) {
  const bases = new Map();
  for (const one of tasks) {
    if (one.unit !== "points" || !one.needed?.length) continue;
    bases.set(baseWords(one), [...(bases.get(baseWords(one)) ?? []), one]);
  }
  return h("div", { class: "charts" }, [...bases].slice(0, MOST_BASES).map(([base, rows], index) => figure({
    id: `documents-${index}`, title: "Documents needed for a margin", question: base,
    note: "To rule out a loss of this size at the usual disagreement. Ring: the documents a task has.",
    draw: (width) => needed({ width, rows }),
    data: () => [["base", "task", "margin (points)", "documents needed", "n"], ...rows.flatMap((one) =>
      one.needed.map((each) => [base, one.task, 100 * each.margin, each.documents, one.n]))],
  })));
}

function tasksOfBench(tasks) {
  const measured = tasks.find((one) => one.unit === "points" && one.needed?.length);
  const margins = measured?.needed.map(({ margin }) => margin) ?? [];
  const needs = (one, index) => one.needed?.[index]?.documents;
  return table({
    caption: "Tasks, and the documents needed to rule out a loss of 1, 2 ... points, " +
      "or that perplexity rises by 1, 2 ... percent",
    rows: tasks, empty: "no task was judged yet",
    columns: [
      { label: "Task", value: (one) => one.task,
        cell: (one) => h("div", null, one.task, h("small", null, one.metric)),
        copies: [["Task", (one) => one.task], ["Metric", (one) => one.metric], ["Unit", (one) => one.unit]] },
      ...WHERE,
      { label: "n", number: true, unit: "documents", value: (one) => one.n, cell: (one) => count(one.n) },
      { label: "Adapters", number: true, value: (one) => one.adapters },
      { label: "Disagreement, %", number: true, value: (one) => one.disagreement,
        hint: "documents on which an adapter and its base differ, the median of adapters that did not fail",
        cell: (one) => (real(one.disagreement) ? digits(100 * one.disagreement, 1) : "–"),
        text: (one) => (real(one.disagreement) ? 100 * one.disagreement : null) },
      sizeColumn("Margin", "the loss that is allowed, the median", "margin"),
      sizeColumn("Settles", "the smallest margin that n documents can settle, at this disagreement", "settles"),
      ...margins.map((margin, index) => ({ label: `For ${short(100 * margin)}`, unit: "documents", number: true,
        value: (one) => needs(one, index), cell: (one) => count(needs(one, index)) })),
    ],
  });
}

const saidColumn = { label: "Said", value: (one) => one.said, cell: (one) => h("small", { dir: "auto" }, one.said) };

const noiseFloor = (rows) => table({
  caption: "The base against itself, the newest of each", rows, empty: "no self-test was run",
  columns: [...WHERE,
    { label: "Documents that flipped", number: true, value: (one) => one.flips },
    { label: "Largest difference, nats", number: true, value: (one) => one.largest_difference,
      hint: "of one choice's log-likelihood, by the batch it was computed in",
      cell: (one) => short(one.largest_difference) },
    saidColumn,
    { label: "Run", value: (one) => one.run_id },
  ],
});

const selfTests = (rows) => table({
  caption: "Damage made on purpose, judged like any adapter", rows, empty: "no self-test was run",
  columns: [
    { label: "Test", value: (one) => SELF_TESTS[one.kind] ?? one.kind }, ...WHERE,
    { label: "Expected", value: (one) => one.expected },
    { label: "Verdict", value: (one) => one.verdict, cell: (one) => verdictMark(one.verdict) },
    { label: "As it should be?", value: (one) => (one.ok ? "✓ yes" : "✕ no") },
    { label: "Noticed by", value: (one) => [one.noticed_by].flat().filter(Boolean).join(", ") },
    saidColumn, runColumn(),
  ],
});

/** Documents by margin, on logarithmic axes since one goes with the square of the other; a ring is what a task has. */
function needed({ width, rows }) {
  const log = Math.log10;
  const all = rows.flatMap((one) => one.needed.map(({ margin, documents }) => [100 * margin, documents]))
    .filter(([, documents]) => documents > 0);
  const [low, high] = extent(all.map(([, documents]) => log(documents)).concat(rows.map((one) => log(one.n))));
  const powers = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) powers.push(power);
  const margins = [...new Set(all.map(([margin]) => margin))].sort((a, b) => a - b);
  const [left, right] = [64, 130];
  const { svg, atX, atY } = ground({ width, height: Math.max(320, 15 * rows.length + 130), left, right, zero: null,
    across: margins.map(log), figureX: (at) => short(10 ** at), x: "margin, points",
    up: powers, figureY: (power) => count(10 ** power), y: "documents" });
  let lowest = -Infinity;
  const lastOf = (one) => atY(log(one.needed.at(-1)?.documents || 1));
  const ends = rows.map((one, index) => [one, index, lastOf(one)]).sort((a, b) => a[2] - b[2]);
  for (const [one, index, end] of ends) {
    const points = one.needed.filter(({ documents }) => documents > 0)
      .map(({ margin, documents }) => [atX(log(100 * margin)), atY(log(documents))]);
    lowest = Math.max(end + 4, lowest + 15);
    svg.append(line(points, `curve curve-${index % 4}`), label(width - right + 8, lowest, clip(one.task, 18)));
    if (!(one.settles > 0)) continue;
    const says = `${one.task}: ${count(one.n)} documents settle a margin of ${digits(100 * one.settles, 1)} points`;
    const cx = Math.min(width - right, Math.max(left, atX(log(100 * one.settles))));
    svg.append(told(says, s("circle", { class: "ring", cx, cy: atY(log(one.n)), r: 5 })));
  }
  return svg;
}
