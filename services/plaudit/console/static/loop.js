// The loop: rollout, satisfaction of users, learner, versions.

import { Curve } from "./curve.js";
import { $, ago, h, percent, plural, when } from "./dom.js";

const KINDS = { pretrained: "pre-trained", head: "head refresh", finetuned: "fine-tuned", imported: "imported", removed: "removed" };

const curve = new Curve($("curve"), $("legend"));
let shown = null;

export function show(loop) {
  shown = loop;
  const { rollout, learner, now_s } = loop;
  $("serving").textContent = rollout.live
    ? `${loop.model}: version ${rollout.live} serves${rollout.pinned ? ", pinned" : ""}`
    : `${loop.model}: no version serves yet`;
  put("facts", facts(loop));
  put("learner", learning(learner, now_s));
  curve.draw(loop.satisfaction, loop.changes);
  $("judged").textContent = loop.labelled ? `The latest ${plural(loop.labelled, "rated answer")}, with the changes of the rollout` : "";
  showVersions(loop);
  put("changes", loop.changes.map((change) => h("li", {},
    h("time", { dateTime: new Date(1000 * change.changed_at_s).toISOString() }, when(change.changed_at_s, now_s)),
    h("div", {}, described(change), h("div", { class: "soft" }, change.reason, change.actor ? ` (${change.actor})` : null)),
  )));
}

export const forget = () => {
  $("versions").replaceChildren();
  curve.clear();
};

$("heads").onchange = () => shown && showVersions(shown);

// Replaces only content that differs, so that nothing moves under a pointer or a screen reader.
function put(id, children) {
  const fresh = h("div", {}, children);
  if (fresh.innerHTML !== $(id).innerHTML) $(id).replaceChildren(...fresh.childNodes);
}

function facts({ rollout, learner, lately, now_s }) {
  const fact = (name, value, more) => h("div", {}, h("dt", {}, name), h("dd", {}, value, more ? h("small", {}, more) : null));
  const rows = [fact("Serves", rollout.live ? `version ${rollout.live}` : "nothing",
    rollout.changed_at_s ? `since ${when(rollout.changed_at_s, now_s)}` : null)];
  if (rollout.candidate) rows.push(fact("In an experiment", `version ${rollout.candidate}`, `for ${percent(rollout.candidate_share)} of the users`));
  if (rollout.gated) rows.push(fact("Last gated", `version ${rollout.gated}`));
  if (lately) rows.push(fact("Recent satisfaction", percent(lately.mean), `of the latest ${plural(lately.n, "rated answer")}`));
  if (!learner?.time_s) return rows;
  rows.push(
    fact("Feedback", learner.feedback.toLocaleString(), `${plural(learner.experiences, "answer")} learned from`),
    fact("In the queue", learner.pending.toLocaleString(), "feedback that no version has learned from"),
  );
  if (learner.drifts) {
    rows.push(fact("Users changed what they want", plural(learner.drifts, "time"),
      `last found ${when(learner.last_drift_time_s, now_s)}; ${plural(learner.outdated_experiences, "answer")} from before ${learner.outdated_experiences === 1 ? "counts" : "count"} no more`));
  }
  if (learner.waiting || learner.discarded) {
    rows.push(fact("Cannot be used", (learner.waiting + learner.discarded).toLocaleString(),
      `${learner.waiting} without a decision, ${learner.discarded} discarded`));
  }
  return rows;
}

function learning(learner, now_s) {
  if (!learner) return h("p", { class: "soft" }, "No learner of this model has run here.");
  const problem = learner.problem ? h("p", { class: "problem" }, waiting(learner.problem, now_s)) : null;
  if (!learner.time_s) return problem;
  const silent_s = now_s - learner.time_s;
  return [
    problem,
    h("p", { class: silent_s > 10 ? "problem" : "soft" }, silent_s > 10 ? `Last status ${ago(silent_s)}.` : "Running."),
    h("p", {}, tuning(learner.finetune, now_s)),
    learner.canary && learner.finetune?.phase !== "canary" ? h("p", {}, experiment(learner.canary, now_s)) : null,
    compared("Head refreshes compared with the last gated version", learner.comparison),
    learner.finetune?.gate ? compared("The fine-tuned version at the gate", learner.finetune.gate) : null,
  ];
}

function waiting({ text, since_s, again_in_s }, now_s) {
  const how = again_in_s === null ? "It has ended" : "It waits, and tries again,";
  return `${how} since ${when(since_s, now_s)}: ${text}`;
}

function experiment(canary, now_s) {
  const since = `since ${when(canary.started_at_s, now_s)}, by ${canary.actor}`;
  if (!canary.shadow) return `Version ${canary.version} is in an experiment with ${percent(canary.share)} of the users, ${since}: ${canary.why}.`;
  const { n, failed, agreement } = canary.shadowed;
  const agrees = agreement === null ? "" : `, ${percent(agreement)} agree with the live version`;
  return `Version ${canary.version} is in the shadow, ${since}: ${plural(n, "answer")}, ${failed} failed${agrees}.`;
}

function tuning(finetune, now_s) {
  const since = finetune?.started_at_s ? `, since ${when(finetune.started_at_s, now_s)}` : "";
  switch (finetune?.phase) {
    case "training": return `Fine-tuning on ${plural(finetune.snapshot, "experience")}: ${percent(finetune.progress.fraction ?? 0)} done${since}.`;
    case "gating": return `A fine-tuned version is at the gate${since}.`;
    case "canary": return `Version ${finetune.canary.version} is in an experiment: ${plural(finetune.canary.n, "experience")}${since}; ${finetune.canary.why}.`;
    case "idle": return finetune.off ? `Fine-tuning is off: ${finetune.off}.` : "No fine-tuning job is running; the next one starts after enough new experiences.";
    default: return "Fine-tuning is off.";
  }
}

function compared(title, report) {
  if (!report || !report.n) return null;
  return h("div", {},
    h("p", { class: "soft" }, `${title}:`),
    evidence(report),
  );
}

function evidence(report) {
  const row = (name, value) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value));
  const points = (share) => share === null ? "unknown" : `${share < 0 ? "−" : "+"}${(100 * Math.abs(share)).toFixed(1)} points`;
  const harmed = (report.slices ?? []).filter((slice) => slice.e_value_harm >= slice.threshold);
  return h("table", {}, h("tbody", {},
    row("difference in satisfaction", `${points(report.gain)} (${points(report.lower)} to ${points(report.upper)})`),
    row("evidence for a gain", `e = ${number(report.e_value_gain)}`),
    row("evidence for harm", `e = ${number(report.e_value_harm)}`),
    row("counted", `${plural(report.n, "answer")}${report.capped ? `, ${report.capped} excluded by the limit per user` : ""}`),
    row("verdict", report.reasons?.length ? report.reasons.join("; ") : report.verdict),
    harmed.map((slice) => row(`harm on ${slice.name}`, `e = ${number(slice.e_value_harm)} of ${number(slice.threshold)}`)),
  ));
}

const number = (value) => (value === null ? "∞" : value >= 1e4 ? value.toExponential(1) : value.toFixed(value < 10 ? 2 : 0));

// --- versions ---------------------------------------------------------------------------------------------------------

function showVersions(loop) {
  const wanted = loop.versions.filter((version) => $("heads").checked || version.kind !== "head" || version.roles.length);
  const old = new Map([...$("versions").children].map((item) => [item.dataset.version, item]));
  const items = wanted.map((version) => {
    const text = JSON.stringify(version);
    const known = old.get(String(version.version));
    if (known?.made === text) return known;
    const item = h("li", { made: text }, versionItem(version, loop.now_s));
    item.dataset.version = version.version;
    item.firstChild.open = known?.firstChild.open ?? false;
    return item;
  });
  const present = [...$("versions").children];
  if (items.length !== present.length || items.some((item, i) => item !== present[i])) $("versions").replaceChildren(...items);
}

function versionItem(version, now_s) {
  const liked = version.satisfaction;
  const verdict = version.gate.verdict === "reject" ? [h("span", { class: "tag bad" }, "rejected")] : [];
  return h("details", {},
    h("summary", {},
      h("span", { class: "name" }, `Version ${version.version}`),
      h("span", { class: "soft" }, KINDS[version.kind]),
      h("span", {}, version.roles.map((role) => h("span", { class: `tag ${role}` }, role === "candidate" ? "in an experiment" : role)), verdict),
      liked ? h("span", { class: "liked" }, `${percent(liked.mean)} liked, ${percent(liked.low)} – ${percent(liked.high)} (${liked.n})`) : null,
    ),
    h("div", { class: "inside" },
      h("p", {}, version.reason),
      h("table", {}, h("tbody", {},
        fact("made", when(version.created_at_s, now_s) + (version.parent ? ` from version ${version.parent}` : "")),
        version.live_since_s ? fact("went live", when(version.live_since_s, now_s)) : null,
        version.data.experiences === undefined ? null : fact("learned from", `${plural(version.data.experiences, "experience")}, ${plural(version.data.feedback, "signal")}`),
        version.data.outdated_experiences ? fact("counts no more", `${plural(version.data.outdated_experiences, "experience")} from before users changed what they want`) : null,
        fact("digest", version.digest.slice(0, 16)),
      )),
      version.gate.verdict ? [h("p", { class: "soft" }, `At the gate: ${version.gate.verdict}`), evidence(version.gate)] : null,
    ),
  );
}

const fact = (name, value) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value));

function described(rollout) {
  const parts = [rollout.live ? `version ${rollout.live} serves` : "nothing serves"];
  if (rollout.candidate) parts.push(`version ${rollout.candidate} is in an experiment with ${percent(rollout.candidate_share)} of the users`);
  if (rollout.pinned) parts.push("pinned");
  return parts.join(", ");
}
