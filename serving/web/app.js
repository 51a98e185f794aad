// The page: what was said is a list of turns, each a question with one answer, or two that are compared.
// It is kept in this browser alone, and drawn anew from that list whenever it changes.

import { answer, key, models, vote } from "./api.js";
import { render } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const KEPT = "vlaunch-chat";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const VERDICTS = { left: "Left is better", right: "Right is better", tie: "Tie", "both bad": "Both bad" };

const fresh = () => ({ system: "", numbers: {}, models: ["", ""], compare: false, turns: [] });
let state = { ...fresh(), ...JSON.parse(localStorage.getItem(KEPT) ?? "{}") };
let running = null; // the AbortController of the answers that are on their way

function keep() {
  try {
    localStorage.setItem(KEPT, JSON.stringify(state));
  } catch {
    notice("This conversation is too long to be kept by the browser; export it.");
  }
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function button(label, action, title = "") {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.title = title;
  made.addEventListener("click", action);
  return made;
}

function div(kind, ...children) {
  const made = document.createElement("div");
  made.className = kind;
  made.append(...children);
  return made;
}

// ---- drawing

function draw() {
  const main = $("turns");
  main.className = state.compare ? "compared" : "";
  main.replaceChildren(...state.turns.map(drawTurn));
  main.scrollTop = main.scrollHeight;
}

function drawTurn(turn, index) {
  const last = index === state.turns.length - 1;
  const question = div("question", turn.question);
  const tools = div("tools", button("Edit", () => edit(index), "Ask this differently; what came after is forgotten"));
  const answers = div(turn.answers.length > 1 ? "answers two" : "answers", ...turn.answers.map(drawAnswer));
  const made = div("turn", question, tools, answers);
  if (last && !running) {
    tools.append(button("Regenerate", regenerate, "Alt+R"));
  }
  if (turn.answers.length > 1 && turn.answers.every((one) => one.done)) made.append(drawVotes(turn));
  return made;
}

function drawAnswer(one) {
  const text = div("text");
  fill(text, one);
  return div("answer", div("name", one.model), text);
}

function fill(text, one) {
  text.replaceChildren(...render(one.text));
  for (const block of text.querySelectorAll("pre")) {
    const copied = block.textContent;
    block.append(button("Copy", () => navigator.clipboard?.writeText(copied)));
  }
  if (one.problem) text.append(div("failed", one.problem));
}

function drawVotes(turn) {
  const choices = Object.entries(VERDICTS).map(([verdict, label]) => {
    const made = button(label, () => cast(turn, verdict));
    made.disabled = Boolean(turn.vote);
    if (turn.vote === verdict) made.classList.add("chosen");
    return made;
  });
  return div("tools votes", ...choices);
}

// ---- asking

function messages(side, before) {
  const said = state.system ? [{ role: "system", content: state.system }] : [];
  for (const turn of state.turns.slice(0, before)) {
    const one = turn.answers[side] ?? turn.answers[0];
    if (!one.text) continue;
    said.push({ role: "user", content: turn.question }, { role: "assistant", content: one.text });
  }
  return [...said, { role: "user", content: state.turns[before].question }];
}

async function ask(question) {
  if (running || !question.trim()) return;
  const sides = state.compare ? [0, 1] : [0];
  const answers = sides.map((side) => ({ model: state.models[side], text: "", done: false }));
  state.turns.push({ question, answers });
  running = new AbortController();
  notice("");
  busy(true);
  draw();
  const index = state.turns.length - 1;
  const places = $("turns").lastElementChild.querySelectorAll(".text");
  await Promise.all(answers.map((one, side) => listen(one, side, index, places[side], running.signal)));
  running = null;
  busy(false);
  keep();
  draw();
}

async function listen(one, side, index, place, signal) {
  let due = false;
  const show = () => {
    due = false;
    const main = $("turns");
    const below = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
    fill(place, one);
    if (below) main.scrollTop = main.scrollHeight;
  };
  try {
    const request = { model: one.model, messages: messages(side, index), ...state.numbers };
    for await (const piece of answer(request, signal)) {
      one.text += piece;
      if (!due) {
        due = true;
        requestAnimationFrame(show);
      }
    }
  } catch (error) {
    if (!signal.aborted) {
      one.problem = error.message;
      if (error.status === 401) openSettings(true);
    }
  }
  one.done = true;
  keep();
}

function busy(now) {
  $("send").hidden = now;
  $("stop").hidden = !now;
}

function regenerate() {
  if (running || !state.turns.length) return;
  ask(state.turns.pop().question);
}

function edit(index) {
  if (running) return;
  $("question").value = state.turns[index].question;
  state.turns.length = index;
  keep();
  draw();
  grow();
  $("question").focus();
}

function anew() {
  running?.abort();
  state.turns = [];
  keep();
  draw();
  $("question").focus();
}

async function cast(turn, winner) {
  const [left, right] = turn.answers.map((one) => ({ model: one.model, answer: one.text }));
  try {
    await vote({ question: turn.question, left, right, winner });
    turn.vote = winner;
  } catch (error) {
    notice(`The vote was not stored: ${error.message}`);
  }
  keep();
  draw();
}

// ShareGPT, which `vlaunch data` reads. Of a comparison: one conversation per side.
function exported() {
  const sides = Math.max(1, ...state.turns.map((turn) => turn.answers.length));
  const stamp = new Date().toISOString();
  return [...Array(sides).keys()].map((side) => {
    const first = state.system ? [{ from: "system", value: state.system }] : [];
    const rest = state.turns.flatMap((turn) => {
      const one = turn.answers[side] ?? turn.answers[0];
      return one.text ? [{ from: "human", value: turn.question }, { from: "gpt", value: one.text }] : [];
    });
    return { id: `chat-${stamp}-${side}`, conversations: [...first, ...rest] };
  });
}

function download() {
  const file = new Blob([JSON.stringify(exported(), null, 1)], { type: "application/json" });
  const made = document.createElement("a");
  made.href = URL.createObjectURL(file);
  made.download = "conversation.json";
  made.click();
  URL.revokeObjectURL(made.href);
}

// ---- controls

function openSettings(open) {
  $("settings").hidden = !open;
  $("settings-button").setAttribute("aria-expanded", String(open));
}

function grow() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

async function loadModels() {
  let names = [];
  try {
    names = await models();
    notice(names.length ? "" : "No model is served now.");
  } catch (error) {
    notice(error.status === 401 ? "An API key is needed; give it in the settings." : error.message);
    openSettings(error.status === 401);
  }
  [0, 1].forEach((side) => {
    const choice = $(`model-${side}`);
    choice.replaceChildren(...names.map((name) => new Option(name, name)));
    if (!names.includes(state.models[side])) state.models[side] = names[Math.min(side, names.length - 1)] ?? "";
    choice.value = state.models[side];
  });
  $("model-1").hidden = !state.compare;
}

function showSettings() {
  $("key").value = key.get();
  $("system").value = state.system;
  $("compare").checked = state.compare;
  for (const name of NUMBERS) $(name).value = state.numbers[name] ?? "";
}

function listenToControls() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = $("question").value;
    if (running || !question.trim()) return;
    $("question").value = "";
    grow();
    ask(question);
  });
  $("question").addEventListener("input", grow);
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("ask").requestSubmit();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    if (event.altKey && event.key.toLowerCase() === "r") regenerate();
    if (event.altKey && event.key.toLowerCase() === "n") anew();
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("new").addEventListener("click", anew);
  $("export").addEventListener("click", download);
  $("settings-button").addEventListener("click", () => openSettings($("settings").hidden));
  $("key").addEventListener("change", () => {
    key.set($("key").value.trim());
    loadModels();
  });
  $("system").addEventListener("change", () => {
    state.system = $("system").value;
    keep();
  });
  $("compare").addEventListener("change", () => {
    state.compare = $("compare").checked;
    $("model-1").hidden = !state.compare;
    keep();
    draw();
  });
  for (const side of [0, 1]) {
    $(`model-${side}`).addEventListener("change", (event) => {
      state.models[side] = event.target.value;
      keep();
    });
  }
  for (const name of NUMBERS) {
    $(name).addEventListener("change", () => {
      const value = parseFloat($(name).value);
      if (Number.isNaN(value)) delete state.numbers[name];
      else state.numbers[name] = value;
      keep();
    });
  }
}

listenToControls();
showSettings();
draw();
loadModels();
