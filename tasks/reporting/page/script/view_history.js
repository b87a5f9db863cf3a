// History: is a name getting better from release to release, and does it stay within its margin?

async function viewHistory(main, { rest, query }) {
  const { names } = await need("history");
  fill(main, h("h2", null, "History", rest ? [" of ", named(rest)] : ""),
    h("p", { class: "question" }, "How did a metric move over the releases of one adapter?"));
  if (!rest || !Object.hasOwn(names, rest)) {
    const none = Object.keys(names).length ? "" : "Nothing was released yet.";
    fill(main, h("p", { class: "missing" }, rest ? `${rest} was never released.` : none), releasedNames(names));
    return;
  }
  const releases = (await need(`history-${names[rest].chunk}`))[rest];
  const tasks = [...new Map(releases.flatMap((one) => one.tasks).map((task) => [task.task, task])).values()];
  const asked = new Map(query).get("task");
  const chosen = tasks.find((one) => one.task === asked) ?? tasks.find((one) => one.role === "target") ?? tasks[0];
  const chart = h("div");
  const draw = (name) => {
    chart.replaceChildren(historyChart(rest, releases, tasks.find((one) => one.task === name)));
    redrawCharts();
  };
  if (tasks.length) {
    const select = h("select", { change: (event) => {
      history.replaceState(null, "", `${historyHref(rest)}?task=${encodeURIComponent(event.target.value)}`);
      draw(event.target.value);
    } }, tasks.map((one) => h("option", { value: one.task, selected: one === chosen }, `${one.task} (${one.role})`)));
    fill(main, h("label", null, h("span", null, "Task "), select), chart);
    draw(chosen.task);
  }
  fill(main, releasesOf(rest, releases));
}

const releasedNames = (names) => table({ caption: "Released adapters", empty: "nothing was released yet",
  rows: Object.keys(names).map((name) => ({ name, ...names[name] })), columns: [
    { label: "Adapter", value: (row) => row.name, cell: (row) => h("a", { href: historyHref(row.name) }, row.name) },
    { label: "Releases", number: true, value: (row) => row.releases },
    { label: "Newest", unit: "UTC", value: (row) => row.newest, cell: (row) => when(row.newest) },
    { label: "Channels", value: (row) => row.channels },
  ] });

function historyChart(name, releases, { task, unit }) {
  const points = releases.map((release) => {
    const found = release.tasks.find((one) => one.task === task) ?? {};
    const said = measured({ delta: found.gain, low: found.gain_low, high: found.gain_high, n: found.n, unit });
    return { name: `v${release.number}`, n: found.n, verdict: found.verdict,
      delta: inUnit(found.gain, unit), low: inUnit(found.gain_low, unit), high: inUnit(found.gain_high, unit),
      margin: inUnit(found.role === "target" ? found.margin : minus(found.margin), unit),
      href: adapterHref({ name, run_id: release.run_id }),
      says: `${isolated(release.release)}, ${moment(release.created)}: ${said}, ${found.verdict ?? "not judged"}` };
  });
  const ns = [...new Set(points.map((one) => one.n).filter(real))].map(count).join(", ");
  return figure({ id: "history", title: `${task}: gain over the base`,
    question: "The dashed line is the gate's margin: " +
      "what a target had to gain, or a general task was allowed to lose.",
    note: `n ${ns} documents. Point at a mark, or walk with the arrow keys.`,
    draw: (width) => overReleases({ width, points, y: `${unit}, more is better` }),
    data: () => [
      ["release", `gain (${unit})`, `low (${unit})`, `high (${unit})`, `margin (${unit})`, "n (documents)", "verdict"],
      ...points.map((one) => [one.name, one.delta, one.low, one.high, one.margin, one.n, one.verdict])] });
}

function releasesOf(name, releases) {
  const places = (one) => h("ul", { class: "places" }, one.published.map((uri) => h("li", null, place(uri))));
  return table({ caption: `Releases of ${name}`, rows: releases, columns: [
    { label: "Release", value: (one) => one.release,
      cell: (one) => h("a", { href: adapterHref({ name, run_id: one.run_id }) }, one.release),
      copies: [["Release", (one) => one.release], ["Run", (one) => one.run_id]] },
    { label: "Made", unit: "UTC", value: (one) => one.created, cell: (one) => when(one.created) },
    { label: "Verdict", value: (one) => one.verdict, cell: (one) => verdictMark(one.verdict) },
    { label: "Channels", value: (one) => (one.channels ?? []).join(", ") },
    { label: "Override", value: (one) => one.override },
    { label: "Published", value: (one) => (one.published ?? []).join(" "),
      cell: (one) => (one.published?.length ? places(one) : missing()) },
  ] });
}
