// The playground: content, answer, feedback and its receipt.

import * as api from "./api.js";
import { $, h, percent } from "./dom.js";
import { partFor } from "./parts.js";

const SVG = "http://www.w3.org/2000/svg";
const THUMB = "M2 10h4v11H2zm6 0 4.5-8c1.6 0 2.6 1.2 2.3 2.7L14 9h6c1.3 0 2.3 1.2 2 2.5l-1.6 7.4c-.3 1.2-1.3 2.1-2.6 2.1H8z";
const FAST_POLL_MS = 400;
const SLOW_POLL_MS = 3000;
const FAST_POLLING_MS = 30000;

let parts = [];
let spec = null;
let model = "";

export async function build(name) {
  const known = await api.model(name);
  [model, spec] = [name, known.spec];
  parts = Object.entries(spec.modalities).map(([modality, fields]) =>
    partFor(modality, fields, known.samples[modality] ?? [], name));
  $("parts").replaceChildren(...parts.map((part) => part.element));
  $("answer").replaceChildren();
  $("submit").disabled = false;
}

export function listen() {
  $("user").value = sessionStorage.getItem("user") ?? `console-${crypto.randomUUID().slice(0, 8)}`;
  $("user").onchange = () => sessionStorage.setItem("user", $("user").value);
  sessionStorage.setItem("user", $("user").value);
  $("request").onsubmit = (event) => {
    event.preventDefault();
    ask();
  };
}

async function ask() {
  $("submit").disabled = true;
  try {
    const content = {};
    for (const part of parts) {
      const given = await part.content();
      if (given) content[part.name] = given;
    }
    show(await api.predict(model, { content, user_id: $("user").value }));
  } catch (error) {
    $("answer").replaceChildren(h("section", {}, h("p", { class: "problem", role: "alert" }, error.message)));
  } finally {
    $("submit").disabled = false;
  }
}

function show(answer) {
  const given = (body, words) => give(answer, body, words, buttons);
  const up = thumb("up", "Good", () => given({ thumb: "up" }, "thumb up"));
  const down = thumb("down", "Bad", () => given({ thumb: "down" }, "thumb down"));
  const right = h("select", { "aria-label": "The right answer" }, spec.actions.map((action) => h("option", {}, action)));
  right.value = answer.action;
  const correct = h("button", { type: "button", onclick: () => given({ correction: right.value }, `“${right.value}” would be right`) }, "Correct it");
  const buttons = [up, down, right, correct];
  const likeliest = answer.scores[0][0];
  $("answer").replaceChildren(h("section", { "aria-label": "Answer" },
    h("p", { class: "said" }, answer.action),
    h("p", { class: "soft" }, `picked with probability ${percent(answer.propensity, 1)} by version ${answer.version}`,
      answer.role === "candidate" ? h("span", { class: "tag candidate" }, "in an experiment") : null,
      answer.action !== likeliest ? ` – exploration: ${likeliest} is more probable` : null),
    h("div", { class: "row" }, up, down, right, correct),
    h("h3", {}, "Most probable answers"),
    bars(answer.scores),
    Object.keys(answer.contributions).length ? [
      h("h3", {}, `Contributions to ${answer.action}`),
      bars(Object.entries(answer.contributions), true),
    ] : null,
  ));
}

function bars(rows, signed = false) {
  return h("dl", { class: "bars" }, rows.flatMap(([name, value]) => [
    h("dt", {}, name),
    h("dd", {}, bar(value)),
    h("dd", { class: "number" }, signed ? `${value < 0 ? "−" : "+"}${percent(Math.abs(value), 1)}` : percent(value, 1)),
  ]));
}

// Hidden from screen readers, which read the number beside it.
function bar(value) {
  const filled = h("div", { class: value < 0 ? "less" : "" });
  filled.style.width = percent(Math.min(1, Math.abs(value)), 1).replace(" ", "");
  return h("div", { class: "bar", "aria-hidden": "true" }, filled);
}

function thumb(way, word, onclick) {
  const icon = document.createElementNS(SVG, "svg");
  icon.setAttribute("viewBox", "0 0 24 24");
  icon.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", THUMB);
  icon.append(path);
  return h("button", { type: "button", class: `thumb ${way}`, id: `thumb-${way}`, onclick }, icon, word);
}

async function give(answer, signal, words, buttons) {
  buttons.forEach((button) => (button.disabled = true));
  const state = h("span", {}, "being recorded …");
  const item = h("li", {}, h("div", {}, `${words} for “${answer.action}”, version ${answer.version}`), state);
  $("given").hidden = false;
  $("receipts").prepend(item);
  const request = {
    ...signal, prediction_id: answer.prediction_id, user_id: answer.user_id, feedback_id: crypto.randomUUID(),
  };
  try {
    await api.feedback(request);
    follow(request.feedback_id, item, state);
  } catch (error) {
    item.className = "discarded";
    state.textContent = error.message;
    buttons.forEach((button) => (button.disabled = false));
  }
}

async function follow(id, item, state, since_ms = Date.now()) {
  try {
    const receipt = await api.receipt(id);
    const words = {
      recorded: "recorded",
      joined: "recorded and joined with its decision",
      discarded: `discarded: ${receipt.reason}`,
      used: `learned in version ${receipt.used_in_version}`,
      live: `live in version ${receipt.used_in_version}`,
    }[receipt.state] ?? receipt.state;
    if (state.textContent !== words) state.textContent = words;
    item.className = receipt.state;
    if (receipt.state === "live" || receipt.state === "discarded") return;
  } catch { /* shown by the loop already; retry */ }
  setTimeout(() => follow(id, item, state, since_ms), Date.now() - since_ms < FAST_POLLING_MS ? FAST_POLL_MS : SLOW_POLL_MS);
}
