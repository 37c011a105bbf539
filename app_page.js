// The page of app.py, run by Gradio's HTML component with `element`, `trigger`, `upload`, `watch` and `props`.
//
// Every picture is chosen with a number, and an answer with another number than the latest is not shown. A view holds
// the sentences of all emotions and the veils of all words, so choosing one of them needs no answer.

const page = element.querySelector(".page");
const slot = page.querySelector(".slot");
const alertBox = page.querySelector(".alert");
const input = page.querySelector("input[type=file]");
const limit = Number(page.dataset.megabytes);
let number = 0;  // of the latest choice of a picture
let shown = null;  // the view with an answer

const HINT = "Point at a word to see where the model looked while it wrote it.";
const MORE = "Other ways to say it";

function find(root, selector) {
  return root.querySelector(selector);
}

function complain(text) {
  alertBox.textContent = text;
  alertBox.hidden = !text;
}

// ---- choosing a picture

function wait(address, alt) {
  // The new picture is there at once, without an answer of the old one next to it.
  const waiting = document.createElement("div");
  waiting.className = "view waiting";
  waiting.innerHTML = '<figure class="picture"><img class="painting"></figure><p class="sentence" role="status">Looking …</p>';
  const image = find(waiting, "img");
  image.src = address;
  image.alt = alt;
  slot.replaceChildren(waiting);
}

function back(text) {
  slot.replaceChildren(...(shown ? [shown] : []));
  complain(text);
}

function chooseExample(button) {
  number += 1;
  complain("");
  wait(find(button, "img").src, button.getAttribute("aria-label"));
  trigger("submit", { number, example: button.dataset.example });
}

async function chooseFile(file) {
  if (!file) return;
  number += 1;
  const mine = number;
  complain("");
  if (file.size > limit * 2 ** 20) {
    return back(`The file has ${Math.ceil(file.size / 2 ** 20)} MB, and this page takes up to ${limit}. `
      + "Save the picture smaller, or as a JPEG.");
  }
  const address = URL.createObjectURL(file);
  wait(address, "Your picture");
  try {
    const { path } = await upload(file);
    if (mine === number) trigger("submit", { number, path });
  } catch (error) {
    if (mine === number) back("The file could not be sent. Check the connection, then choose it again.");
  } finally {
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  }
}

input.addEventListener("change", () => {
  chooseFile(input.files[0]);
  input.value = "";  // the same file can be chosen again
});
page.addEventListener("dragover", (event) => event.preventDefault());
page.addEventListener("drop", (event) => {
  event.preventDefault();
  chooseFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => chooseFile(event.clipboardData.files[0]));

// ---- answers

function receive(answer) {
  if (!answer || answer.number !== number) return;
  if (answer.error) return back(answer.error);
  if (answer.candidates) {
    const article = [...slot.querySelectorAll(".answer")].filter((one) => one.dataset.emotion === answer.emotion);
    for (const one of article) {
      find(one, ".candidates").innerHTML = answer.candidates;
    }
    const button = find(shown, ".draw");
    button.disabled = false;
    button.textContent = MORE;
    return;
  }
  const holder = document.createElement("div");
  holder.innerHTML = answer.view;
  shown = holder.firstElementChild;
  slot.replaceChildren(shown);
  light(shown, null);
}

watch("value", () => receive(props.value));
receive(props.value);

// ---- emotions: the second of two compared ones is chosen by the chips

function choose(view, emotion) {
  const compared = view.dataset.compared;
  for (const article of view.querySelectorAll(".answer")) {
    const name = article.dataset.emotion;
    article.hidden = name !== emotion && name !== compared;
    article.classList.toggle("kept", name === compared);
  }
  light(view, null);
}

function compare(view, button) {
  const emotion = find(view, ".chip input:checked").value;
  const start = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(start));
  button.textContent = start ? "Show one emotion" : "Compare two emotions";
  if (start) view.dataset.compared = emotion; else delete view.dataset.compared;
  let chosen = emotion;
  if (start) {
    const other = find(view, ".chip input:not(:checked)");
    other.checked = true;
    chosen = other.value;
  }
  choose(view, chosen);
}

// ---- words

function light(view, word) {
  for (const lit of view.querySelectorAll(".word.lit")) lit.classList.remove("lit");
  const veil = find(view, ".veil");
  veil.style.opacity = word ? 1 : 0;
  if (!word) {
    for (const hint of view.querySelectorAll(".hint")) hint.textContent = HINT;
    return;
  }
  word.classList.add("lit");
  veil.style.backgroundImage = `url(${word.dataset.veil})`;
  const meaning = word.dataset.meaning ? ` Readers rate the word as ${word.dataset.meaning}.` : "";
  find(word.closest(".answer"), ".hint").textContent = `“${word.textContent}”: the model looked at the bright parts.${meaning}`;
}

for (const [event, on] of [["pointerover", true], ["focusin", true], ["pointerout", false], ["focusout", false]]) {
  slot.addEventListener(event, (happened) => {
    const word = happened.target.closest(".word");
    if (!word) return;
    const view = word.closest(".view");
    if (on) light(view, word);
    else if (document.activeElement !== word) light(view, null);
  });
}

// ---- a card to keep: picture, emotion, sentence, shares

function lines(context, text, width) {
  const all = [""];
  for (const word of text.split(" ")) {
    const longer = `${all[all.length - 1]} ${word}`.trim();
    if (context.measureText(longer).width > width && all[all.length - 1]) all.push(word);
    else all[all.length - 1] = longer;
  }
  return all;
}

function card(view) {
  const image = find(view, ".painting");
  const articles = [...view.querySelectorAll(".answer:not([hidden])")];
  const scores = Object.entries(JSON.parse(view.dataset.scores)).sort((a, b) => b[1] - a[1]);
  const width = 1080, margin = 60, inner = width - 2 * margin;
  const height = Math.min(1080, Math.round(inner * image.naturalHeight / image.naturalWidth));
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const font = (size, weight = 400) => `${weight} ${size}px Georgia, "Times New Roman", serif`;
  context.font = font(40);
  const texts = articles.map((article) => lines(context, `${article.dataset.emotion}, because ${article.dataset.explanation}`, inner));
  const rows = texts.reduce((sum, text) => sum + 54 * text.length + 22, 0);
  canvas.width = width;
  canvas.height = margin + height + 40 + rows + 10 + 40 * scores.length + margin;
  context.fillStyle = "#fdfcfa";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const drawn = Math.min(inner, height * image.naturalWidth / image.naturalHeight);
  context.drawImage(image, margin + (inner - drawn) / 2, margin, drawn, height);
  let y = margin + height + 40;
  context.textBaseline = "top";
  context.fillStyle = "#1d1d1b";
  for (const text of texts) {
    context.font = font(40);
    for (const line of text) {
      context.fillText(line, margin, y);
      y += 54;
    }
    y += 22;
  }
  for (const [emotion, share] of scores) {
    const colour = getComputedStyle(find(view, `.chip:has(input[value="${emotion}"])`)).getPropertyValue("--emotion");
    context.font = font(26);
    context.fillStyle = "#1d1d1b";
    context.fillText(emotion, margin, y);
    context.fillText(`${Math.round(100 * share)} %`, margin + 250, y);
    context.fillStyle = colour;
    context.fillRect(margin + 350, y + 4, Math.max(2, (inner - 350) * share), 22);
    y += 40;
  }
  return canvas;
}

function save(view) {
  card(view).toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${find(view, ".chip input:checked").value.replace(" ", "-")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

// ---- clicks

page.addEventListener("change", (event) => {
  if (event.target.name === "emotion") choose(event.target.closest(".view"), event.target.value);
});

page.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const view = button.closest(".view");
  if (button.matches(".example")) chooseExample(button);
  if (button.matches(".word")) {
    button.focus();  // Safari does not focus a clicked button
    light(view, button);
  }
  if (button.matches(".save")) save(view);
  if (button.matches(".compare")) compare(view, button);
  if (button.matches(".draw")) {
    button.disabled = true;
    button.textContent = "Writing …";
    trigger("select", { number, emotion: find(view, ".chip input:checked").value });
  }
});
