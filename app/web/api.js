// How the page speaks to its server: requests, a job's events, and problems in plain words.

const STREAMS = 3; // browsers open six connections to a host; the others are for everything else
const FRUITLESS = 3; // streams that say nothing, until polling takes over
const ENDS = ["succeeded", "failed", "canceled"];
let open = 0;

export const isEnd = (status) => ENDS.includes(status);

// What went wrong, as a problem object (RFC 9457); `retryAfter` in seconds where the server said.
export class Problem extends Error {
  constructor(body, retryAfter = 0) {
    super(body.detail || body.title);
    Object.assign(this, { type: "", status: 0, errors: [] }, body, { retryAfter });
  }
}

export const key = {
  get: () => sessionStorage.getItem("avocat-key") || "",
  set: (value) => sessionStorage.setItem("avocat-key", value),
};

async function send(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  try {
    return await fetch(path, { cache: "no-store", ...options, headers });
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new Problem({ type: "offline", title: "The server does not answer" });
  }
}

export async function request(path, options) {
  const response = await send(path, options);
  const body = await response.json().catch(() => ({ title: response.statusText || "Error" }));
  if (response.ok) return body;
  const wait = Number(response.headers.get("Retry-After")) || 0;
  throw new Problem({ status: response.status, ...body }, wait);
}

// randomUUID exists on https and localhost only; this page also lives on a plain LAN address.
const unique = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16)).join("");

export function submit(body, attempt = unique()) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": attempt };
  const options = { method: "POST", headers, body: JSON.stringify(body) };
  return request("v1/jobs", options).catch((fault) => {
    // The same key: were the first one accepted all the same, this finds it.
    if (fault.type !== "offline") throw fault;
    return pause(800).then(() => request("v1/jobs", options));
  });
}

export const cancel = (id) => request(`v1/jobs/${id}/cancel`, { method: "POST" });
export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// Tells `seen(event, data)` what happens to a job until it ends, and returns it then.
// fetch and not EventSource, which can send no API key.
export async function follow(id, previews, seen) {
  const stream = { id, previews, last: "", fruitless: 0 };
  for (let wait = 150; ; wait = Math.min(wait * 1.3, 2000)) {
    if (stream.fruitless < FRUITLESS && open < STREAMS) {
      const job = await listen(stream, seen);
      if (job) return job;
    }
    const job = await request(`v1/jobs/${id}`).catch((fault) => {
      if (fault.type !== "offline" && fault.status < 500 && fault.status !== 429) throw fault;
      seen("lost", fault);
      return null;
    });
    if (job) seen("job", job);
    if (job && isEnd(job.status)) return job;
    await pause(job ? wait : 2000);
  }
}

async function listen(stream, seen) {
  const headers = { Accept: "text/event-stream" };
  if (stream.last) headers["Last-Event-ID"] = stream.last;
  open += 1;
  try {
    const response = await send(`v1/jobs/${stream.id}/events?previews=${stream.previews}`, { headers });
    if (!response.ok || !response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
      stream.fruitless = FRUITLESS;
      return null;
    }
    stream.fruitless += 1;
    for await (const { event, data, id } of events(response.body)) {
      stream.fruitless = 0;
      stream.last = id || stream.last;
      if (ENDS.includes(event)) return JSON.parse(data);
      seen(event, JSON.parse(data));
    }
  } catch {
    stream.fruitless += 1; // lost; the caller looks at the job and comes back
  } finally {
    open -= 1;
  }
  return null;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).replace(/\r\n?/g, "\n").split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = readEvent(block);
        if (event.data) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function readEvent(block) {
  const event = { event: "message", data: "", id: "" };
  for (const line of block.split("\n")) {
    const [, name, value] = /^(\w+):? ?(.*)$/s.exec(line) || [];
    if (name === "data") event.data += (event.data && "\n") + value;
    else if (name in event) event[name] = value;
  }
  return event;
}

const WORDS = {
  offline: ["The server does not answer.", "Check that it runs and that you are connected; nothing you sent is lost."],
  unauthorized: ["An API key is needed.", "Enter the key that this server's operator gave you."],
  forbidden: ["This key may not do that.", ""],
  "malformed-json": ["The request could not be read.", "Reload the page and try again."],
  "unsupported-media-type": ["The request could not be read.", "Reload the page and try again."],
  "body-too-large": ["That is too much text.", "Shorten the prompt."],
  "invalid-request": ["Something in the request is not right.", ""],
  "content-policy-violation": ["This service does not draw that.", "Ask for something else."],
  "idempotency-key-reused": ["This request was sent before in another form.", "Generate again."],
  "job-not-found": ["This job is gone.", "Jobs and their pictures are kept for a limited time."],
  "image-not-found": ["This picture is gone.", "Pictures are kept for a limited time."],
  "model-not-found": ["This model is not here any more.", "Choose another one in the options."],
  "signature-expired": ["The link to this picture has expired.", "Reload the page for a fresh one."],
  "quota-exceeded": ["That is as much as your key may ask for now.", "Let some jobs end, or wait a little."],
  "storage-full": ["The storage of images is full.", "Room comes as older pictures expire."],
  "queue-full": ["The queue is full.", "Many jobs wait already."],
  unavailable: ["The service cannot draw right now.", ""],
  "not-ready": ["The service is still starting.", "The model is being loaded."],
  "internal-error": ["Something went wrong on the server.", ""],
  "job-timeout": ["It took too long.", "Fewer steps or pictures help."],
  "worker-lost": ["The machine that drew it failed.", "Generate again; it goes to another one."],
  "generation-failed": ["The picture could not be computed.", "Try another seed or fewer steps."],
  "storage-failed": ["The picture was drawn but could not be stored.", "Tell the server's operator."],
  "invalid-job": ["This model cannot draw that.", "Other options may help."],
  "queue-entry-invalid": ["The job was damaged in the queue.", "Generate again."],
  "model-not-served": ["No worker serves this model now.", "Try again in a moment."],
  "model-not-loaded": ["This model could not be loaded.", "Choose another one in the options."],
};

// A title and a sentence for people, for every problem there is and for those to come.
export function inWords(problem) {
  const slug = (problem.type || "").split("/").pop();
  const [title, advice] = WORDS[slug] || [problem.title || "That did not work.", ""];
  const request = problem.status === 500 && problem.instance ? `Request ${problem.instance}.` : "";
  return { title, text: [advice || problem.detail || "", request].filter(Boolean).join(" ") };
}
