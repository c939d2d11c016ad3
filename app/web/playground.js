// The playground: the form and its options, the session's jobs, and what is said when it fails.

import { Problem, cancel, follow, inWords, isEnd, key, pause, request, submit } from "./api.js";
import { origin } from "./origin.js";
import { add, gone, jobs, list, openSheet, preview, update } from "./gallery.js";

const $ = (id) => document.getElementById(id);
const form = $("composer");
const fields = form.elements;
const PREVIEWS = 16; // of each picture
const ORIGIN_GONE = new Problem({ title: "The picture that it started from is not here any more" });
const KEPT = 60; // jobs that a reload brings back
let models = [];

// Session

const session = {
  ids: () => JSON.parse(sessionStorage.getItem("avocat-jobs") || "[]"),
  keep: (ids) => sessionStorage.setItem("avocat-jobs", JSON.stringify(ids.slice(-KEPT))),
};

async function bringBack() {
  const found = await Promise.allSettled(session.ids().map((id) => request(`v1/jobs/${id}`)));
  const here = found.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
  const lost = found.some(({ reason }) => reason && reason.status !== 404);
  if (!lost) session.keep(here.map((job) => job.id));
  for (const job of here) show(job);
}

function show(job) {
  add(job);
  if (!isEnd(job.status)) watch(job);
  count();
}

async function watch(job) {
  const { id } = job;
  const seen = (event, data) => {
    const now = jobs.get(id);
    if (event === "job") update(data);
    else if (event === "preview") preview(id, data);
    else if (event === "progress") update({ ...now, status: "running", progress: { ...now.progress, ...data } });
    else if (event === "status") update({ ...now, ...data, progress: { ...now.progress, ...(data.status === "queued" && { step: 0, fraction: 0 }) } });
  };
  try {
    const ended = await follow(id, PREVIEWS, seen);
    update(ended);
    const words = { succeeded: "Done", failed: "Failed", canceled: "Canceled" }[ended.status];
    say(`${words}: ${ended.request.prompt}`);
  } catch (fault) {
    if (fault.status === 404) gone(id);
    tell(fault);
  }
  count();
}

function count() {
  const live = [...jobs.values()].filter((job) => !isEnd(job.status)).length;
  $("gallery-note").textContent = live ? `${live} ${live === 1 ? "job" : "jobs"} under way` : "";
}

// Generate

function asked() {
  const card = model();
  const given = { prompt: fields.prompt.value.replace(/\s+/g, " ").trim() };
  const take = (name, value, standard) => {
    if (value !== "" && value !== standard) given[name] = value;
  };
  take("negative_prompt", fields.negative_prompt.value.trim());
  if (models.length > 1) given.model = card.id;
  take("n", Number(fields.n.value), 1);
  const seed = fields.seed.value.trim();
  take("seed", /^-?\d+$/.test(seed) ? Number(seed) : seed); // what is no number is for the server to refuse
  take("steps", Number(fields.steps.value), card?.default_steps);
  take("guidance_scale", Number(fields.guidance_scale.value), card?.default_guidance_scale);
  take("sampler", fields.sampler.value, card?.default_sampler);
  take("size", fields.size.value, card?.native_size);
  take("background", background(), card?.default_background);
  take("output_format", fields.output_format.value, "png");
  if (card?.composes && fields.compose.value === "false") given.compose = false;
  if (Number(fields.best_of.value) > Number(fields.n.value)) given.best_of = Number(fields.best_of.value);
  return { ...given, ...origin.fields() };
}

const background = () => (fields.background.value === "colour" ? $("colour").value : fields.background.value);

// The server would draw one too, but of sixteen digits, and people read these.
const newSeed = () => Math.floor(Math.random() * 1e6);

async function generate(body) {
  $("generate").disabled = true;
  try {
    const job = await submit({ seed: newSeed(), ...body });
    origin.remember(job, body);
    hush();
    session.keep([...session.ids(), job.id]);
    show(job);
    say(`Accepted: ${job.request.prompt}`);
    return true;
  } catch (fault) {
    tell(fault);
    return false;
  } finally {
    $("generate").disabled = false;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!fields.prompt.value.trim()) {
    mark([{ pointer: "/prompt", message: "Say what to draw." }]);
    return;
  }
  if (!$("key-field").hidden) key.set($("api-key").value.trim());
  mark([]);
  generate(asked());
});

fields.prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault(); // a prompt is one line
  form.requestSubmit();
});

document.querySelector(".examples").addEventListener("click", ({ target }) => {
  if (target.tagName !== "BUTTON") return;
  fields.prompt.value = target.textContent;
  fields.prompt.focus();
});

// Options

const model = () => models.find((card) => card.id === fields.model.value) || models.find((card) => card.is_default) || models[0];

async function loadModels() {
  models = (await request("v1/models")).data;
  if (!models.length) throw new Problem({ type: "not-ready", title: "No model yet" });
  fields.model.replaceChildren(...models.map((card) => new Option(card.id, card.id, card.is_default, card.is_default)));
  $("model-field").hidden = models.length < 2;
  defaults();
}

function defaults() {
  const card = model();
  fill(fields.sampler, card.samplers, card.default_sampler);
  // Models that draw any size repeat themselves beyond their native one.
  const largest = card.free_sizes
    ? card.native_size
    : card.sizes.reduce((a, b) => (parseInt(a) >= parseInt(b) ? a : b));
  fill(fields.size, card.sizes, largest, (size) => size.replace("x", " × "));
  Object.assign(fields.steps, { max: Math.min(card.max_steps, Math.max(200, card.default_steps)), value: card.default_steps });
  fields.guidance_scale.value = card.default_guidance_scale;
  fields.background.options[0].disabled = card.channels < 4;
  setBackground(card.default_background);
  $("new-seed").click();
  [fields.n.value, fields.best_of.value, fields.output_format.value, fields.negative_prompt.value] = [2, 1, "png", ""];
  [$("compose-field").hidden, fields.compose.value] = [!card.composes, card.composes];
  outputs();
}

function fill(select, values, chosen, words = (value) => value) {
  select.replaceChildren(...values.map((value) => new Option(words(value), value, value === chosen, value === chosen)));
}

function setBackground(value) {
  const colour = value.startsWith("#");
  fields.background.value = colour ? "colour" : value;
  if (colour) $("colour").value = value;
  $("colour").hidden = !colour;
}

function outputs() {
  for (const output of form.querySelectorAll("output")) output.value = fields[output.htmlFor[0]].value;
  const best = Number(fields.best_of.value);
  document.querySelector("output[for=best_of]").value = best > Number(fields.n.value) ? best : "off";
  const given = asked();
  const parts = Object.keys(given).filter((name) => !["prompt", "size", "n"].includes(name));
  const pictures = `${fields.n.value} ${fields.n.value === "1" ? "picture" : "pictures"}`;
  $("summary").textContent = [pictures, ...parts.map((name) => name.replace("_", " "))].join(" · ");
}

form.addEventListener("input", outputs);
$("reset").addEventListener("click", () => {
  origin.set(null);
  if (models.length) defaults();
});
$("new-seed").addEventListener("click", () => {
  fields.seed.value = "";
  outputs();
});
fields.model.addEventListener("change", defaults);
fields.background.addEventListener("change", () => {
  $("colour").hidden = fields.background.value !== "colour";
  if (fields.output_format.value === "jpeg" && fields.background.value === "transparent") fields.output_format.value = "png";
});
fields.output_format.addEventListener("change", () => {
  // A JPEG cannot be transparent: the server would refuse it, and nobody wants to be told so.
  if (fields.output_format.value === "jpeg" && fields.background.value === "transparent") setBackground("white");
});

// What can be done with a picture

const actions = {
  details: (job, index) => openSheet(job, index),
  again(job, index) {
    $("details").close();
    restore(job.request, job.images[index].seed);
    if (!origin.restore(job.request)) return tell(ORIGIN_GONE);
    outputs();
    say(`Seed ${job.images[index].seed} is set: change something, or draw it again.`);
  },
  vary(job) {
    $("details").close();
    const { seed, cache, ...rest } = given(job.request);
    const body = origin.again(rest);
    body ? generate(body) : tell(ORIGIN_GONE);
    scrollTo({ top: 0 });
  },
  start(job, index) {
    $("details").close();
    origin.set(job.images[index].url, `“${job.request.prompt}”`);
    document.querySelector(".options").open = true;
    $("strength").focus();
  },
  async cancel(job, index, button) {
    button.disabled = true;
    await cancel(job.id).then(update, tell);
  },
  curl: (job) => copy(asCurl(named(given(job.request), "data:image/png;base64,…")), "curl"),
  python: (job) => copy(asPython(named(given(job.request), "picture.png")), "Python"),
};

document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-do]");
  const place = button?.closest("[data-job]");
  const action = actions[button?.dataset.do];
  if (place && action) action(jobs.get(place.dataset.job), Number(place.dataset.index), button);
});

function restore(request, seed) {
  if (models.some((card) => card.id === request.model)) fields.model.value = request.model;
  defaults();
  fields.prompt.value = request.prompt;
  fields.negative_prompt.value = request.negative_prompt || "";
  for (const name of ["steps", "guidance_scale", "sampler", "size", "output_format"]) fields[name].value = request[name];
  [fields.n.value, fields.best_of.value, fields.compose.value] = [1, 1, request.compose || Boolean(request.init_image)];
  fields.seed.value = seed;
  setBackground(request.background);
  document.querySelector(".options").open = true;
  outputs();
  fields.prompt.focus();
}

// The request as its sender wrote it: what is at its default is left out.
function given({ model: name, best_of, priority, guidance_interval, cache, compose, scene, ...request }) {
  const rest = Object.entries(request).filter(([, value]) => value !== null);
  if (models.length > 1) rest.push(["model", name]);
  if (best_of > request.n) rest.push(["best_of", best_of]);
  if (!compose && !request.init_image && models.find((card) => card.id === name)?.composes) rest.push(["compose", false]);
  return Object.fromEntries(rest);
}

// For people: what to give in place of the hash that a job has.
const named = (body, picture) => (body.init_image ? { ...body, init_image: picture } : body);

const server = () => document.baseURI.replace(/[?#].*$/, "").replace(/\/$/, "");

function asCurl(body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const keyed = key.get() ? ` \\\n     -H "Authorization: Bearer $AVOCAT_API_KEY"` : "";
  return `curl -s ${server()}/v1/jobs -H 'Content-Type: application/json' -H 'Prefer: wait=60'${keyed} \\\n     -d '${quoted}'`;
}

function asPython({ prompt, ...rest }) {
  const lines = Object.entries(rest).map(([name, value]) => `, ${name}=${JSON.stringify(value)}`);
  return `from app.client import Avocat

with Avocat("${server()}") as avocat:  # the API key, if any: AVOCAT_API_KEY
    for picture in avocat.generate(${JSON.stringify(prompt)}${lines.join("")}):
        picture.save(f"picture-{picture.seed}.${{ jpeg: "jpg" }[rest.output_format] || rest.output_format}")
`;
}

async function copy(text, what) {
  const note = $("details").querySelector("[role=status]");
  try {
    await navigator.clipboard.writeText(text); // not there on a plain LAN address
    note.textContent = `Copied as ${what}.`;
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text, readOnly: true });
    $("details").append(area);
    area.select();
    note.textContent = document.execCommand("copy") ? `Copied as ${what}.` : `It could not be copied as ${what}.`;
    area.remove();
  }
}

// Messages

const say = (text) => ($("said").textContent = text);
let ticking = 0;

function tell(fault) {
  if (fault.status === 401) askForKey();
  const { title, text } = inWords(fault);
  const named = mark(fault.errors || []);
  $("notice-title").textContent = title;
  $("notice-text").textContent = named.join(" ") || text;
  $("notice").hidden = false;
  clearInterval(ticking);
  if (fault.retryAfter) countDown(fault.retryAfter, $("notice-text").textContent);
}

function countDown(left, text) {
  const tick = () => {
    $("notice-text").textContent = left > 0 ? `${text} Try again in ${left} s.` : `${text} Try again now.`;
    if (left-- <= 0) clearInterval(ticking);
  };
  tick();
  ticking = setInterval(tick, 1000);
}

function hush() {
  clearInterval(ticking);
  $("notice").hidden = true;
}

// Puts messages at the fields they are about; returns those that have no field here.
function mark(errors) {
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  $("prompt-error").textContent = "";
  const left = [];
  for (const { pointer, message } of errors) {
    const field = fields[pointer.split("/")[1]];
    field?.setAttribute("aria-invalid", "true");
    if (field === fields.prompt) $("prompt-error").textContent = message;
    else left.push(`${field?.labels?.[0]?.textContent || pointer}: ${message.replace(/\.$/, "")}.`);
    if (field?.closest("details")) field.closest("details").open = true;
  }
  const first = form.querySelector("[aria-invalid]");
  first?.focus();
  return left;
}

function askForKey() {
  $("key-field").hidden = false;
  $("api-key").focus();
}

$("notice-close").addEventListener("click", hush);
$("api-key").addEventListener("change", () => {
  key.set($("api-key").value.trim());
  hush();
  start();
});

// About

$("open-about").addEventListener("click", () => {
  $("cards").replaceChildren(...models.map(aboutModel));
  $("about").showModal();
});
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
}

function aboutModel(card) {
  const about = document.createElement("section");
  const [name, words, facts] = ["h3", "p", "dl"].map((tag) => document.createElement(tag));
  [name.textContent, words.textContent] = [card.id, card.description];
  list(facts, {
    Licence: card.license,
    Sizes: card.sizes.map((size) => size.replace("x", " × ")).join(", "),
    Colours: card.channels === 4 ? "RGB with transparency" : "RGB",
    Samplers: card.samplers.join(", "),
    Defaults: `${card.default_steps} steps of ${card.default_sampler}, guidance ${card.default_guidance_scale}`,
    "Most steps": card.max_steps,
    Bundle: card.bundle_sha256.slice(0, 16),
    Fingerprint: card.fingerprint.slice(0, 16),
  });
  about.append(name, words, facts);
  return about;
}

// Start

async function start() {
  for (;;) {
    try {
      await loadModels();
      hush();
      break;
    } catch (fault) {
      tell(fault);
      if (fault.status === 401) return; // goes on when a key is entered
      await pause(1000 * (fault.retryAfter || 3));
    }
  }
  if (!jobs.size) await bringBack();
}

start();
