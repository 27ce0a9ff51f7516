// The page of `viaduct serve`. Texts of the web go into the page as text, never as HTML.

const $ = (id) => document.getElementById(id);
const LARGE_BYTES = 2 << 20; // pictures above are made smaller here: the server would do it anyway
const SMALLER_PX = 1024;
const NUM_CAPTIONS = 5;
const COUNTS = [12, 24, 48, 96];

let facts = null; // what the server says of its index
let shown = null; // the picture searched by: { uid } of the index, or { blob } of the visitor
let running = null; // the search under way, which a newer one ends

class Failed extends Error {}

async function ask(path, options = {}) {
  const response = await fetch(path, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Failed("The server does not answer.");
  });
  if (response.status === 401) {
    await signIn();
    return ask(path, options);
  }
  const told = await response.json().catch(() => ({}));
  if (!response.ok) throw new Failed(told.error ?? `The server says ${response.status}.`);
  return told;
}

function request(extra) {
  const fields = { ...extra };
  const signal = running.signal;
  if (shown?.blob) {
    const query = new URLSearchParams(fields);
    const headers = { "content-type": shown.blob.type || "application/octet-stream" };
    return ask(`/v1/search?${query}`, { method: "POST", headers, body: shown.blob, signal });
  }
  if (shown?.uid) fields.uid = shown.uid;
  const headers = { "content-type": "application/json" };
  return ask("/v1/search", { method: "POST", headers, body: JSON.stringify(fields), signal });
}

async function search() {
  if (!facts) return; // begin() searches once they are here
  const text = $("text").value.trim();
  if (!text && !shown) return welcome();
  running?.abort();
  const mine = (running = new AbortController());
  const k = Number($("k").value);
  const fields = { k };
  if (text) fields.text = text;
  if (text && $("rerank").checked) fields.rerank = Math.max(k, Math.min(4 * k, facts.max_rerank));
  document.body.classList.add("busy");
  const begun = performance.now();
  try {
    const captions = shown && !text && facts.has_captions;
    const [pictures, words] = await Promise.all([
      request(fields),
      captions ? request({ k: Math.min(4 * NUM_CAPTIONS, facts.max_k), find: "captions" }) : { results: [] },
    ]);
    if (mine !== running) return;
    showPictures(pictures.results);
    showCaptions(distinct(words.results).slice(0, NUM_CAPTIONS));
    const count = pictures.results.length;
    const seconds = ((performance.now() - begun) / 1000).toFixed(2);
    say(count ? `${count} of ${number(facts.num_pictures)} pictures, in ${seconds} s` : "Nothing found.");
  } catch (error) {
    if (mine !== running || error.name === "AbortError") return;
    say(error.message, true);
    if (shown?.blob && error.message.startsWith("picture:")) show(null); // or it would fail again
  } finally {
    if (mine === running) document.body.classList.remove("busy");
  }
}

function welcome() {
  running?.abort();
  running = null;
  document.body.classList.remove("busy");
  showCaptions([]);
  showPictures(facts.examples.slice(0, Number($("k").value)).map((uid) => ({ uid })));
  say("Some of the pictures. Click one to find others like it.");
}

function showPictures(results) {
  $("found").replaceChildren(...results.map(card));
}

function card(result) {
  const item = document.createElement("li");
  const button = element("button", "picture");
  const caption = result.captions?.[0];
  button.type = "button";
  button.title = "Search by this picture";
  button.addEventListener("click", () => searchLike(result.uid));
  const image = document.createElement("img");
  image.loading = "lazy";
  image.decoding = "async";
  image.src = `/v1/pairs/${result.uid}/picture`;
  image.alt = caption ?? "A picture without a caption";
  button.append(image);
  item.append(button);
  if (result.captions) item.append(about(result, caption));
  return item;
}

function about(result, caption) {
  const box = element("div", "about");
  const words = element("p", caption ? "" : "none");
  words.textContent = caption ?? "no caption";
  words.title = result.captions.join("\n");
  words.dir = "auto";
  const line = element("div", "score");
  const score = document.createElement("span");
  score.textContent = result.score.toFixed(3);
  score.title = "Cosine";
  line.append(score);
  if (result.match !== undefined) {
    const match = document.createElement("span");
    match.textContent = `match ${result.match.toFixed(2)}`;
    match.title = "ITM's logit plus the cosine";
    line.append(match);
  }
  if (/^https?:\/\//i.test(result.url)) {
    const link = document.createElement("a");
    link.href = result.url;
    link.rel = "noopener noreferrer nofollow";
    link.target = "_blank";
    link.textContent = "source";
    line.append(link);
  }
  box.append(words, line);
  return box;
}

/** Captions without those that another picture has too, which come behind it. */
function distinct(results) {
  const seen = new Set();
  return results.filter(({ text }) => !seen.has(text.toLowerCase()) && seen.add(text.toLowerCase()));
}

function showCaptions(results) {
  $("words").hidden = !results.length;
  $("captions").replaceChildren(
    ...results.map((result) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      const score = document.createElement("small");
      button.type = "button";
      button.dir = "auto";
      button.textContent = result.text;
      score.textContent = result.score.toFixed(3);
      button.append(score);
      button.addEventListener("click", () => searchWords(result.text));
      item.append(button);
      return item;
    }),
  );
}

function element(name, className) {
  const made = document.createElement(name);
  if (className) made.className = className;
  return made;
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

const number = (value) => value.toLocaleString("en");

// What is searched for

function show(picture) {
  if (shown?.blob) URL.revokeObjectURL($("shown-picture").src);
  shown = picture;
  $("shown").hidden = !picture;
  if (picture) $("shown-picture").src = picture.blob ? URL.createObjectURL(picture.blob) : `/v1/pairs/${picture.uid}/picture`;
  else $("shown-picture").removeAttribute("src");
  $("text").placeholder = picture ? "Add words, if you like" : "Words, a picture, or both";
}

function searchLike(uid) {
  show({ uid });
  $("text").value = "";
  remember();
  scrollTo({ top: 0 });
  search();
}

function searchWords(text) {
  show(null);
  $("text").value = text;
  remember();
  search();
}

async function searchFile(file) {
  try {
    show({ blob: await smaller(file) });
  } catch {
    return say("This file is no picture that can be read here.", true);
  }
  $("text").value = "";
  remember();
  search();
}

async function smaller(file) {
  if (file.type && !file.type.startsWith("image/")) throw new Failed("no picture");
  if (file.size <= LARGE_BYTES) return file;
  const picture = await createImageBitmap(file);
  const scale = Math.min(1, SMALLER_PX / Math.min(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
}

// The address holds the search, so that going back does what it says; a visitor's file is not in it.

function remember() {
  const query = new URLSearchParams();
  if ($("text").value.trim()) query.set("text", $("text").value.trim());
  if (shown?.uid) query.set("like", shown.uid);
  const address = query.size ? `/?${query}` : "/";
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
}

function recall() {
  const query = new URLSearchParams(location.search);
  const uid = query.get("like");
  $("text").value = query.get("text") ?? "";
  show(/^[0-9a-f]{32}$/.test(uid ?? "") ? { uid } : null);
}

// Signing in

async function signIn() {
  if ($("signing").open) return new Promise((done) => $("signing").addEventListener("close", done, { once: true }));
  $("token").value = "";
  $("wrong").textContent = "";
  $("signing").showModal();
  return new Promise((done) => $("signing").addEventListener("close", done, { once: true }));
}

$("signing").addEventListener("cancel", (event) => event.preventDefault());
$("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = JSON.stringify({ token: $("token").value });
  const headers = { "content-type": "application/json" };
  const response = await fetch("/v1/sign-in", { method: "POST", headers, body }).catch(() => null);
  if (response?.ok) $("signing").close();
  else $("wrong").textContent = response ? "That is not it." : "The server does not answer.";
});

// What a visitor does

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  remember();
  search();
});
for (const id of ["k", "rerank"]) $(id).addEventListener("change", search);
$("unshow").addEventListener("click", () => {
  show(null);
  remember();
  search();
  $("text").focus();
});
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) searchFile(file);
});
addEventListener("popstate", () => {
  recall();
  search();
});

let depth = 0; // dragenter and dragleave come for every element that is crossed
addEventListener("dragenter", (event) => {
  event.preventDefault();
  depth += 1;
  $("drop").hidden = false;
});
addEventListener("dragleave", () => {
  depth -= 1;
  if (!depth) $("drop").hidden = true;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  $("drop").hidden = true;
  const uid = /\/v1\/pairs\/([0-9a-f]{32})\/picture$/.exec(event.dataTransfer.getData("text/uri-list"))?.[1];
  const [file] = event.dataTransfer.files;
  if (uid) searchLike(uid); // one of this page's own
  else if (file) searchFile(file);
  else say("Drop a picture file: nothing is fetched from other addresses.", true);
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) {
    event.preventDefault();
    searchFile(file);
  }
});

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("signing").open) return;
  const writes = document.activeElement === $("text");
  if (event.key === "/" && !writes) {
    event.preventDefault();
    $("text").focus();
    $("text").select();
  } else if (event.key === "ArrowDown" && writes) {
    event.preventDefault();
    document.querySelector(".picture")?.focus();
  } else if (document.activeElement?.classList.contains("picture")) {
    walk(event);
  }
});

function walk(event) {
  const pictures = [...document.querySelectorAll(".picture")];
  const columns = getComputedStyle($("found")).gridTemplateColumns.split(" ").length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (event.key === "Escape") $("text").focus();
  if (!(event.key in steps)) return;
  event.preventDefault();
  const place = pictures.indexOf(document.activeElement) + steps[event.key];
  if (place < 0) $("text").focus();
  else pictures[Math.min(place, pictures.length - 1)].focus();
}

// Begin

async function begin() {
  recall(); // now, or it would wipe out what is written while the server is asked
  try {
    facts = await ask("/v1/index");
  } catch (error) {
    return say(error.message, true);
  }
  const counts = COUNTS.filter((count) => count <= facts.max_k);
  for (const count of counts.length ? counts : [facts.max_k]) $("k").append(new Option(count, count, false, count === 24));
  $("reranks").hidden = !facts.max_rerank;
  $("about").textContent = `${number(facts.num_pictures)} pictures, index ${facts.index.slice(0, 12)}.`;
  if (location.search || shown) search();
  else welcome(); // what is half written waits for its Enter
}

begin();
