// Texts of the page whose colour stands out from what is behind them by less than 4.5 to 1 (WCAG 2.2, 1.4.3), as
// [text, ratio]. Behind a text in a chart lies the rectangle that is drawn before it, if any: the page otherwise.
(() => {
  const parse = (colour) => colour.match(/[\d.]+/g).map(Number);
  const linear = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  function behind(element) {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  }
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const { parentElement: element, textContent: text } = walker.currentNode;
    if (!text.trim() || !element.getClientRects().length || element.closest("script, style, title, noscript, option, :disabled")) continue;
    const style = getComputedStyle(element);
    const cell = element.closest("svg text")?.parentElement.querySelector("rect.cell");
    const ground = style.paintOrder.startsWith("stroke") && element.closest("svg") ? parse(style.stroke) : cell ? parse(getComputedStyle(cell).fill) : behind(element);
    const measured = ratio(parse(element.closest("svg") ? style.fill : style.color), ground);
    if (measured < 4.5) found.push([text.slice(0, 40), Math.round(100 * measured) / 100]);
  }
  return found;
})()
