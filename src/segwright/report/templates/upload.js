/* The page of a server: uploads a case, shows its progress and its result. Follows viewer.js. */
const byId = (name) => document.getElementById(name);
const POLL_MS = 500;
let models = [], files = [], job = null, run = 0;

class RefusedError extends Error {}

async function ask(path, options = {}) {
  const headers = byId("token").value ? { Authorization: `Bearer ${byId("token").value}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  let error = { what: `the server answers with status ${answer.status}` };
  try {
    error = (await answer.json()).error;
  } catch (_) { /* of a proxy in between */ }
  throw new RefusedError([error.what, error.expected && `expected: ${error.expected}`, error.remedy].filter(Boolean).join("; "));
}

function show(name, text) {
  byId(name).textContent = text;
  byId(name).hidden = !text;
}

function busy(isBusy) {
  byId("cancel").hidden = !isBusy;
  byId("progress").hidden = !isBusy;
  byId("start").disabled = isBusy || !files.length || !models.length;
}

function failed(error) {
  show("state", "");
  show("error", error instanceof RefusedError ? error.message : `the server cannot be reached (${error.message})`);
  busy(false);
}

async function loadModels() {
  show("error", "");
  try {
    models = await (await ask("/v1/models")).json();
  } catch (error) {
    failed(error);
    return;
  }
  byId("model").replaceChildren(...models.map((model) => element("option", { textContent: model.name })));
  describeModel();
  busy(false);
}

function describeModel() {
  const model = models[byId("model").selectedIndex];
  if (!model) return;
  const many = model.channels.length > 1 ? `${model.channels.length} files, sorted by name: ` : "one file: ";
  byId("wanted").textContent = `${many}${model.channels.join(", ")}; ${model.endings.join(", ")} or .zip`;
}

function choose(list) {
  files = [...list].sort((first, second) => (first.name < second.name ? -1 : 1));
  byId("chosen").textContent = files.length ? files.map((file) => file.name).join(", ") : "Drop a file here, or click to choose one";
  busy(false);
}

async function start() {
  const mine = ++run;
  show("error", "");
  byId("result").hidden = true;
  byId("viewer").replaceChildren();
  byId("progress").removeAttribute("value");
  busy(true);
  show("state", "uploading");
  const form = new FormData();
  form.append("model", byId("model").value);
  form.append("view", "true");
  files.forEach((file) => form.append("image", file));
  try {
    const accepted = (await (await ask("/v1/jobs", { method: "POST", body: form })).json()).id;
    if (run !== mine) {
      await ask(`/v1/jobs/${accepted}`, { method: "DELETE" });
      return;
    }
    job = accepted;
    const status = await wait(mine, job);
    if (status) await showResult(mine, status);
  } catch (error) {
    if (run === mine) failed(error);
  }
}

async function wait(mine, id) {
  while (run === mine) {
    const status = await (await ask(`/v1/jobs/${id}`)).json();
    if (run !== mine) return null;
    if (status.state === "done") return status;
    if (status.state === "failed") throw new RefusedError([status.error.what, status.error.remedy].filter(Boolean).join("; "));
    show("state", status.state === "queued" ? `waiting, place ${status.place ?? 1}` : `predicting, ${Math.round(status.progress * 100)} %`);
    if (status.state === "running") byId("progress").value = status.progress;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  return null;
}

async function showResult(mine, status) {
  const view = await (await ask(`/v1/jobs/${status.id}/view`)).json();
  if (run !== mine) return;
  show("state", `done; everything is deleted at ${new Date(status.expires * 1000).toLocaleTimeString()}`);
  busy(false);
  byId("expected").textContent = status.expected_dice === null ? "" : `expected Dice ${status.expected_dice.toFixed(2)}`;
  byId("warnings").replaceChildren(...status.warnings.map((text) => element("li", { textContent: text })));
  const root = byId("viewer-template").content.firstElementChild.cloneNode(true);
  root.append(
    element("script", { type: "application/json", className: "about", textContent: JSON.stringify(view.about) }),
    element("script", { type: "application/octet-stream", className: "volume", textContent: view.volume }),
  );
  byId("viewer").replaceChildren(root);
  byId("result").hidden = false;
  await new Viewer(root).open(0);
}

async function download() {
  try {
    const answer = await ask(`/v1/jobs/${job}/result`);
    const name = /filename="([^"]*)"/.exec(answer.headers.get("Content-Disposition") || "");
    const address = URL.createObjectURL(await answer.blob());
    element("a", { href: address, download: name ? name[1] : "segmentation" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  } catch (error) {
    failed(error);
  }
}

async function remove(message) {
  run += 1;
  const ended = job;
  job = null;
  byId("result").hidden = true;
  byId("viewer").replaceChildren();
  busy(false);
  show("state", message);
  try {
    if (ended) await ask(`/v1/jobs/${ended}`, { method: "DELETE" });
  } catch (error) {
    failed(error);
  }
}

const drop = byId("drop");
["dragenter", "dragover"].forEach((name) => drop.addEventListener(name, (event) => {
  event.preventDefault();
  drop.classList.add("over");
}));
["dragleave", "drop"].forEach((name) => drop.addEventListener(name, (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (name === "drop") choose(event.dataTransfer.files);
}));
byId("files").addEventListener("change", (event) => choose(event.target.files));
byId("model").addEventListener("change", describeModel);
byId("use-token").addEventListener("click", loadModels);
byId("token").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  loadModels();
});
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
byId("cancel").addEventListener("click", () => remove("cancelled"));
byId("delete").addEventListener("click", () => remove("deleted"));
byId("download").addEventListener("click", download);
if (byId("token").closest("p").hidden) loadModels();
else show("state", "give the token of this server");
