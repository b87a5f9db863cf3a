// Routes: #/fleet, #/tradeoff, #/heat, #/adapter/NAME@RUN, #/history/NAME, #/bench, each with ?filters; #/chart/ID/...
// before one of them shows that chart alone.

const VIEWS = {
  fleet: viewFleet, tradeoff: viewTradeoff, heat: viewHeat,
  adapter: viewAdapter, history: viewHistory, bench: viewBench,
};

function route() {
  const [path, asked = ""] = (location.hash.slice(1) || "/fleet").split("?");
  let steps = path.split("/").slice(1).map(decoded);
  const chart = steps[0] === "chart" ? steps[1] : null;
  if (chart !== null) steps = steps.slice(2);
  return { chart, view: steps[0] || "fleet", rest: steps.slice(1).join("/"), query: [...new URLSearchParams(asked)] };
}
const decoded = (step) => {
  try {
    return decodeURIComponent(step);
  } catch {
    return step;
  }
};
const routeWithoutChart = () => (location.hash.slice(1) || "/fleet").replace(/^\/chart\/[^/]*/, "");

const main = document.querySelector("main");
let turn = 0;

async function show() {
  const here = route();
  const mine = (turn += 1);
  const next = h("div", { class: here.chart === null ? null : "single" });
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${here.view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const reading = h("p", { class: "missing" }, "reading the data …");
  const late = setTimeout(() => mine === turn && main.replaceChildren(reading), 200);
  try {
    if (!Object.hasOwn(VIEWS, here.view)) {
      throw new Error(`there is no view called ${here.view}; there are ${Object.keys(VIEWS).join(", ")}.`);
    }
    await VIEWS[here.view](next, here);
  } catch (error) {
    trouble(error, next);
  }
  clearTimeout(late);
  if (mine !== turn) return; // somebody has gone on meanwhile
  main.replaceChildren(next);
  if (here.chart !== null) {
    const wanted = document.getElementById(`chart-${here.chart}`);
    const whole = h("p", null, h("a", { href: `#${routeWithoutChart()}` }, "The whole view"));
    if (wanted) next.replaceChildren(wanted, whole);
  }
  redrawCharts();
  document.title = `${[here.rest, here.view].filter(Boolean).join(" – ")} · ${SITE.title}`;
  document.body.dataset.shown = location.hash || "#/fleet"; // for tests: this view is complete
}

/** What went wrong, in words, within the part of the view `at` that lacks something for it. */
function trouble(error, at) {
  at.append(h("p", { class: "error", role: "alert" }, error.message));
  if (!(error instanceof Error) || error.constructor !== Error) console.error(error);
}

function redrawCharts() {
  for (const chart of main.querySelectorAll("figure.chart")) chart.redraw();
}

let resizing;
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  clearTimeout(resizing);
  resizing = setTimeout(redrawCharts, 150);
});
addEventListener("beforeprint", () => main.querySelectorAll("div.table").forEach((one) => one.whole()));
addEventListener("afterprint", () => main.querySelectorAll("div.table").forEach((one) => one.asChosen()));
addEventListener("hashchange", () => (show(), scrollTo(0, 0)));
document.querySelector("a.skip").addEventListener("click", (event) => (event.preventDefault(), main.focus()));

const theme = document.getElementById("theme");
function paint(wanted) {
  if (wanted === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = wanted;
  theme.value = wanted;
}
theme.addEventListener("change", () => {
  paint(theme.value);
  try {
    localStorage.setItem("tunefleet-theme", theme.value);
  } catch { /* a page from a disk may keep nothing: then the choice holds until it is closed */ }
});
try {
  paint(localStorage.getItem("tunefleet-theme") ?? "auto");
} catch {
  paint("auto");
}

// Only a page that tunefleet serves on this machine asks, now and then, whether it was built anew.
const newer = document.getElementById("newer");
const later = () => setTimeout(watch, 1000 * SITE.watch);
function watch() {
  if (document.hidden) return later();
  arrived.set("now", (made) => (made === SITE.made ? later() : tell("The results have changed.", "Show them")));
  const asked = h("script", { src: `now.js?${Date.now()}`, load: () => asked.remove(),
    error: () => tell("The server has ended; this is how things stood.", "Ask again") });
  document.head.append(asked);
}
function tell(words, button) {
  const again = h("button", { type: "button", class: "quiet", click: () => location.reload() }, button);
  newer.replaceChildren(words, " ", again);
}
const served = location.protocol === "http:" && ["127.0.0.1", "localhost"].includes(location.hostname);
if (SITE.watch && served) later();

document.getElementById("made").replaceChildren(when(SITE.made));
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone ?? ZONE_NAME;
document.getElementById("zone").textContent = `Times in ${zone}.`;
show();
