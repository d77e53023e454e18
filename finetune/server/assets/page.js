// Sends photos to the server and shows its answers.
(() => {
  "use strict";
  const find = (id) => document.getElementById(id);
  const TOP = 5;
  const MAX_EARLIER = 20;
  const MAX_ATTEMPTS = 4;
  const TOKEN_KEY = "finetune-token";
  let token = takeToken();
  let model = null;

  // requests ------------------------------------------------------------------------------------
  /** Return the token of the address (#token=...), which leaves the address, or that of before. */
  function takeToken() {
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    if (given !== null) {
      history.replaceState(null, "", location.pathname);
      sessionStorage.setItem(TOKEN_KEY, given);
    }
    return given ?? sessionStorage.getItem(TOKEN_KEY);
  }

  class AnswerError extends Error {
    constructor(message, status) {
      super(message);
      this.status = status;
    }
  }

  const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

  async function request(path, options = {}) {
    const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
    for (let attempt = 1; ; attempt += 1) {
      let response;
      try {
        response = await fetch(path, { ...options, headers });
      } catch {
        throw new AnswerError("The server cannot be reached. Is it still running?", 0);
      }
      if (response.ok) return response;
      const retry = Number(response.headers.get("Retry-After"));
      if (response.status === 429 && attempt < MAX_ATTEMPTS) {
        say(`The server is busy; trying again in ${retry} s …`);
        await wait(retry || 1);
        continue;
      }
      const body = await response.json().catch(() => ({}));
      throw new AnswerError(body.detail ?? `The server answered ${response.status}.`, response.status);
    }
  }

  const requestJson = async (path, options) => (await request(path, options)).json();

  // small parts ---------------------------------------------------------------------------------
  function make(tag, className, ...content) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...content);
    return element;
  }

  function makeButton(text, onClick, className = "button button-small") {
    const button = make("button", className, text);
    button.type = "button";
    button.addEventListener("click", onClick);
    return button;
  }

  function say(text, isProblem = false) {
    find("status").textContent = text;
    find("status").classList.toggle("message-problem", isProblem);
  }

  function formatPercent(value) {
    const percent = value * 100;
    if (percent > 99.9 && percent < 100) return ">99.9%";
    if (percent > 0 && percent < 0.1) return "<0.1%";
    return `${percent.toFixed(1)}%`;
  }

  // answers -------------------------------------------------------------------------------------
  function makeBar(label, probability, isPredicted, threshold) {
    const fill = make("span", "bar-fill");
    fill.style.width = `${probability * 100}%`;
    const track = make("span", "bar-track", fill);
    track.setAttribute("aria-hidden", "true");
    if (threshold !== undefined) {
      const mark = make("span", "bar-threshold");
      mark.style.left = `${threshold * 100}%`;
      track.append(mark);
    }
    const row = make("li", isPredicted ? "bar-row bar-predicted" : "bar-row");
    row.append(make("span", "bar-label", label), make("span", "bar-value", formatPercent(probability)), track);
    return row;
  }

  /** Return the classes of a prediction with their bars, the most probable first. */
  function makeBars(prediction) {
    const all = Object.entries(prediction.probabilities).sort((a, b) => b[1] - a[1]);
    const predicted = new Set(
      model.is_multi_label ? prediction.labels.map((one) => one.label) : [prediction.label],
    );
    const bars = make("ol", "bars");
    const add = ([label, value]) => {
      const threshold = model.is_multi_label ? model.thresholds[label] : undefined;
      bars.append(makeBar(label, value, predicted.has(label), threshold));
    };
    const first = Math.max(TOP, predicted.size);
    all.slice(0, first).forEach(add);
    const parts = [bars];
    if (all.length > first) {
      const button = makeButton(`Show all ${all.length} classes`, () => {
        all.slice(first).forEach(add);
        button.remove();
      });
      parts.push(button);
    }
    return parts;
  }

  function describe(prediction) {
    if (!model.is_multi_label) return `${prediction.label}, ${formatPercent(prediction.probability)}`;
    const names = prediction.labels.map((one) => `${one.label} ${formatPercent(one.probability)}`);
    return names.length ? names.join(", ") : "no label reaches its threshold";
  }

  function getHeading(prediction) {
    if (!model.is_multi_label) return prediction.label;
    return prediction.labels.map((one) => one.label).join(", ") || "No label";
  }

  function makePhoto(blob, name, source) {
    const picture = document.createElement("img");
    picture.alt = "";
    picture.src = source ?? URL.createObjectURL(blob);
    const figure = make("figure", "answer-photo", picture, make("figcaption", "answer-name", name));
    picture.addEventListener("error", () => {
      picture.replaceWith(make("p", "answer-missing", "This browser cannot show the photo; the model can read it."));
    });
    if (source === undefined) picture.addEventListener("load", () => URL.revokeObjectURL(picture.src));
    return figure;
  }

  function makeSaliency(blob, box) {
    const button = makeButton("What does it depend on?", async () => {
      button.disabled = true;
      button.textContent = "Computing …";
      const place = make("figure", "answer-saliency");
      place.setAttribute("role", "status");
      try {
        const found = await requestJson("saliency", { method: "POST", body: blob });
        if (found.picture === null) {
          place.append(make("p", "note", found.reason));
        } else {
          const picture = document.createElement("img");
          picture.src = found.picture;
          picture.alt = `The photo as the model sees it, beside a map of the parts on which “${found.label}” depends most, in yellow`;
          place.append(picture, make("figcaption", "answer-name", `Parts on which “${found.label}” depends: yellow is much, dark is little. Removing them lowers its probability more than removing random parts.`));
        }
        button.remove();
      } catch (error) {
        place.append(make("p", "message-problem", error.message));
        button.disabled = false;
        button.textContent = "Try again";
      }
      box.querySelector(".answer-saliency")?.remove();
      box.append(place);
    });
    return button;
  }

  function makeAnswer(prediction, blob, { name, label, source }) {
    const box = make("div", "answer-text", make("h3", "", getHeading(prediction)));
    if (label) box.append(make("p", "answer-remark", `Labelled ${label}`));
    box.append(...makeBars(prediction));
    if (model.has_saliency) box.append(makeSaliency(blob, box));
    const answer = make("article", "answer", makePhoto(blob, name, source), box);
    answer.setAttribute("aria-label", `Answer for ${name}`);
    return answer;
  }

  /** Return the entry of a photo that has no answer, with the reason. */
  function makeFailure(name, reason) {
    const box = make("div", "answer-text", make("h3", "", "No answer"), make("p", "message-problem", reason));
    const answer = make("article", "answer answer-failed", make("p", "answer-name", name), box);
    answer.setAttribute("aria-label", `No answer for ${name}`);
    return answer;
  }

  /** Move the answers to the photos of before below those to come, under a heading of their own. */
  function setAside() {
    const earlier = find("earlier-list");
    earlier.prepend(...find("results").children);
    while (earlier.children.length > MAX_EARLIER) earlier.lastElementChild.remove();
    find("earlier").hidden = earlier.children.length === 0;
  }

  function showProblem(error, name) {
    if (error.status === 401) askToken("The token is no longer accepted.");
    else say(`${name}: ${error.message}`, true);
  }

  /** Return the prediction of a photo, and its bytes. */
  async function predict(photo) {
    const blob = photo.blob ?? (await (await request(photo.path)).blob());
    if (blob.size > model.limits.max_bytes) {
      const limit = `${Math.round(model.limits.max_bytes / 1e6)} MB`;
      throw new AnswerError(`The file is too large; the server takes at most ${limit}.`, 413);
    }
    const found = await requestJson("predict?all=true", { method: "POST", body: blob });
    return [found.predictions[0], blob];
  }

  /** Show an answer or the reason of a failure for each photo, in their order. */
  async function predictAll(photos) {
    setAside();
    let numFailed = 0;
    let text = "";
    for (const [number, photo] of photos.entries()) {
      const place = photos.length > 1 ? ` (${number + 1} of ${photos.length})` : "";
      say(`Predicting ${photo.name}${place} …`);
      let answer;
      try {
        const [prediction, blob] = await predict(photo);
        answer = makeAnswer(prediction, blob, photo);
        text = `${photo.name}: ${describe(prediction)}`;
      } catch (error) {
        if (error.status === 401) {
          showProblem(error, photo.name);
          return;
        }
        answer = makeFailure(photo.name, error.message);
        text = `${photo.name} has no answer.`;
        numFailed += 1;
      }
      find("results").append(answer);
      if (number === 0) answer.scrollIntoView({ block: "nearest" });
    }
    if (photos.length > 1) {
      const numAnswers = photos.length - numFailed;
      const failed = numFailed ? `, ${numFailed} without an answer` : "";
      text = `${photos.length} photos: ${numAnswers} with an answer${failed}.`;
    }
    say(text, numFailed > 0);
  }

  let queue = Promise.resolve();
  function predictPhotos(photos) {
    if (photos.length) queue = queue.then(() => predictAll(photos));
  }

  const predictFiles = (files) =>
    predictPhotos(files.map((file) => ({ name: file.name || "Photo", blob: file })));

  // inputs --------------------------------------------------------------------------------------
  function connectInput(button, input) {
    find(button).addEventListener("click", () => find(input).click());
    find(input).addEventListener("change", () => {
      predictFiles([...find(input).files]);
      find(input).value = "";
    });
  }

  function connectInputs() {
    connectInput("choose", "files");
    connectInput("camera", "shot");
    const isReady = () => !find("try").hidden;
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      find("drop").classList.add("drop-over");
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) find("drop").classList.remove("drop-over");
    });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      find("drop").classList.remove("drop-over");
      const files = [...event.dataTransfer.files];
      if (!isReady()) return;
      if (files.length) predictFiles(files);
      else say("Only files can be dropped. Save the photo first, or copy and paste it.", true);
    });
    document.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (isReady() && files.length) {
        event.preventDefault();
        predictFiles(files);
      }
    });
    find("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      token = find("token").value.trim();
      sessionStorage.setItem(TOKEN_KEY, token);
      start();
    });
  }

  // start ---------------------------------------------------------------------------------------
  function askToken(problem) {
    find("try").hidden = true;
    find("model").hidden = true;
    find("access").hidden = false;
    find("token-message").textContent = problem;
    find("token-message").hidden = problem === "";
    find("token").focus();
  }

  function showModel() {
    document.title = `${model.title} – finetune serve`;
    find("title").textContent = model.title;
    find("kind").textContent = ["Image classifier", model.data, model.backbone].filter(Boolean).join(" · ");
    const megabytes = Math.round(model.limits.max_bytes / 1e6);
    const megapixels = Math.round(model.limits.max_pixels / 1e6);
    find("limits").textContent = `Up to ${megabytes} MB and ${megapixels} megapixels; JPEG, PNG, WebP, TIFF and others`;
    find("figures").replaceChildren(
      ...model.figures.map(({ label, value, remark }, number) => {
        const figure = make("div", number === 0 ? "figure figure-main" : "figure", make("dt", "", label));
        const text = make("dd", "", make("span", "figure-value", value));
        if (remark) text.append(make("span", "figure-remark", remark));
        figure.append(text);
        return figure;
      }),
    );
    find("notes").replaceChildren(...model.notes.map((note) => make("li", "", note)));
    const noun = model.is_multi_label ? "labels" : "classes";
    find("classes-summary").textContent = `All ${model.classes.length} ${noun}`;
    find("classes").replaceChildren(...model.classes.map((name) => make("li", "", name)));
    find("access").hidden = true;
    find("try").hidden = false;
    find("model").hidden = false;
  }

  async function showSamples() {
    const samples = await requestJson("samples");
    const entries = await Promise.all(
      samples.map(async ({ name, label }, number) => {
        const picture = document.createElement("img");
        // an address of its own, as an image cannot send the token
        picture.src = URL.createObjectURL(await (await request(`samples/${number}/thumbnail`)).blob());
        picture.alt = "";
        const button = makeButton("", () => {
          predictPhotos([{ name, label, source: picture.src, path: `samples/${number}` }]);
        }, "sample");
        button.append(picture, make("span", "", label));
        button.setAttribute("aria-label", `Predict sample ${number + 1}, labelled ${label}`);
        return make("li", "", button);
      }),
    );
    find("sample-list").replaceChildren(...entries);
    find("samples").hidden = entries.length === 0;
  }

  async function start() {
    if (document.body.dataset.needsToken !== undefined && token === null) {
      askToken("");
      return;
    }
    try {
      model = await requestJson("metadata");
    } catch (error) {
      if (error.status === 401) {
        askToken("This token is not accepted.");
        return;
      }
      find("try").hidden = false;
      say(error.message, true);
      return;
    }
    showModel();
    try {
      await showSamples();
    } catch (error) {
      showProblem(error, "Samples");
    }
  }

  const hasTouch = navigator.maxTouchPoints > 0 || matchMedia("(any-pointer: coarse)").matches;
  document.body.classList.toggle("has-touch", hasTouch);
  connectInputs();
  start();
})();
