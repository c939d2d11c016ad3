// The tiles of the session's jobs, one a picture, and the sheet with a picture's details.

import { inWords, isEnd } from "./api.js";

const $ = (id) => document.getElementById(id);
const gallery = $("gallery");
const sheet = $("details");
const tiles = new Map(); // job id -> its tiles
export const jobs = new Map(); // job id -> the job as last seen

const seconds = (s) => (s < 1.5 ? "about a second" : s < 90 ? `about ${Math.round(s)} s` : `about ${Math.round(s / 60)} min`);
const ahead = (count) => (count ? `${count} ${count === 1 ? "job" : "jobs"} ahead` : "next in line");

export function add(job) {
  jobs.set(job.id, job);
  $("empty").hidden = true;
  const made = Array.from({ length: job.request.n }, (_, index) => newTile(job, index));
  tiles.set(job.id, made);
  gallery.prepend(...made);
  update(job);
}

function newTile(job, index) {
  const tile = $("tile").content.cloneNode(true).firstElementChild;
  Object.assign(tile.dataset, { job: job.id, index });
  tile.querySelector(".words").textContent = job.request.prompt;
  tile.querySelector(".seed").textContent = `seed ${job.request.seed + index}`;
  return tile;
}

export function update(job) {
  if (isEnd(jobs.get(job.id)?.status) && !isEnd(job.status)) return; // an answer that the end overtook
  jobs.set(job.id, job);
  for (const tile of tiles.get(job.id) || []) show(tile, job);
}

function show(tile, job) {
  const image = job.images[tile.dataset.index];
  tile.dataset.status = job.status;
  tile.querySelector("progress").value = job.progress.fraction;
  tile.querySelector(".board").disabled = !image;
  tile.querySelector(".state").textContent = isEnd(job.status) || tile.wanted ? "" : stateWords(job);
  tile.querySelector("[data-do=cancel]").disabled = false;
  if (job.status === "succeeded" && image) finish(tile, job, image);
  if (job.status === "failed" || job.status === "canceled") fail(tile, job);
}

function stateWords(job) {
  if (job.status === "queued") {
    const place = job.queue_position === null ? "waiting" : ahead(job.queue_position);
    return job.eta_seconds ? `${place}\n${seconds(job.eta_seconds)}` : place;
  }
  return job.progress.step ? `step ${job.progress.step} of ${job.progress.total_steps}` : "starting";
}

function finish(tile, job, image) {
  const link = tile.querySelector("a[data-do=download]");
  link.href = fileAddress(image);
  link.download = fileName(job, image);
  tile.querySelector(".seed").textContent = `seed ${image.seed}`; // best_of may have kept another
  paint(tile, address(image), `${job.request.prompt}, seed ${image.seed}`);
}

// The new picture replaces the one before only once it is decoded, so nothing flashes.
async function paint(tile, source, words) {
  const next = new Image();
  next.src = source;
  next.alt = words;
  tile.wanted = source;
  const shown = await next.decode().then(() => true, () => false);
  if (tile.wanted !== source) return;
  if (!shown) {
    tile.querySelector(".state").textContent = "This picture could not be loaded.\nReload the page for a fresh link.";
    return;
  }
  const before = tile.querySelector("img");
  if (before.hidden) next.className = "first"; // later ones do not fade in: that would flicker
  before.replaceWith(next);
  if (!isEnd(tile.dataset.status)) tile.querySelector(".state").textContent = "";
}

function fail(tile, job) {
  const canceled = job.status === "canceled";
  const words = canceled ? { title: "Canceled", text: "" } : inWords(job.error || {});
  tile.querySelector(".state").textContent = [words.title, words.text].filter(Boolean).join("\n");
  const others = tiles.get(job.id).filter((other) => other !== tile);
  if (Number(tile.dataset.index) === 0) others.forEach((other) => other.remove());
}

export function preview(jobId, data) {
  const source = Object.values(data).find((value) => `${value}`.startsWith("data:image/"));
  const tile = tiles.get(jobId)?.[data.index ?? 0];
  if (source && tile && !isEnd(jobs.get(jobId).status)) paint(tile, source, "preview");
}

export function gone(jobId) {
  for (const tile of tiles.get(jobId) || []) tile.remove();
  tiles.delete(jobId);
  jobs.delete(jobId);
  $("empty").hidden = gallery.childElementCount > 0;
}

// Paths in a job begin at the server's root; this page may live under a prefix.
export const address = (image) => new URL(image.url.slice(1), document.baseURI).href;
// From this server even where pictures lie in a bucket: browsers save no file of another origin.
const fileAddress = (image) => `${address(image)}&download=true`;

function fileName(job, image) {
  const words = job.request.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) || ["picture"];
  return `${words.join("-").slice(0, 48)}-${image.seed}.${image.content_type.split("/")[1]}`;
}

export function openSheet(job, index) {
  const image = job.images[index];
  const asked = job.request;
  Object.assign(sheet.dataset, { job: job.id, index });
  $("details-prompt").textContent = asked.prompt;
  const picture = sheet.querySelector(".board img");
  Object.assign(picture, { src: address(image), alt: asked.prompt, width: image.width, height: image.height });
  const link = sheet.querySelector("a[data-do=download]");
  Object.assign(link, { href: fileAddress(image), download: fileName(job, image) });
  sheet.querySelector("[role=status]").textContent = "";
  list(sheet.querySelector("dl"), {
    "Leave out": asked.negative_prompt,
    Seed: image.seed,
    Steps: `${asked.steps}, ${asked.sampler}`,
    "Follow the prompt": asked.guidance_scale,
    Size: `${image.width} × ${image.height}, ${Math.max(1, Math.round(image.bytes / 1024))} KB`,
    Model: asked.model,
    "Fits the prompt": image.clip_score?.toFixed(3),
    "Answered from storage": job.cached ? "yes" : null,
    Note: job.warnings.join(" "),
    Job: job.id,
  });
  sheet.showModal();
}

export function list(dl, rows) {
  const given = Object.entries(rows).filter(([, value]) => value !== null && value !== undefined && value !== "");
  dl.replaceChildren(
    ...given.flatMap(([name, value]) => {
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      [dt.textContent, dd.textContent] = [name, value];
      return [dt, dd];
    }),
  );
}
