// Learned against forgotten: who gained most for what was lost? Points that nobody beats on both make the Pareto front;
// the scales of a cure are a path from the adapter as trained.

const MOST_MARKS = 1500; // points that a page draws without stutter
const MOST_WHISKERS = 150; // points whose intervals can still be told apart

async function viewTradeoff(main, { query }) {
  const rows = await fleet();
  const { points: packed, paths } = await need("tradeoff");
  const found = new Map(unpacked(packed).map((one) => [one.row, one]));
  const charts = h("div");
  const { bar, left, apply } = filtered(rows.filter((row) => found.has(row.index)), query, (kept) => {
    const points = kept.map((row) => [row, found.get(row.index)]).filter(([row, one]) => one && real(row.target?.gain) && real(one.forgotten) && inPoints(row, one));
    const units = [...new Set(points.map(([row]) => row.target.unit))];
    charts.replaceChildren(...(units.length ? units.map((unit) => tradeoffChart(points.filter(([row]) => row.target.unit === unit), paths, unit)) : [h("p", { class: "missing" }, "No adapter here has both a target and general tasks.")]));
    redrawCharts();
  });
  fill(main, h("h2", null, "Learned against forgotten"), h("p", { class: "question" }, "Which adapters learned most for what they forgot? Up is learned, left is forgotten less."), bar, left, legend(), charts);
  apply();
}

function tradeoffChart(pairs, paths, unit) {
  const { times } = unitOf(unit);
  const scaled = (value, by) => (real(value) ? value * by : null);
  const all = pairs.map(([row, one]) => ({
    x: scaled(one.forgotten, 100), xLow: scaled(one.forgotten_low, 100), xHigh: scaled(one.forgotten_high, 100),
    y: scaled(row.target.gain, times), yLow: scaled(row.target.gain_low, times), yHigh: scaled(row.target.gain_high, times),
    verdict: row.verdict, href: adapterHref(row), row,
    says: `${row.name}, ${row.verdict ?? row.status}: learned ${measured({ ...row.target, delta: row.target.gain, low: row.target.gain_low, high: row.target.gain_high })}; ` +
      `forgot ${signed(100 * one.forgotten, 1)} points (${one.forgotten_of})`,
  }));
  const front = frontOf(all);
  const onFront = new Set(front);
  const shown = all.length > MOST_MARKS ? [...new Set([...front, ...all.slice(0, MOST_MARKS)])] : all;
  for (const one of shown) one.whiskers = shown.length <= MOST_WHISKERS || onFront.has(one);
  const steps = shown.map((point) => paths[point.row.index]).map((path, index) => path?.filter((one) => real(one.gain) && real(one.forgotten)).map((one) => ({
    x: 100 * one.forgotten, y: one.gain * times, href: shown[index].href,
    says: `${shown[index].row.name}, ${one.kind === "replay" ? `replay of ${digits(100 * one.share, 0)} %` : `scale ${short(one.scale)}`}${one.kept ? ", kept" : ""}: learned ${signed(one.gain * times, 1)} ${unit}, forgot ${signed(100 * one.forgotten, 1)} points`,
  }))).filter((path) => path?.length);
  return figure({
    id: `tradeoff-${unit}`, title: `Target gain in ${unit}`, question: null,
    note: `${count(all.length)} adapters, ${count(front.length)} on the Pareto front${shown.length < all.length ? `; drawn: the front and the ${count(MOST_MARKS)} newest, filter to see others` : ""}${shown.length > MOST_WHISKERS ? "; intervals on the front only" : ""}. Point at a mark, or walk with the arrow keys.`,
    draw: (width) => scatter({ width, points: shown, front, paths: steps, x: "forgotten, points →", y: `learned, ${unit} ↑` }),
    data: () => [["adapter", "verdict", `learned (${unit})`, "low", "high", "forgotten (points)", "low", "high", "n", "front"],
      ...all.map((one) => [idOf(one.row), one.verdict, one.y, one.yLow, one.yHigh, one.x, one.xLow, one.xHigh, one.row.target.n, onFront.has(one) ? "yes" : ""])],
  });
}

/** What the average of the tasks, or the worst of them, lost can only be compared where it is in points. */
const inPoints = (row, one) => one.forgotten_of === "pool" || row.worst?.unit === "points";

/** Those of `points` that no other beats in both, from the left to the right. */
function frontOf(points) {
  let best = -Infinity;
  return [...points].sort((a, b) => a.x - b.x || b.y - a.y).filter((one) => one.y > best && ((best = one.y), true));
}

const legend = () => h("p", { class: "legend" }, ["PASS", "FAIL", "INCONCLUSIVE", null].map((verdict) => h("span", null,
  s("svg", { width: 14, height: 14, "aria-hidden": "true" }, shape(verdict, 7, 7)), ` ${verdict ?? "no verdict"} `)),
  [["front", "Pareto front of those shown"], ["path", "scales of a cure"]].map(([kind, words]) => h("span", null,
    s("svg", { width: 22, height: 14, "aria-hidden": "true" }, s("line", { class: kind, x1: 0, x2: 22, y1: 7, y2: 7 })), ` ${words} `)));
