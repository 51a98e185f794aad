// Markdown to DOM nodes. Nothing of a text is ever parsed as HTML: elements are made one by one, texts are text nodes,
// links lead only to http, https and mailto, and a picture is shown as a link, so that no answer can make the browser
// fetch anything by itself.

const SAFE = /^(https?:|mailto:)/i;
const INLINE = new RegExp(
  [
    "(`+)([\\s\\S]*?[^`])\\1(?!`)", // 1, 2: code
    "!?\\[([^\\]]*)\\]\\(([^)\\s]+)(?:\\s+\"[^\"]*\")?\\)", // 3, 4: link or picture
    "\\*\\*([\\s\\S]+?)\\*\\*", // 5: strong
    "(?<!\\w)__([\\s\\S]+?)__(?!\\w)", // 6: strong
    "\\*(?!\\s)([^*\\n]+?)\\*", // 7: emphasis
    "(?<!\\w)_(?!\\s)([^_\\n]+?)_(?!\\w)", // 8: emphasis
    "~~([\\s\\S]+?)~~", // 9: struck
    "\\\\([\\\\`*_{}\\[\\]()#+\\-.!|>~])", // 10: escaped
    "(https?://[^\\s<>()\\[\\]]*[^\\s<>()\\[\\].,;:!?'\"])", // 11: bare address
  ].join("|"),
);
const DEEPEST = 8;

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function link(address, ...children) {
  if (!SAFE.test(address)) return children;
  const made = element("a", ...children);
  made.href = address;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  return [made];
}

export function inline(text, depth = 0) {
  const nodes = [];
  while (text) {
    const found = depth < DEEPEST ? INLINE.exec(text) : null;
    if (!found) {
      nodes.push(text);
      break;
    }
    if (found.index) nodes.push(text.slice(0, found.index));
    const deeper = (part) => inline(part, depth + 1);
    if (found[1] !== undefined) nodes.push(element("code", found[2].trim()));
    else if (found[4] !== undefined) nodes.push(...link(found[4], ...deeper(found[3] || found[4])));
    else if (found[5] ?? found[6]) nodes.push(element("strong", ...deeper(found[5] ?? found[6])));
    else if (found[7] ?? found[8]) nodes.push(element("em", ...deeper(found[7] ?? found[8])));
    else if (found[9]) nodes.push(element("s", ...deeper(found[9])));
    else if (found[10]) nodes.push(found[10]);
    else nodes.push(...link(found[11], found[11]));
    text = text.slice(found.index + found[0].length);
  }
  return nodes;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

export function render(text) {
  return blocks(text.replaceAll("\r\n", "\n").split("\n"), 0);
}

function blocks(lines, depth) {
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/.exec(line);
    if (!line.trim()) at += 1;
    else if (fence) at = code(lines, at, fence, nodes);
    else if (heading) {
      nodes.push(element(`h${heading[1].length}`, ...inline(heading[2])));
      at += 1;
    } else if (RULE.test(line)) {
      nodes.push(element("hr"));
      at += 1;
    } else if (/^ {0,3}>/.test(line) && depth < DEEPEST) {
      const start = at;
      while (at < lines.length && /^ {0,3}>/.test(lines[at])) at += 1;
      const inner = lines.slice(start, at).map((quoted) => quoted.replace(/^ {0,3}> ?/, ""));
      nodes.push(element("blockquote", ...blocks(inner, depth + 1)));
    } else if (ITEM.test(line) && depth < DEEPEST) at = list(lines, at, nodes, depth);
    else if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "")) at = table(lines, at, nodes);
    else at = paragraph(lines, at, nodes);
  }
  return nodes;
}

function code(lines, at, fence, nodes) {
  const body = [];
  for (at += 1; at < lines.length && !lines[at].trim().startsWith(fence[1]); at += 1) body.push(lines[at]);
  const inside = element("code", body.join("\n"));
  if (fence[2]) inside.dataset.language = fence[2];
  nodes.push(element("pre", inside));
  return at + 1;
}

function list(lines, at, nodes, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const made = element(ordered ? "ol" : "ul");
  if (ordered) made.start = parseInt(mark, 10);
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length !== indent.length || /\d/.test(item[2]) !== ordered) break;
    const inner = [item[3]];
    const inset = indent.length + 1;
    for (at += 1; at < lines.length; at += 1) {
      const deeper = /^\s*/.exec(lines[at])[0].length >= inset && lines[at].trim();
      const gap = !lines[at].trim() && /^\s/.test(lines[at + 1] ?? "");
      if (!deeper && !gap) break;
      inner.push(lines[at].slice(Math.min(lines[at].length, indent.length + item[2].length + 1)));
    }
    made.append(element("li", ...tight(blocks(inner, depth + 1))));
    while (at < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) at += 1;
  }
  nodes.push(made);
  return at;
}

// The paragraph of a short item needs no space around it.
function tight(nodes) {
  return nodes.flatMap((node, index) => (index === 0 && node.nodeName === "P" ? [...node.childNodes] : [node]));
}

function table(lines, at, nodes) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  const row = (line, kind) => element("tr", ...cells(line).map((cell) => element(kind, ...inline(cell))));
  const made = element("table", element("thead", row(lines[at], "th")));
  const body = element("tbody");
  for (at += 2; at < lines.length && lines[at].includes("|"); at += 1) body.append(row(lines[at], "td"));
  made.append(body);
  nodes.push(made);
  return at;
}

function paragraph(lines, at, nodes) {
  const start = at;
  for (at += 1; at < lines.length; at += 1) {
    const line = lines[at];
    if (!line.trim() || FENCE.test(line) || ITEM.test(line) || /^ {0,3}(#{1,6}\s|>)/.test(line)) break;
  }
  const made = element("p");
  lines.slice(start, at).forEach((line, index) => {
    if (index) made.append(element("br"));
    made.append(...inline(line.trim()));
  });
  nodes.push(made);
  return at;
}
