// How figures are written: with their unit, and with n where they rest on documents. A fraction's difference is in
// points (hundredths); a loss per token's is in nats. What was not recorded is a dash, never a zero.

const real = (value) => typeof value === "number" && Number.isFinite(value);
const digits = (value, places) =>
  value.toLocaleString(undefined, { minimumFractionDigits: places, maximumFractionDigits: places });
const count = (value) => (real(value) ? value.toLocaleString() : "–");
const counted = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
const signed = (value, places) => {
  const rounded = Number(value.toFixed(places)); // no minus before a zero
  return (rounded > 0 ? "+" : rounded < 0 ? "−" : "") + digits(Math.abs(rounded), places);
};

const UNITS = { points: { times: 100, places: 1, score: "%" }, nats: { times: 1, places: 3, score: "nats" } };
const unitOf = (unit) => UNITS[unit] ?? { times: 1, places: 3, score: unit ?? "" };

/** A figure of the data as it is shown: hundredths of a fraction. */
const inUnit = (value, unit) => (real(value) ? value * unitOf(unit).times : null);
/** A difference without its unit, for columns that name it. */
const change = (value, unit) => (real(value) ? signed(inUnit(value, unit), unitOf(unit).places) : "–");
const score = (value, unit) =>
  (real(value) ? `${digits(inUnit(value, unit), unitOf(unit).places)} ${unitOf(unit).score}` : "–");
const marginWords = (margin, unit) => (real(margin) ? `margin ${change(margin, unit)}` : "no margin");

/** {delta, low, high} of which more is better, also where less of what was measured is. */
const turned = ({ delta, low, high }, higherIsBetter) => (higherIsBetter === false
  ? { delta: minus(delta), low: minus(high), high: minus(low) } : { delta, low, high });
const minus = (value) => (real(value) ? -value || 0 : null);

/** "+12.3 points (+4.0 to +20.1), n 100" */
function measured({ delta, low, high, n, unit }) {
  if (!real(delta)) return "–";
  const interval = real(low) && real(high) ? ` (${change(low, unit)} to ${change(high, unit)})` : "";
  return `${change(delta, unit)} ${unit ?? ""}${interval}${real(n) ? `, n ${count(n)}` : ""}`;
}

function bytes(value) {
  if (!real(value)) return "–";
  const steps = ["B", "kB", "MB", "GB", "TB"];
  let step = 0;
  while (value >= 1000 && step < steps.length - 1) [value, step] = [value / 1000, step + 1];
  return `${digits(value, step && value < 100 ? 1 : 0)} ${steps[step]}`;
}

function duration(seconds) {
  if (!real(seconds)) return "–";
  if (seconds < 120) return `${digits(seconds, seconds < 10 ? 1 : 0)} s`;
  return seconds < 7200 ? `${digits(seconds / 60, 1)} min` : `${digits(seconds / 3600, 1)} h`;
}

const FOUR = { maximumSignificantDigits: 4 };
const short = (value) =>
  (real(value) ? Number(value.toPrecision(4)).toLocaleString(undefined, FOUR).replace("-", "−") : "–");

const probability = (value) => (real(value) ? (value < 0.001 ? "< 0.001" : digits(value, 3)) : "–");

const ZONE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const ZONE_NAME = new Intl.DateTimeFormat(undefined, { timeZoneName: "short" }).formatToParts(new Date())
  .find((part) => part.type === "timeZoneName")?.value ?? "";
const moment = (iso) => (Date.parse(iso) ? ZONE.format(new Date(iso)) : "–");
const when = (iso) => (Date.parse(iso)
  ? h("time", { datetime: iso, title: `${iso} (shown in ${ZONE_NAME})` }, moment(iso)) : missing());

const MARKS = { PASS: "✓", FAIL: "✕", INCONCLUSIVE: "?" };
/** A verdict or state: a mark and a word, so that the colour is only an ornament. */
function verdictMark(verdict) {
  const word = verdict ?? "no verdict";
  return h("span", { class: `verdict ${MARKS[word] ? word.toLowerCase() : "none"}` },
    h("span", { class: "mark", "aria-hidden": "true" }, MARKS[word] ?? "·"), ` ${word}`);
}
