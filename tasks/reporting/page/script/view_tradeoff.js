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
    const drawings = kinds.map((units) => tradeoffChart(drawn.filter((pair) => unitsOf(pair) === units), paths, ...units.split(" ")));
    charts.replaceChildren(...drawings, leftOut(pairs), ...(drawn.length ? [] : [h("p", { class: "missing" }, "No adapter here has both a target and general tasks.")]));
    redrawCharts();
  });
  fill(main, h("h2", null, "Learned against forgotten"), h("p", { class: "question" }, "Which adapters learned most for what they forgot? Up is learned, left is forgotten less. The newest run of each name."), bar, left, legend(), charts);
  apply();
}

/** What an axis of points and one of nats measure cannot share a chart. */
const unitsOf = ([row, one]) => `${row.target.unit} ${one.forgotten_unit}`;
const whyNot = (row, one) => (!one || !real(row.target?.gain) ? "without a measured gain on a target" : real(one.forgotten) ? null : "without a general task that decides");

function leftOut(pairs) {
  const reasons = new Map();
  for (const pair of pairs) if (whyNot(...pair)) reasons.set(whyNot(...pair), (reasons.get(whyNot(...pair)) ?? 0) + 1);
  return h("p", { class: "left-out" }, reasons.size ? `Not drawn: ${[...reasons].map(([why, times]) => `${counted(times, "adapter")} ${why}`).join("; ")}.` : "");
}

const forgottenOf = (one) => (one.forgotten_of === "pool" ? `average of ${counted(one.forgotten_n, "general task")}` : `worst general task, ${isolated(one.forgotten_of)}, n ${count(one.forgotten_n)}`);

function tradeoffChart(pairs, paths, unit, lostUnit) {
  const { times } = unitOf(unit);
  const lost = unitOf(lostUnit);
  const scaled = (value, by) => (real(value) ? value * by : null);
  const all = pairs.map(([row, one]) => ({
    x: scaled(one.forgotten, lost.times), xLow: scaled(one.forgotten_low, lost.times), xHigh: scaled(one.forgotten_high, lost.times),
    y: scaled(row.target.gain, times), yLow: scaled(row.target.gain_low, times), yHigh: scaled(row.target.gain_high, times),
    verdict: row.verdict, href: adapterHref(row), row, name: row.name,
    says: `${isolated(row.name)}, ${row.verdict ?? row.status}: learned ${measured({ ...row.target, delta: row.target.gain, low: row.target.gain_low, high: row.target.gain_high })}; ` +
      `forgot ${measured({ delta: one.forgotten, low: one.forgotten_low, high: one.forgotten_high, unit: lostUnit })} (${forgottenOf(one)})`,
  }));
  const averages = pairs.filter(([, one]) => one.forgotten_of === "pool").length;
  const question = averages === pairs.length ? "Forgotten: the average drop of the general tasks."
    : `Forgotten: the drop of the worst general task${averages ? `, or of ${count(averages)} adapters the average drop` : lostUnit === "nats" ? "; these adapters have general tasks in nats per token only, which no axis of points can show" : ""}.`;
  const front = frontOf(all);
  const onFront = new Set(front);
  const shown = all.length > MOST_MARKS ? [...new Set([...front, ...all.slice(0, MOST_MARKS)])] : all;
  for (const one of shown) one.whiskers = shown.length <= MOST_WHISKERS || onFront.has(one);
  const steps = shown.map((point) => paths[point.row.index]).map((path, index) => path?.filter((one) => real(one.gain) && real(one.forgotten)).map((one) => ({
    x: one.forgotten * lost.times, y: one.gain * times, href: shown[index].href,
    says: `${isolated(shown[index].row.name)}, ${one.kind === "replay" ? `replay of ${digits(100 * one.share, 0)} %` : `scale ${short(one.scale)}`}${one.kept ? ", kept" : ""}: learned ${change(one.gain, unit)} ${unit}, forgot ${change(one.forgotten, lostUnit)} ${lostUnit}`,
  }))).filter((path) => path?.length);
  return figure({
    id: `tradeoff-${unit}${lostUnit === "points" ? "" : `-${lostUnit}`}`, title: `Target gain in ${unit}, forgotten in ${lostUnit}`, question,
    note: `${counted(all.length, "adapter")}, ${count(front.length)} on the Pareto front${shown.length < all.length ? `; drawn: the front and the ${count(MOST_MARKS)} newest, filter to see others` : ""}${shown.length > MOST_WHISKERS ? "; intervals on the front only" : ""}; ${confidenceOf(pairs.map(([row]) => row))}. Point at a mark, or walk with the arrow keys.`,
    draw: (width) => scatter({ width, points: shown, front, paths: steps, x: `forgotten, ${lostUnit} →`, y: `learned, ${unit} ↑` }),
    data: () => [["adapter", "verdict", `learned (${unit})`, "low", "high", `forgotten (${lostUnit})`, "low", "high", "n", "front"],
      ...all.map((one) => [idOf(one.row), one.verdict, one.y, one.yLow, one.yHigh, one.x, one.xLow, one.xHigh, one.row.target.n, onFront.has(one) ? "yes" : ""])],
  });
}

/** Those of `points` to which no other is equal or better in both and better in one, from the left to the right. */
function frontOf(points) {
  let last = { x: NaN, y: -Infinity };
  return [...points].sort((a, b) => a.x - b.x || b.y - a.y).filter((one) => (one.y > last.y || (one.y === last.y && one.x === last.x)) && (last = one));
}

const legend = () => h("p", { class: "legend" }, ["PASS", "FAIL", "INCONCLUSIVE", null].map((verdict) => h("span", null,
  s("svg", { width: 14, height: 14, "aria-hidden": "true" }, shape(verdict, 7, 7)), ` ${verdict ?? "no verdict"} `)),
  [["front", "Pareto front of those shown"], ["path", "scales of a cure"]].map(([kind, words]) => h("span", null,
    s("svg", { width: 22, height: 14, "aria-hidden": "true" }, s("line", { class: kind, x1: 0, x2: 22, y1: 7, y2: 7 })), ` ${words} `)));
