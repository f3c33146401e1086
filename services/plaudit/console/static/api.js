// Requests of the page to its server. Every refusal becomes an Error whose message is one sentence.

async function answered(request) {
  let response;
  try {
    response = await request;
  } catch {
    throw new Error("the console does not answer; is `plaudit up` or `plaudit console` still running?");
  }
  if (response.ok) return response;
  let problem = `${response.status} ${response.statusText}`;
  try {
    problem = (await response.json()).error ?? problem;
  } catch { /* not JSON: the status remains */ }
  throw new Error(problem);
}

const get = async (path) => (await answered(fetch(path))).json();

const post = async (path, body) =>
  (await answered(fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }))).json();

const of = (model) => `/api/models/${encodeURIComponent(model)}`;

export const models = async () => (await get("/api/models")).models;
export const model = (name) => get(of(name));
export const loop = (name) => get(`${of(name)}/loop`);
export const predict = (name, request) => post(`${of(name)}/predict`, request);
export const feedback = (request) => post("/api/feedback", request);
export const receipt = (id) => get(`/api/receipts/${encodeURIComponent(id)}`);
export const sample = async (name, modality, what) =>
  (await answered(fetch(`${of(name)}/samples/${encodeURIComponent(modality)}/${encodeURIComponent(what)}`))).blob();
