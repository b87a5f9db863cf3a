// The charts, as SVG that is written by hand. Each takes its width in pixels, so that text keeps its size on a phone.
// A verdict has a shape as well as a colour: disc PASS, cross FAIL, ring INCONCLUSIVE, small square none.

const TEXT = 12; // pixels
const MOST_NAMES = 25; // points of a scatter that are named on it
const MOST_DOTS = 60; // points of a curve that can be told apart

function scale([low, high], [from, to]) {
  const span = high - low || 1;
  const at = (value) => from + ((value - low) / span) * (to - from);
  at.low = low;
  at.high = high;
  return at;
}

/** Round limits around values, and round steps between them. */
function ticks(low, high, wanted) {
  if (!(high > low)) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const rough = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

const extent = (values) => values.filter(real)
  .reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

function label(x, y, words, { anchor = "start", kind = "label" } = {}) {
  return s("text", { x, y, class: kind, "text-anchor": anchor, "font-size": TEXT }, words);
}

/** What every chart stands on: ticks `across` and `up` with their lines and figures, and the names `x` and `y` of the
 *  axes. Where both have ticks, only those that go up are lined; a line at `zero` is there either way. */
function ground({ width, height, across = [], up = [], x, y = "", zero = 0, figureX = short, figureY = short,
  left = 52, right = 14, top = 26, bottom = 44 }) {
  const atX = scale([across[0], across.at(-1)], [left, width - right]);
  const atY = scale([up[0], up.at(-1)], [height - bottom, top]);
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const kind = (tick) => (tick === zero ? "zero" : "grid");
  for (const tick of up) {
    svg.append(s("line", { class: kind(tick), x1: left, x2: width - right, y1: atY(tick), y2: atY(tick) }),
      label(left - 6, atY(tick) + 4, figureY(tick), { anchor: "end", kind: "tick" }));
  }
  for (const tick of across) {
    if (tick === zero || !up.length) {
      svg.append(s("line", { class: kind(tick), x1: atX(tick), x2: atX(tick), y1: top, y2: height - bottom }));
    }
    svg.append(label(atX(tick), height - bottom + 16, figureX(tick), { anchor: "middle", kind: "tick" }));
  }
  svg.append(label(width - right, height - 8, x, { anchor: "end", kind: "axis" }), label(4, 14, y, { kind: "axis" }));
  return { svg, atX, atY };
}

/** The ground for values of x and y. */
const plane = ({ width, height, xs, ys, ...more }) => ground({ width, height, ...more,
  across: ticks(...xs, Math.max(3, Math.floor(width / 110))), up: ticks(...ys, Math.max(3, Math.floor(height / 60))) });

function shape(verdict, x, y, size = 4.5) {
  const kind = `point ${(verdict ?? "none").toLowerCase()}`;
  if (verdict === "PASS") return s("circle", { class: kind, cx: x, cy: y, r: size });
  if (verdict === "FAIL") {
    const [corner, across] = [`M${x - size},${y - size}`, 2 * size];
    return s("path", { class: kind, d: `${corner}l${across},${across}m0,${-across}l${-across},${across}` });
  }
  if (verdict === "INCONCLUSIVE") return s("circle", { class: kind, cx: x, cy: y, r: size });
  return s("rect", { class: kind, x: x - 3, y: y - 3, width: 6, height: 6 });
}

/** What can be pointed at and walked to with the arrow keys, and reads itself out: a link, or only told. */
const mark = (href, says, ...shapes) => s("a", { href, "data-says": says }, s("title", null, says), ...shapes);
const told = (says, ...shapes) => s("g", { "data-says": says }, s("title", null, says), ...shapes);
const line = (points, kind) => s("path", { class: kind,
  d: points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("") });
const whisker = (x1, y1, x2, y2) => s("line", { class: "whisker", x1, y1, x2, y2 });

/** Points {x, xLow, xHigh, y, yLow, yHigh, verdict, href, says}, the front through the best of them, and paths. */
function scatter({ width, points, front, paths, x, y }) {
  const all = [...points, ...paths.flat()];
  const { svg, atX, atY } = plane({ width, height: Math.min(520, Math.max(320, width * 0.6)), x, y,
    xs: extent(all.flatMap((one) => [one.x, one.xLow, one.xHigh, 0])),
    ys: extent(all.flatMap((one) => [one.y, one.yLow, one.yHigh, 0])) });
  const at = (one) => [atX(one.x), atY(one.y)];
  if (front.length > 1) svg.append(line(front.map(at), "front"));
  for (const path of paths) {
    svg.append(line(path.map(at), "path"));
    for (const one of path) {
      svg.append(mark(one.href, one.says, s("circle", { class: "step", cx: atX(one.x), cy: atY(one.y), r: 3 })));
    }
  }
  for (const one of points) {
    const [across, up] = at(one);
    svg.append(mark(one.href, one.says,
      one.whiskers && real(one.xLow) && real(one.xHigh) ? whisker(atX(one.xLow), up, atX(one.xHigh), up) : null,
      one.whiskers && real(one.yLow) && real(one.yHigh) ? whisker(across, atY(one.yLow), across, atY(one.yHigh)) : null,
      shape(one.verdict, across, up)));
  }
  if (points.length <= MOST_NAMES) {
    svg.append(...names(points.map((one) => [...at(one), one.name]), paths.flat().map(at), width));
  }
  return svg;
}

/** Names beside their points [x, y, name], where none covers another name, a point or one of the `others`. */
function names(points, others, width) {
  const taken = [...points, ...others].map(([x, y]) => [x - 7, y - 7, x + 7, y + 7]);
  return points.map(([x, y, name]) => {
    const words = clip(name, 22);
    const long = words.length * TEXT * 0.6;
    const places = [[x + 9, y - 5], [x + 9, y + 14], [x - 9 - long, y - 5], [x - 9 - long, y + 14]];
    const covers = ([left, base]) => ([x1, y1, x2, y2]) =>
      left < x2 && left + long > x1 && base - TEXT < y2 && base > y1;
    const free = places.find((one) => one[0] > 0 && one[0] + long < width && !taken.some(covers(one)));
    if (!free) return null;
    taken.push([free[0], free[1] - TEXT, free[0] + long, free[1]]);
    return label(...free, words, { kind: "label name" });
  }).filter(Boolean);
}

/** Curves {name, points: [[x, y]]}; named above where there are several, and each dashed in its own way. */
function curves({ width, series, x, y, height = 240, fromZero = false }) {
  const drawn = series.filter((one) => one.points.length);
  const points = drawn.flatMap((one) => one.points);
  const ys = extent([...points.map(([, value]) => value), fromZero ? 0 : null]);
  const { svg, atX, atY } = plane({ width, height, x, y, xs: extent(points.map(([at]) => at)), ys, right: 20 });
  drawn.forEach((one, index) => {
    const kind = `curve-${index % 4}`;
    svg.append(line(one.points.map(([at, value]) => [atX(at), atY(value)]), `curve ${kind}`));
    const every = Math.ceil(one.points.length / MOST_DOTS); // of a long curve some points, and only when pointed at
    for (const [at, value] of one.points.filter((_, place) => place % every === 0)) {
      svg.append(told(`${one.name} at ${x} ${short(at)}: ${short(value)} ${y}`, s("circle",
        { class: `dot ${kind}${every > 1 ? " faint" : ""}`, cx: atX(at), cy: atY(value), r: every > 1 ? 4 : 2.5 })));
    }
    if (drawn.length > 1) {
      const from = width - 110 * (drawn.length - index);
      svg.append(s("line", { class: `curve ${kind}`, x1: from, x2: from + 24, y1: 10, y2: 10 }),
        label(from + 30, 14, clip(one.name, 12)));
    }
  });
  return svg;
}

/** One line for each task: interval, estimate, zero, and a bracket where the margin stands. Rows of one unit. */
function intervals({ width, rows, x }) {
  const narrow = width < 560;
  const left = narrow ? 24 : Math.min(240, width * 0.34);
  const step = narrow ? 46 : 30;
  const xs = extent(rows.flatMap((one) => [one.low, one.high, one.delta, one.margin, 0]));
  const { svg, atX } = ground({ width, height: rows.length * step + 62, x, across: ticks(...xs, narrow ? 4 : 7),
    left, right: 16, top: 8, bottom: 46 });
  rows.forEach((one, index) => {
    const y = index * step + (narrow ? 34 : 24);
    const words = `${clip(one.name, narrow ? 34 : 24)} (n ${count(one.n)})`;
    svg.append(narrow ? label(4, y - 14, words) : label(left - 10, y + 4, words, { anchor: "end" }));
    svg.append(told(one.says,
      real(one.low) && real(one.high)
        ? s("line", { class: "interval", x1: atX(one.low), x2: atX(one.high), y1: y, y2: y }) : null,
      real(one.margin) ? s("path", { class: "margin", d: `M${atX(one.margin)},${y - 9}v18` }) : null,
      real(one.delta) ? shape(one.verdict, atX(one.delta), y) : null));
  });
  return svg;
}

/** Cells of rows by columns: the figure stands in each, hatched where the verdict is open, framed where it is FAIL. */
function heat({ width: room, rows, columns, cellOf }) {
  const high = 26;
  const letters = room < 560 ? 13 : 26; // of an adapter's name
  const heading = Math.min(30, Math.max(...columns.map((name) => name.length))) * 6.6; // pixels, about
  const left = Math.min(letters, Math.max(...rows.map((row) => row.name.length))) * 7.2 + 16;
  const wide = Math.max(52, Math.min(96, (room - left - heading * 0.77) / columns.length));
  const top = 24 + heading * 0.65;
  const width = left + columns.length * wide + heading * 0.77;
  const height = top + rows.length * high + 8;
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "data-across": columns.length + 1 },
    s("defs", null,
      s("pattern", { id: "open", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        s("line", { class: "hatch", x1: 0, x2: 0, y1: 0, y2: 6 }))));
  columns.forEach((name, index) => {
    const turned = `translate(${left + index * wide + wide / 2},${top - 8}) rotate(-40)`;
    svg.append(s("text", { class: "label", "font-size": TEXT, transform: turned },
      s("title", null, name), clip(name, 30)));
  });
  rows.forEach((row, down) => {
    const y = top + down * high;
    const write = (x, words, kind) => label(x, y + 17, words, { anchor: "middle", kind });
    svg.append(mark(row.href, row.name, label(left - 8, y + 17, clip(row.name, letters), { anchor: "end" })));
    columns.forEach((name, across) => {
      const found = cellOf(row, across);
      const x = left + across * wide;
      const box = (by) => ({ x: x + by, y: y + by, width: wide - 2 * by, height: high - 2 * by });
      if (!found) {
        svg.append(told(`${isolated(row.name)}, ${name}: was not asked`, write(x + wide / 2, "·", "tick")));
        return;
      }
      const open = found.verdict === "INCONCLUSIVE";
      svg.append(told(found.says,
        s("rect", { class: `cell ${found.level}`, ...box(1) }),
        open ? s("rect", { fill: "url(#open)", ...box(1) }) : null,
        found.verdict === "FAIL" ? s("rect", { class: "breach", ...box(2) }) : null,
        write(x + wide / 2, found.words, open ? "value on-hatch" : "value")));
    });
  });
  return svg;
}

const clip = (words, length) =>
  (words.length > length ? `${[...words].slice(0, length - 1).join("")}…` : words);

/** Estimates with intervals in the order of releases, {name, delta, low, high, margin, verdict, href, says}. */
function overReleases({ width, points, y }) {
  const [height, left, right, bottom] = [280, 52, 14, 44];
  const ys = extent(points.flatMap((one) => [one.low, one.high, one.delta, one.margin, 0]));
  const { svg, atY } = ground({ width, height, up: ticks(...ys, 5), x: "release", y, left, right, bottom });
  const step = (width - left - right) / points.length;
  const atX = (index) => left + step * (index + 0.5);
  const drawn = points.map((one, index) => [one, index]).filter(([one]) => real(one.delta));
  svg.append(line(drawn.map(([one, index]) => [atX(index), atY(one.delta)]), "path"));
  const every = Math.ceil(70 / step);
  points.forEach((one, index) => {
    const x = atX(index);
    if (real(one.margin)) {
      svg.append(s("line", { class: "margin", x1: x - step / 2, x2: x + step / 2,
        y1: atY(one.margin), y2: atY(one.margin) }));
    }
    if (index % every === 0) {
      svg.append(label(x, height - bottom + 18, clip(one.name, 16), { anchor: "middle", kind: "tick" }));
    }
    if (real(one.delta)) {
      svg.append(mark(one.href, one.says,
        real(one.low) && real(one.high) ? whisker(x, atY(one.low), x, atY(one.high)) : null,
        shape(one.verdict, x, atY(one.delta))));
    }
  });
  return svg;
}
