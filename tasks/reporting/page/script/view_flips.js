// Flips of one adapter: both answers side by side, the most moved first.

const FLIPS_SHOWN = 5;
const FLIP_WORDS = { lost: "✕ lost", worse: "↓ worse", gained: "✓ gained", better: "↑ better" };

const FLIPS_QUESTION = "Base and adapter side by side; of each task those that moved most, first. Moved, adapter " +
  "minus base: the probability of the right choice; of a written answer 1 if it became right and −1 if it became " +
  "wrong; of a graded one the score. Choices are counted from 0.";

async function flipsOf(one) {
  const flips = one.flips ?? [];
  if (!flips.length) return null;
  const tasks = [...new Set(flips.map((flip) => flip.task))];
  return h("section", null, h("h3", null, "Answers that changed"), h("p", { class: "question" }, FLIPS_QUESTION),
    tasks.map((task) => {
      const of = flips.filter((flip) => flip.task === task);
      const list = h("div", null, of.slice(0, FLIPS_SHOWN).map(flipCard));
      const rest = of.slice(FLIPS_SHOWN);
      const more = rest.length ? h("button", { type: "button", class: "quiet",
        click: (event) => (list.append(...rest.map(flipCard)), event.target.remove()) },
      `show ${rest.length} more`) : null;
      const judged = (one.tasks ?? []).find((each) => each.task === task);
      return h("details", { class: "flips", open: task === tasks[0] },
        h("summary", null, named(task), " ", h("small", null, keptOf(judged, of.length))), list, more);
    }));
}

function keptOf(judged, kept) {
  if (judged?.kind === "graded") return `of ${count(judged.n)} documents, ${kept} kept here`;
  if (!real(judged?.lost)) return `${kept} kept here`;
  const flipped = `${count(judged.lost)} lost, ${count(judged.gained)} gained`;
  return `${flipped} of ${count(judged.n)} documents; ${kept} kept here`;
}

/** Where a long prompt ends stands what was asked. */
const lastOf = (text) => {
  const letters = [...String(text ?? "").slice(-400).replace(/\s+/g, " ").trim()];
  return letters.length > 110 ? `… ${letters.slice(-110).join("")}` : letters.join("");
};

function flipCard(flip) {
  const side = (title, text, choice, value) => h("div", null,
    h("h5", null, title, real(value) ? h("small", null, ` score ${short(value)}`) : null),
    real(choice) ? h("small", null, `choice ${choice}`) : null, prose(text));
  const moved = ` moved ${real(flip.moved) ? signed(flip.moved, 2) : "–"}${flip.cut ? ", texts cut" : ""}`;
  return h("article", { class: "flip" },
    h("h4", null, h("span", { class: `kind ${flip.kind}` }, FLIP_WORDS[flip.kind] ?? flip.kind),
      " document ", named(flip.doc_id), h("small", null, moved)),
    h("details", null, h("summary", null, "question ", h("small", null, lastOf(flip.prompt))), prose(flip.prompt)),
    flip.target !== null && flip.target !== undefined
      ? h("p", null, h("small", null, "expected "), h("bdi", null, String(flip.target).slice(0, SHOWN))) : null,
    h("div", { class: "sides" },
      side("Base", flip.base_text, flip.base_choice, flip.base_score),
      side("Adapter", flip.adapter_text, flip.adapter_choice, flip.adapter_score)));
}
