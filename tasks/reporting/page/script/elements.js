// Elements. Everything that comes from data enters the page as a text node or as an attribute set by name: no HTML is
// ever parsed, so that whatever a model or a training row says stays words.

const SVG = "http://www.w3.org/2000/svg";

function element(namespace, name, attributes, children) {
  const made = namespace ? document.createElementNS(namespace, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  return fill(made, ...children);
}

/** Append children; what is null is left out, and what is no element is text. */
function fill(into, ...children) {
  for (const child of children.flat(4)) {
    if (child !== null && child !== undefined) into.append(child instanceof Node ? child : String(child));
  }
  return into;
}
const h = (name, attributes, ...children) => element(null, name, attributes, children);
const s = (name, attributes, ...children) => element(SVG, name, attributes, children);

/** A place as a link if a browser may follow it, else as words. Data may hold javascript: and worse. */
function place(uri, words = uri) {
  let wanted = String(uri);
  if (wanted.startsWith("/") && location.protocol === "file:") wanted = `file://${encodeURI(wanted)}`;
  const allowed = /^https?:\/\//i.test(wanted) || (wanted.startsWith("file:///") && location.protocol === "file:");
  if (allowed) return h("a", { href: wanted, rel: "noreferrer noopener", title: uri }, words);
  return h("code", { class: "place", title: uri, dir: "auto" }, words === uri ? uri : `${words}: ${uri}`);
}

const SHOWN = 1200; // characters of a text before the rest has to be asked for

/** A text of a person or a model: its own reading direction, its line breaks, and cut where it is long. */
function prose(text) {
  if (text === null || text === undefined) return missing();
  const whole = String(text);
  const box = h("div", { class: "prose", dir: "auto" }, whole.slice(0, SHOWN));
  if (whole.length <= SHOWN) return box;
  const rest = h("button", { type: "button", class: "quiet", click: () => (box.replaceChildren(whole), rest.remove()) },
    `… show all ${count(whole.length)} characters`);
  return h("div", null, box, rest);
}

/** A name among other words of one line: its direction of writing, and what it overrides, ends with it. */
const named = (text) => h("bdi", null, text);
const isolated = (text) => `\u2068${text}\u2069`; // the same where there are no elements

const missing = () => h("span", { class: "missing", title: "not recorded" }, "–");

/** Say something to everybody, screen readers included, for a moment. */
function say(words) {
  const line = document.getElementById("said");
  line.textContent = words;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (line.textContent = ""), 4000);
}

async function copy(text, words) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission, or not a secure context: the old way
    const box = h("textarea", { class: "aside" });
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
  say(words);
}

function download(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  say(`saved ${name}`);
}
