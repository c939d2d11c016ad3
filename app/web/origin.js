// A picture to start from: a file that was chosen, or one that was drawn here.

const $ = (id) => document.getElementById(id);
const known = new Map(); // sha256 of what this tab has sent: what it sent
let chosen = null; // as a job's init_image has it

export const origin = {
  // What a request says of it; nothing where it starts from noise.
  fields: () => (chosen ? { init_image: chosen, strength: Number($("strength").value) } : {}),

  // Jobs name it by its hash alone.
  remember(job, body) {
    if (body.init_image) known.set(job.request.init_image, body.init_image);
  },

  // The request of a job as it can be sent again, or null where the picture is not here any more.
  again({ init_image, ...request }) {
    if (!init_image) return request;
    return known.has(init_image) ? { ...request, init_image: known.get(init_image) } : null;
  },

  // Back to what a job started from; false where that picture is not here any more.
  restore({ init_image, strength }) {
    const sent = init_image ? known.get(init_image) : null;
    origin.set(sent || null, "the same picture");
    if (sent) $("strength").value = strength;
    return Boolean(sent) || !init_image;
  },

  set(picture, name) {
    chosen = picture;
    if (!picture) $("init_image").value = "";
    $("origin-name").textContent = picture ? `Starts from ${name}.` : "";
    $("no-origin").hidden = !picture;
    $("strength-field").hidden = !picture;
    $("composer").dispatchEvent(new Event("input"));
  },
};

$("no-origin").addEventListener("click", () => {
  origin.set(null);
  $("init_image").focus();
});

$("init_image").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (!file) return origin.set(null);
  const reader = new FileReader();
  reader.addEventListener("load", () => origin.set(reader.result, file.name));
  reader.addEventListener("error", () => origin.set(null));
  reader.readAsDataURL(file);
});
