// Learned against forgotten: who gained most for what was lost? Points that nobody beats on both make the Pareto front;
// the scales of a cure are a path from the adapter as trained.

const MOST_MARKS = 1500; // points that a page draws without stutter
const MOST_WHISKERS = 150; // points whose intervals can still be told apart

async function viewTradeoff(main, { query }) {
  const rows = await fleet();
  const { points: packed, paths } = await need("tradeoff");
  const found = new Map(unpacked(packed).map((one) => [one.row, one]));
  const charts = h("div");
  const { bar, left, apply } = filtered(rows.filter((row) => row.newest), query, (kept) => {
    const pairs = kept.map((row) => [row, found.get(row.index)]);
    const drawn = pairs.filter((pair) => !whyNot(...pair));
    const kinds = [...new Set(drawn.map(unitsOf))].sort().reverse(); // points first
    const drawings = kinds.map((units) =>
      tradeoffChart(drawn.filter((pair) => unitsOf(pair) === units), paths, ...units.split(" ")));
    const none = h("p", { class: "missing" }, "No adapter here has both a target and general tasks.");
    charts.replaceChildren(...drawings, leftOut(pairs), ...(drawn.length ? [] : [none]));
    redrawCharts();
  });
  fill(main, h("h2", null, "Learned against forgotten"),
    h("p", { class: "question" }, "Which adapters learned most for what they forgot? Up is learned, left is " +
      "forgotten less. The newest run of each name."),
    bar, left, legend(), charts);
  apply();
}

/** What an axis of points and one of nats measure cannot share a chart. */
const unitsOf = ([row, one]) => `${row.target.unit} ${one.forgotten_unit}`;
function whyNot(row, one) {
  if (!one || !real(row.target?.gain)) return "without a measured gain on a target";
  return real(one.forgotten) ? null : "without a general task that decides";
}

function leftOut(pairs) {
  const reasons = new Map();
  for (const why of pairs.map((pair) => whyNot(...pair))) if (why) reasons.set(why, (reasons.get(why) ?? 0) + 1);
  const words = [...reasons].map(([why, times]) => `${counted(times, "adapter")} ${why}`).join("; ");
  return h("p", { class: "left-out" }, reasons.size ? `Not drawn: ${words}.` : "");
}

const forgottenOf = (one) => (one.forgotten_of === "pool" ? `average of ${counted(one.forgotten_n, "general task")}`
  : `worst general task, ${isolated(one.forgotten_of)}, n ${count(one.forgotten_n)}`);

function tradeoffChart(pairs, paths, unit, lostUnit) {
  const all = pairs.map(([row, one]) => tradeoffPoint(row, one, unit, lostUnit));
  const front = frontOf(all);
  const onFront = new Set(front);
  const shown = all.length > MOST_MARKS ? [...new Set([...front, ...all.slice(0, MOST_MARKS)])] : all;
  for (const one of shown) one.whiskers = shown.length <= MOST_WHISKERS || onFront.has(one);
  const steps = shown.map((point) => cureSteps(point, paths[point.row.index] ?? [], unit, lostUnit))
    .filter((path) => path.length);
  const few = shown.length < all.length
    ? `; drawn: the front and the ${count(MOST_MARKS)} newest, filter to see others` : "";
  const bare = shown.length > MOST_WHISKERS ? "; intervals on the front only" : "";
  return figure({
    id: `tradeoff-${unit}${lostUnit === "points" ? "" : `-${lostUnit}`}`,
    title: `Target gain in ${unit}, forgotten in ${lostUnit}`, question: forgottenWords(pairs, lostUnit),
    note: `${counted(all.length, "adapter")}, ${count(front.length)} on the Pareto front${few}${bare}; ` +
      `${confidenceOf(pairs.map(([row]) => row))}. Point at a mark, or walk with the arrow keys.`,
    draw: (width) => scatter({ width, points: shown, front, paths: steps,
      x: `forgotten, ${lostUnit} →`, y: `learned, ${unit} ↑` }),
    data: () => [["adapter", "run", "verdict", `learned (${unit})`, `low (${unit})`, `high (${unit})`,
      `forgotten (${lostUnit})`, `low (${lostUnit})`, `high (${lostUnit})`, "n (documents)", "front"],
    ...all.map((one) => [one.name, one.row.run_id, one.verdict, one.y, one.yLow, one.yHigh, one.x, one.xLow, one.xHigh,
      one.row.target.n, onFront.has(one) ? "yes" : ""])],
  });
}

function tradeoffPoint(row, one, unit, lostUnit) {
  const lost = { delta: one.forgotten, low: one.forgotten_low, high: one.forgotten_high, unit: lostUnit };
  const { gain, gain_low: low, gain_high: high } = row.target;
  return {
    x: inUnit(lost.delta, lostUnit), xLow: inUnit(lost.low, lostUnit), xHigh: inUnit(lost.high, lostUnit),
    y: inUnit(gain, unit), yLow: inUnit(low, unit), yHigh: inUnit(high, unit),
    verdict: row.verdict, href: adapterHref(row), row, name: row.name,
    says: `${isolated(row.name)}, ${row.verdict ?? row.status}: learned ${measured(gainOf(row.target))}; ` +
      `forgot ${measured(lost)} (${forgottenOf(one)})`,
  };
}

function forgottenWords(pairs, lostUnit) {
  const averages = pairs.filter(([, one]) => one.forgotten_of === "pool").length;
  if (averages === pairs.length) return "Forgotten: the average drop of the general tasks.";
  const others = averages ? `, or of ${count(averages)} adapters the average drop` : lostUnit === "nats"
    ? "; these adapters have general tasks in nats per token only, which no axis of points can show" : "";
  return `Forgotten: the drop of the worst general task${others}.`;
}

/** Where a cure's candidates stand, as far as they were measured. */
const cureSteps = ({ row, href }, path, unit, lostUnit) =>
  path.filter((one) => real(one.gain) && real(one.forgotten)).map((one) => {
    const what = one.kind === "replay" ? `replay of ${digits(100 * one.share, 0)} %` : `scale ${short(one.scale)}`;
    return { x: inUnit(one.forgotten, lostUnit), y: inUnit(one.gain, unit), href,
      says: `${isolated(row.name)}, ${what}${one.kept ? ", kept" : ""}: ` +
        `learned ${change(one.gain, unit)} ${unit}, forgot ${change(one.forgotten, lostUnit)} ${lostUnit}` };
  });

/** Those of `points` to which no other is equal or better in both and better in one, from the left to the right. */
function frontOf(points) {
  let last = { x: NaN, y: -Infinity };
  return [...points].sort((a, b) => a.x - b.x || b.y - a.y)
    .filter((one) => (one.y > last.y || (one.y === last.y && one.x === last.x)) && (last = one));
}

function legend() {
  const sample = (width, drawn, words) => h("span", null,
    s("svg", { width, height: 14, "aria-hidden": "true" }, drawn), ` ${words} `);
  const dash = (kind) => s("line", { class: kind, x1: 0, x2: 22, y1: 7, y2: 7 });
  return h("p", { class: "legend" },
    ["PASS", "FAIL", "INCONCLUSIVE", null].map((one) => sample(14, shape(one, 7, 7), one ?? "no verdict")),
    sample(22, dash("front"), "Pareto front of those shown"), sample(22, dash("path"), "scales of a cure"));
}
