// Data comes in parts: inlined in a small fleet's page, else as files beside it. A file is a script that hands over its
// JSON as a string, since a page that was opened from a disk may load scripts but may not fetch. Strings are parsed as
// JSON and never run, so that no key of theirs (__proto__) means anything.

const SITE = JSON.parse(document.getElementById("site").textContent);
const parts = new Map();
const arrived = new Map();

window.tunefleet = (name, text) => arrived.get(name)?.(JSON.parse(text));

/** A part of the data; an Error in words if its file is missing or damaged. */
function need(name) {
  if (!parts.has(name)) parts.set(name, fetchPart(name));
  return parts.get(name);
}

function fetchPart(name) {
  const inlined = document.getElementById(`part-${name}`);
  if (inlined) return Promise.resolve(JSON.parse(inlined.textContent));
  const file = SITE.files[name];
  if (!file) return Promise.reject(new Error(`this page has no data called ${name}.`));
  return new Promise((resolve, reject) => {
    const fail = (what) => {
      parts.delete(name); // it is asked for again when a view needs it again
      reject(new Error(`${file} ${what} Reload the page, or run tunefleet dashboard again.`));
    };
    arrived.set(name, (value) => (arrived.delete(name), resolve(value)));
    document.head.append(h("script", { src: file, charset: "utf-8",
      load: () => arrived.has(name) && fail("is cut or damaged: it holds no data."), // a script with a fault loads, too
      error: () => fail("is missing beside this page, or the dashboard was built anew.") }));
  });
}

/** Rows from columns {"target.gain": {values, words?}}; words are an index into a list where texts repeat. */
function unpacked({ length, columns }) {
  return Array.from({ length }, (_, index) => {
    const row = {};
    for (const [key, { values, words }] of Object.entries(columns)) {
      const value = words ? (values[index] === null ? null : words[values[index]]) : values[index];
      const [first, second] = key.split(".");
      if (!second) row[first] = value;
      else if (value !== null) (row[first] ??= {})[second] = value;
    }
    return row;
  });
}

const idOf = (row) => `${row.name}@${row.run_id}`;
const adapterHref = ({ name, run_id }) => `#/adapter/${encodeURIComponent(name)}@${encodeURIComponent(run_id)}`;
const historyHref = (name) => `#/history/${encodeURIComponent(name)}`;

let fleetRows = null;
async function fleet() {
  if (!fleetRows) {
    fleetRows = unpacked(await need("fleet"));
    for (const [index, row] of fleetRows.entries()) {
      row.index = index;
      row.time = Date.parse(row.started);
      row.words = [row.name, row.run_id, row.recipe, row.base_model, row.data_source, row.method, row.status,
        row.target?.task, row.worst?.task].join(" ").toLowerCase();
    }
  }
  return fleetRows;
}

async function details(row) {
  return (await need(`adapters-${row.part}`))[idOf(row)];
}
