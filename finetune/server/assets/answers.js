// Answers for photos: classes with bars, the photo, and what the answer depends on.
import { formatPercent, make, makeButton } from "./elements.js";
import { requestJson } from "./requests.js";
import { model } from "./served_model.js";

const TOP = 5;

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

export function describe(prediction) {
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

export function makeAnswer(prediction, blob, { name, label, source }) {
  const box = make("div", "answer-text", make("h3", "", getHeading(prediction)));
  if (label) box.append(make("p", "answer-remark", `Labelled ${label}`));
  box.append(...makeBars(prediction));
  if (model.has_saliency) box.append(makeSaliency(blob, box));
  const answer = make("article", "answer", makePhoto(blob, name, source), box);
  answer.setAttribute("aria-label", `Answer for ${name}`);
  return answer;
}

/** Return the entry of a photo that has no answer, with the reason. */
export function makeFailure(name, reason) {
  const box = make("div", "answer-text", make("h3", "", "No answer"), make("p", "message-problem", reason));
  const answer = make("article", "answer answer-failed", make("p", "answer-name", name), box);
  answer.setAttribute("aria-label", `No answer for ${name}`);
  return answer;
}
