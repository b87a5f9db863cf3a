// The bench: what can these tests tell at all? Documents needed for a margin, the noise of the base against itself, and
// whether damage that was made on purpose was noticed.

const SELF_TESTS = { again: "the base against itself", noised: "a noised adapter", "one-answer": "an adapter of one answer" };
const PRECISION = { none: "16 bit", nf4: "4 bit" };
const MOST_BASES = 6; // with a chart; the table has all

async function viewBench(main) {
  const bench = await need("bench");
  const tasks = bench.tasks ?? [];
  const where = [{ label: "Base", value: (one) => one.base_model, cell: (one) => tailOf(one.base_model) }, { label: "Precision", value: (one) => PRECISION[one.precision] ?? one.precision }];
  const margins = tasks.find((one) => one.unit === "points" && one.needed?.length)?.needed.map(({ margin }) => margin) ?? [];
  const needs = (one, index) => one.needed?.[index]?.documents;
  const size = (value, unit) => (real(value) ? `${digits(value * unitOf(unit).times, unitOf(unit).places)} ${unit}` : "–");
  fill(main, h("h2", null, "Bench"), h("p", { class: "question" }, "How much can be believed: how small a loss do these tasks notice, and did they notice damage made on purpose?"));
  const bases = new Map();
  for (const one of tasks) if (one.unit === "points" && one.needed?.length) {
    const base = `${one.base_model}, ${PRECISION[one.precision] ?? one.precision}`;
    bases.set(base, [...(bases.get(base) ?? []), one]);
  }
  fill(main, h("div", { class: "charts" }, [...bases].slice(0, MOST_BASES).map(([base, rows], index) => figure({
    id: `documents-${index}`, title: "Documents needed for a margin", question: base, note: "To rule out a loss of this size at the usual disagreement. Ring: the documents a task has.",
    draw: (width) => needed({ width, rows }),
    data: () => [["base", "task", "margin (points)", "documents needed", "n"], ...rows.flatMap((one) => one.needed.map((each) => [base, one.task, 100 * each.margin, each.documents, one.n]))] }))));
  fill(main, table({ caption: "Tasks, and the documents needed to rule out a loss of 1, 2 ... points, or that perplexity rises by 1, 2 ... percent", rows: tasks, empty: "no task was judged yet", columns: [
    { label: "Task", value: (one) => one.task, cell: (one) => h("div", null, one.task, h("small", null, one.metric)) }, ...where,
    { label: "n", number: true, value: (one) => one.n, cell: (one) => count(one.n) },
    { label: "Adapters", number: true, value: (one) => one.adapters },
    { label: "Disagreement, %", hint: "documents on which an adapter and its base differ, the median of adapters that did not fail", number: true, value: (one) => one.disagreement, cell: (one) => (real(one.disagreement) ? digits(100 * one.disagreement, 1) : "–") },
    { label: "Margin", number: true, hint: "the loss that is allowed, the median", value: (one) => one.margin, cell: (one) => size(one.margin, one.unit) },
    { label: "Settles", number: true, hint: "the smallest margin that n documents can settle, at this disagreement", value: (one) => one.settles, cell: (one) => size(one.settles, one.unit) },
    ...margins.map((margin, index) => ({ label: `For ${short(100 * margin)}`, number: true, value: (one) => needs(one, index), cell: (one) => count(needs(one, index)) })),
  ] }));
  fill(main, h("h3", null, "Noise floor"), table({ caption: "The base against itself, the newest of each", rows: bench.noise_floor ?? [], empty: "no self-test was run", columns: [...where,
    { label: "Documents that flipped", number: true, value: (one) => one.flips },
    { label: "Largest difference, nats", number: true, hint: "of one choice's log-likelihood, by the batch it was computed in", value: (one) => one.largest_difference, cell: (one) => short(one.largest_difference) },
    { label: "Said", value: (one) => one.said, cell: (one) => h("small", { dir: "auto" }, one.said) }, { label: "Run", value: (one) => one.run_id }] }));
  fill(main, h("h3", null, "Self-tests"), table({ caption: "Damage made on purpose, judged like any adapter", rows: bench.self_tests ?? [], empty: "no self-test was run", columns: [
    { label: "Test", value: (one) => SELF_TESTS[one.kind] ?? one.kind }, ...where,
    { label: "Expected", value: (one) => one.expected }, { label: "Verdict", value: (one) => one.verdict, cell: (one) => verdictMark(one.verdict) },
    { label: "As it should be?", value: (one) => (one.ok ? "✓ yes" : "✕ no") },
    { label: "Noticed by", value: (one) => [one.noticed_by].flat().filter(Boolean).join(", ") }, { label: "Said", value: (one) => one.said, cell: (one) => h("small", { dir: "auto" }, one.said) },
    { label: "Run", value: (one) => one.started, cell: (one) => h("div", null, when(one.started), h("small", null, one.run_id)) }] }));
}

/** Documents by margin, on logarithmic axes since one goes with the square of the other; a ring is what a task has. */
function needed({ width, rows }) {
  const log = Math.log10;
  const all = rows.flatMap((one) => one.needed.map(({ margin, documents }) => [100 * margin, documents])).filter(([, documents]) => documents > 0);
  const [low, high] = extent(all.map(([, documents]) => log(documents)).concat(rows.map((one) => log(one.n))));
  const [left, right, top, bottom] = [64, 130, 26, 44];
  const height = Math.max(320, 15 * rows.length + top + bottom + 60);
  const margins = [...new Set(all.map(([margin]) => margin))].sort((a, b) => a - b);
  const atX = scale([log(margins[0]), log(margins.at(-1))], [left, width - right]);
  const atY = scale([Math.floor(low), Math.ceil(high)], [height - bottom, top]);
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) svg.append(
    s("line", { class: "grid", x1: left, x2: width - right, y1: atY(power), y2: atY(power) }), label(left - 6, atY(power) + 4, count(10 ** power), { anchor: "end", kind: "tick" }));
  for (const margin of margins) svg.append(label(atX(log(margin)), height - bottom + 16, short(margin), { anchor: "middle", kind: "tick" }));
  svg.append(label(width - right, height - 8, "margin, points", { anchor: "end", kind: "axis" }), label(4, 14, "documents", { kind: "axis" }));
  let lowest = -Infinity;
  const ends = rows.map((one, index) => [one, index, atY(log(one.needed.at(-1)?.documents || 1))]).sort((a, b) => a[2] - b[2]);
  for (const [one, index, end] of ends) {
    const points = one.needed.filter(({ documents }) => documents > 0).map(({ margin, documents }) => [atX(log(100 * margin)), atY(log(documents))]);
    lowest = Math.max(end + 4, lowest + 15);
    svg.append(line(points, `curve curve-${index % 4}`), label(width - right + 8, lowest, clip(one.task, 18)));
    const says = `${one.task}: ${count(one.n)} documents settle a margin of ${digits(100 * one.settles, 1)} points`;
    if (real(one.settles) && one.settles > 0) svg.append(told(says, s("circle", { class: "ring", cx: Math.min(width - right, Math.max(left, atX(log(100 * one.settles)))), cy: atY(log(one.n)), r: 5 })));
  }
  return svg;
}
