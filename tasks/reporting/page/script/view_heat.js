// Forgetting heat map: where did which adapter lose? The newest of each name by the general tasks that decide.

const HEAT_ROWS = 40;

async function viewHeat(main, { query }) {
  const [rows, { tasks, rows: places, chunk }] = [await fleet(), await need("heat")];
  const placed = new Map(places.map((row, index) => [rows[row], index]));
  const chart = h("div");
  const pager = h("div", { class: "tools" });
  let page = 0;
  let kept = [];
  let asked = 0; // a piece may come when somebody has asked for another already
  let drawing = null;

  async function draw() {
    const mine = (asked += 1);
    const shown = kept.slice(page * HEAT_ROWS, (page + 1) * HEAT_ROWS);
    const chunks = [...new Set(shown.map((row) => Math.floor(placed.get(row) / chunk)))];
    turnPages();
    try {
      const cells = new Map(await Promise.all(chunks.map(async (one) => [one, await need(`heat-${one}`)])));
      if (mine !== asked) return;
      const of = (row) => cells.get(Math.floor(placed.get(row) / chunk))[placed.get(row) % chunk];
      chart.replaceChildren(shown.length ? heatFigure(shown, tasks, of)
        : h("p", { class: "missing" }, "No adapter here has general tasks."));
      redrawCharts();
    } catch (error) {
      if (mine !== asked) return;
      chart.replaceChildren();
      trouble(error, chart);
    }
  }

  function turnPages() {
    const pages = Math.ceil(kept.length / HEAT_ROWS);
    const step = (by, words) => h("button", { type: "button", class: "quiet",
      disabled: page + by < 0 || page + by >= pages, click: () => ((page += by), draw()) }, words);
    const steps = [step(-1, "← newer"), ` ${page + 1} of ${pages} `, step(1, "older →")];
    pager.replaceChildren(...(pages > 1 ? steps : []));
  }

  const { bar, left, apply } = filtered(rows.filter((row) => placed.has(row)), query,
    (some) => ((kept = some), (page = 0), (drawing = draw())));
  fill(main, h("h2", null, "Forgetting"),
    h("p", { class: "question" }, "Where did which adapter lose? Difference to the base; more is better."),
    bar, left, chart, pager);
  apply();
  await drawing;
}

function heatFigure(rows, tasks, of) {
  const names = tasks.map((one) => one.task);
  const cellOf = (row, across) => {
    const found = of(row)[across];
    if (!found) return null;
    const [gain, low, high, n, margin, verdict] = found;
    const { unit } = tasks[across];
    const said = `${measured({ delta: gain, low, high, n, unit })}, ${marginWords(minus(margin), unit)}, ${verdict}`;
    return { gain, n, verdict, words: change(gain, unit), level: real(margin) ? level(gain / margin) : "level",
      says: `${isolated(row.name)}, ${names[across]}: ${said}` };
  };
  const columns = tasks.map((one, across) => {
    const ns = rows.map((row) => cellOf(row, across)?.n).filter(real);
    const [least, most] = extent(ns);
    const unit = one.unit === "points" ? "" : ` (${one.unit})`;
    const n = least === most ? count(most) : `${count(least)}–${count(most)}`;
    return `${one.task}${unit}${ns.length ? `, n ${n}` : ""}`;
  });
  const shown = rows.map((row) => ({ ...row, href: adapterHref(row) }));
  const original = new Map(shown.map((row, index) => [row, rows[index]]));
  return figure({
    id: "heat", title: "Adapters by general tasks", question: null,
    note: "Points, unless a task says nats per token; n counts documents. Hatched: inconclusive. Framed: FAIL. " +
      "Colour: lost (orange) or gained (blue), of the margin less than half, less than all, or more; · was not asked.",
    draw: (width) => heat({ width, rows: shown, columns, cellOf: (row, across) => cellOf(original.get(row), across) }),
    data: () => [["adapter", "run", ...tasks.map((one) => `${one.task} (${one.unit})`)],
      ...rows.map((row) => [row.name, row.run_id,
        ...tasks.map((one, across) => inUnit(cellOf(row, across)?.gain, one.unit))])],
  });
}

function level(share) {
  if (!real(share) || share === 0) return "level";
  const strength = Math.abs(share) >= 1 ? 3 : Math.abs(share) >= 0.5 ? 2 : 1;
  return `${share < 0 ? "worse" : "better"}-${strength}`;
}
