// A chart stands in a figure with its question, a line that reads out the mark one points at, and buttons: save as SVG
// or PNG, copy its data, link to it alone. The arrow keys walk over marks.

const KEPT_STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "fill-opacity", "opacity",
  "font-family", "font-size", "font-weight", "text-anchor", "dominant-baseline"];

/** `draw(width)` gives an <svg>; `data` the lines of a table, the headings first. */
function figure({ id, title, question, draw, data, note = null, widest = 1272 }) {
  const reading = h("p", { class: "reading", "aria-live": "polite" }, note ?? "");
  const canvas = h("div", { class: "scroll canvas" });
  const made = h("figure", { id: `chart-${id}`, class: "chart" },
    h("figcaption", null, h("h3", null, title), question ? h("p", { class: "question" }, question) : null),
    canvas, reading,
    h("div", { class: "tools" },
      h("button", { type: "button", class: "quiet", click: () => saveSvg(canvas.firstChild, id) }, "SVG"),
      h("button", { type: "button", class: "quiet", click: () => savePng(canvas.firstChild, id) }, "PNG"),
      h("button", { type: "button", class: "quiet", click: () => copy(tsv(data()), "data copied as TSV") },
        "Copy data as TSV"),
      h("a", { class: "quiet", href: `#/chart/${encodeURIComponent(id)}${routeWithoutChart()}` },
        "Link to this chart")));
  const say_it = (event) => {
    const mark = event.target.closest?.("[data-says]");
    reading.textContent = mark ? mark.dataset.says : (note ?? "");
  };
  canvas.addEventListener("pointerover", say_it);
  canvas.addEventListener("focusin", say_it);
  canvas.addEventListener("keydown", walk);
  made.redraw = () => {
    const svg = draw(Math.max(300, Math.min(widest, canvas.clientWidth || 300)));
    svg.setAttribute("role", "group");
    svg.setAttribute("aria-label", title);
    svg.querySelectorAll("[data-says]").forEach((mark, index) => {
      mark.setAttribute("tabindex", index ? "-1" : "0");
      mark.setAttribute("aria-label", mark.dataset.says);
      if (mark.localName !== "a") mark.setAttribute("role", "img");
    });
    canvas.replaceChildren(svg);
  };
  return made;
}

function walk(event) {
  const across = Number(event.currentTarget.firstChild?.dataset?.across) || 1; // marks in a row of a grid
  const step = { ArrowRight: 1, ArrowDown: across, ArrowLeft: -1, ArrowUp: -across }[event.key];
  const marks = [...event.currentTarget.querySelectorAll("svg [data-says]")];
  const here = marks.indexOf(document.activeElement);
  if (!step || here < 0) return;
  event.preventDefault();
  const next = marks[(here + step + marks.length) % marks.length];
  marks[here].setAttribute("tabindex", "-1");
  next.setAttribute("tabindex", "0");
  next.focus();
}

/** The chart as a file of its own: styles written into it, the page's background behind it, links left out. */
function alone(svg) {
  const copied = svg.cloneNode(true);
  const [from, to] = [svg.querySelectorAll("*"), copied.querySelectorAll("*")];
  from.forEach((source, index) => {
    const style = getComputedStyle(source);
    for (const name of KEPT_STYLES) {
      if (style.getPropertyValue(name)) to[index].setAttribute(name, style.getPropertyValue(name));
    }
  });
  for (const link of copied.querySelectorAll("a")) link.removeAttribute("href");
  copied.prepend(s("rect", { width: "100%", height: "100%", fill: getComputedStyle(document.body).backgroundColor }));
  copied.setAttribute("xmlns", SVG);
  return new XMLSerializer().serializeToString(copied);
}

const fileName = (id, ending) => `tunefleet-${id.replace(/[^\w.-]+/g, "-").slice(0, 80)}.${ending}`;

function saveSvg(svg, id) {
  download(new Blob([alone(svg)], { type: "image/svg+xml" }), fileName(id, "svg"));
}

async function savePng(svg, id) {
  const picture = new Image();
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(alone(svg))}`;
  await picture.decode();
  const canvas = h("canvas");
  [canvas.width, canvas.height] = [2 * svg.width.baseVal.value, 2 * svg.height.baseVal.value];
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => download(blob, fileName(id, "png")), "image/png");
}
