// Sends photos to the server one after another, and shows an answer for each.
import { describe, makeAnswer, makeFailure } from "./answers.js";
import { find, say } from "./elements.js";
import { AnswerError, request, requestJson } from "./requests.js";
import { model } from "./served_model.js";
import { askToken } from "./token_form.js";

const MAX_EARLIER = 20;

/** Move the answers to the photos of before below those to come, under a heading of their own. */
function setAside() {
  const earlier = find("earlier-list");
  earlier.prepend(...find("results").children);
  while (earlier.children.length > MAX_EARLIER) earlier.lastElementChild.remove();
  find("earlier").hidden = earlier.children.length === 0;
}

export function showProblem(error, name) {
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
export function predictPhotos(photos) {
  if (photos.length) queue = queue.then(() => predictAll(photos));
}

export const predictFiles = (files) =>
  predictPhotos(files.map((file) => ({ name: file.name || "Photo", blob: file })));
