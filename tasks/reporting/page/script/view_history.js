// History: is a name getting better from release to release, and does it stay within its margin?

async function viewHistory(main, { rest, query }) {
  const { names } = await need("history");
  const known = Object.keys(names);
  fill(main, h("h2", null, "History", rest ? [" of ", named(rest)] : ""), h("p", { class: "question" }, "How did a metric move over the releases of one adapter?"));
  if (!rest || !Object.hasOwn(names, rest)) {
    fill(main, h("p", { class: "missing" }, rest ? `${rest} was never released.` : known.length ? "" : "Nothing was released yet."),
      table({ caption: "Released adapters", rows: known.map((name) => ({ name, ...names[name] })), empty: "nothing was released yet", columns: [
        { label: "Adapter", value: (row) => row.name, cell: (row) => h("a", { href: historyHref(row.name) }, row.name) },
        { label: "Releases", number: true, value: (row) => row.releases },
        { label: "Newest", value: (row) => row.newest, cell: (row) => when(row.newest) },
        { label: "Channels", value: (row) => row.channels },
      ] }));
    return;
  }
  const releases = (await need(`history-${names[rest].chunk}`))[rest];
  const tasks = [...new Map(releases.flatMap((one) => one.tasks).map((task) => [task.task, task])).values()];
  const asked = new Map(query).get("task");
  const chosen = tasks.find((one) => one.task === asked) ?? tasks.find((one) => one.role === "target") ?? tasks[0];
  const chart = h("div");
  const draw = (name) => {
    const task = tasks.find((one) => one.task === name);
    const { times } = unitOf(task.unit);
    const scaled = (value) => (real(value) ? value * times : null);
    const points = releases.map((release) => {
      const found = release.tasks.find((one) => one.task === name) ?? {};
      return { name: `v${release.number}`, delta: scaled(found.gain), low: scaled(found.gain_low), high: scaled(found.gain_high), n: found.n, verdict: found.verdict,
        margin: real(found.margin) ? scaled(found.role === "target" ? found.margin : -found.margin) : null, href: adapterHref({ name: rest, run_id: release.run_id }),
        says: `${isolated(release.release)}, ${moment(release.created)}: ${measured({ delta: found.gain, low: found.gain_low, high: found.gain_high, n: found.n, unit: task.unit })}, ${found.verdict ?? "not judged"}` };
    });
    chart.replaceChildren(figure({ id: "history", title: `${name}: gain over the base`, question: "The dashed line is the gate's margin: what a target had to gain, or a general task was allowed to lose.",
      note: `n ${[...new Set(points.map((one) => one.n).filter(real))].map(count).join(", ")} documents. Point at a mark, or walk with the arrow keys.`,
      draw: (width) => overReleases({ width, points, y: `${task.unit}, more is better` }),
      data: () => [["release", `gain (${task.unit})`, "low", "high", "margin", "n", "verdict"], ...points.map((one) => [one.name, one.delta, one.low, one.high, one.margin, one.n, one.verdict])] }));
    redrawCharts();
  };
  if (tasks.length) {
    fill(main, h("label", null, h("span", null, "Task "), h("select", { change: (event) => {
      history.replaceState(null, "", `${historyHref(rest)}?task=${encodeURIComponent(event.target.value)}`);
      draw(event.target.value);
    } }, tasks.map((one) => h("option", { value: one.task, selected: one === chosen }, `${one.task} (${one.role})`)))), chart);
    draw(chosen.task);
  }
  fill(main, table({ caption: `Releases of ${rest}`, rows: releases, columns: [
    { label: "Release", value: (one) => one.release, cell: (one) => h("a", { href: adapterHref({ name: rest, run_id: one.run_id }) }, one.release) },
    { label: "Made", value: (one) => one.created, cell: (one) => when(one.created) },
    { label: "Verdict", value: (one) => one.verdict, cell: (one) => verdictMark(one.verdict) },
    { label: "Channels", value: (one) => (one.channels ?? []).join(", ") },
    { label: "Override", value: (one) => one.override },
    { label: "Published", value: (one) => (one.published ?? []).join(" "), cell: (one) => (one.published?.length ? h("ul", { class: "places" }, one.published.map((uri) => h("li", null, place(uri)))) : missing()) },
  ] }));
}
