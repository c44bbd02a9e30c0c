// Texts come into the page as text only (textContent), whatever people and files are called.
"use strict";

const at = (id) => document.getElementById(id);
const plural = (count) => (count === 1 ? "1 photograph" : `${count} photographs`);

function element(kind, text = "", name = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = name;
  return made;
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer; is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `The server answers with the status ${response.status}.`);
  return answer;
}

let mostBytes = Infinity;

function form(photograph, name) {
  if (photograph.size > mostBytes - 10000) {
    throw new Error(`${photograph.name} is larger than ${mostBytes >> 20} MiB.`); // a server that refuses hangs up
  }
  const fields = new FormData();
  if (name !== undefined) fields.append("name", name);
  fields.append("photographs", photograph);
  return fields;
}

function say(text) {
  at("status").textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (at("status").textContent = ""), 8000);
}

// --- who is that? ---

function face(photograph) {
  const image = element("img");
  image.alt = photograph.name;
  image.src = URL.createObjectURL(photograph);
  const done = () => URL.revokeObjectURL(image.src);
  image.onload = done;
  image.onerror = () => {
    done();
    image.replaceWith(element("span", "", "blank")); // no browser shows PGM, and few TIFF
  };
  return image;
}

function bar(score, threshold) {
  const shown = element("div", "", "bar");
  shown.ariaHidden = "true";
  const place = (number) => `${100 * Math.min(Math.max(number, 0), 1)}%`;
  shown.style.setProperty("--score", place(score));
  shown.append(element("i"));
  if (threshold !== null) {
    shown.style.setProperty("--threshold", place(threshold));
    shown.append(element("b"));
  }
  return shown;
}

function told(answer) {
  const box = element("div");
  const who = element("p", "", "who");
  who.append(element("bdi", answer.verdict === "unknown" ? "unknown" : answer.name));
  const score = answer.score.toFixed(3);
  const least = answer.threshold?.toFixed(3);
  const threshold = least === undefined ? "no threshold, so no verdict" : `threshold ${least}`;
  const closest = answer.verdict === null ? "closest of all; " : "";
  box.append(who, bar(answer.score, answer.threshold), element("p", `${closest}score ${score}, ${threshold}`, "what"));
  return box;
}

async function identify(photograph) {
  const line = element("li");
  const waiting = element("p", "…", "faint");
  line.append(face(photograph), waiting);
  at("answers").prepend(line);
  try {
    const answer = (await ask("/identify", { method: "POST", body: form(photograph) })).answers[0];
    line.className = answer.verdict ?? "undecided";
    waiting.replaceWith(told(answer));
  } catch (error) {
    line.className = "error";
    waiting.replaceWith(element("p", error.message, "what"));
  }
}

async function identifyAll(photographs) {
  for (const photograph of photographs) await identify(photograph);
}

// --- people ---

function person({ name, photographs }) {
  const line = element("li");
  const remove = element("button", "Remove", "danger");
  remove.type = "button";
  remove.ariaLabel = `Remove ${name}`;
  remove.onclick = () => {
    at("confirm-name").textContent = name;
    at("remove").onclick = () => removed(name);
    at("confirm").showModal();
  };
  line.append(element("bdi", name), element("span", plural(photographs), "faint"), remove);
  return line;
}

async function refresh() {
  try {
    const now = await ask("/people");
    mostBytes = now.most.bytes;
    at("people").replaceChildren(...now.people.map(person));
    at("nobody").hidden = now.people.length > 0;
    at("count").textContent = now.people.length || "";
    const threshold =
      now.threshold === null
        ? "There is no threshold yet, so there are scores and no verdicts: run “metricjax recognize calibrate”."
        : `Threshold ${now.threshold.toFixed(3)}, ${now.calibrated}.`;
    at("about").textContent = `${now.gallery}, seen by ${now.encoder}. ${threshold}`;
  } catch (error) {
    say(error.message);
  }
}

async function enrol(event) {
  event.preventDefault();
  const name = at("name").value;
  const photographs = [...at("enrol-files").files];
  const wrong = [];
  let enrolled = 0;
  at("enrol-button").disabled = true;
  for (const photograph of photographs) { // each in a request, for these are limited
    say(`${enrolled + wrong.length + 1} of ${photographs.length} …`);
    try {
      await ask("/people", { method: "POST", body: form(photograph, name) });
      enrolled += 1;
    } catch (error) {
      wrong.push(error.message);
    }
  }
  at("enrol-button").disabled = false;
  if (!wrong.length) at("enrol").reset();
  say([`${plural(enrolled)} of ${name} enrolled.`, ...new Set(wrong)].join(" "));
  await refresh();
}

async function removed(name) {
  at("confirm").close();
  try {
    await ask(`/people?name=${encodeURIComponent(name)}`, { method: "DELETE" });
    say(`${name} is removed.`);
  } catch (error) {
    say(error.message);
  }
  await refresh();
}

// --- dropping and choosing ---

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault(); // or a photograph dropped beside the area would take the place of the page
    const over = at("ask-drop").contains(event.target) && (kind === "dragenter" || kind === "dragover");
    at("ask-drop").classList.toggle("over", over);
    if (kind === "drop" && event.target !== at("enrol-files")) identifyAll([...event.dataTransfer.files]);
    if (kind === "drop" && event.target === at("enrol-files")) at("enrol-files").files = event.dataTransfer.files;
  });
}
at("ask").onchange = () => {
  identifyAll([...at("ask").files]);
  at("ask").value = ""; // so that the same photograph can be chosen again
};
at("enrol").onsubmit = enrol;
at("keep").onclick = () => at("confirm").close();
document.addEventListener("visibilitychange", () => document.hidden || refresh()); // others may have changed people
refresh();
