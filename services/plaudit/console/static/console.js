// Entry point: finds the models, builds the playground, and polls the loop once a second while the page is visible.

import * as api from "./api.js";
import * as ask from "./ask.js";
import { $, h } from "./dom.js";
import * as loop from "./loop.js";

const INTERVAL_MS = 1000;

let model = "";
let built = "";
let turn = 0;

async function poll(mine) {
  try {
    if (!model) await findModels();
    if (built !== model) {
      await ask.build(model);
      built = model;
    }
    const view = await api.loop(model);
    if (mine !== turn) return; // another model was chosen meanwhile
    loop.show(view);
    $("trouble").hidden = true;
  } catch (error) {
    if (mine !== turn) return;
    if ($("trouble").textContent !== error.message) $("trouble").textContent = error.message;
    $("trouble").hidden = false;
  }
  setTimeout(() => mine === turn && whenVisible(() => poll(mine)), INTERVAL_MS);
}

async function findModels() {
  const names = await api.models();
  if (!names.length) throw new Error("there is no model yet; `plaudit pretrain` makes the first version of one");
  model = names[0];
  $("model").replaceChildren(...names.map((name) => h("option", {}, name)));
  $("choose").hidden = names.length < 2;
}

function whenVisible(then) {
  if (!document.hidden) return then();
  document.addEventListener("visibilitychange", then, { once: true });
}

$("model").onchange = () => {
  model = $("model").value;
  loop.forget();
  poll(++turn);
};

ask.listen();
poll(turn);
