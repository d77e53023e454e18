// What the page shows of the model: its figures, notes and classes, and sample photos.
import { find, make, makeButton } from "./elements.js";
import { predictPhotos } from "./predictions.js";
import { request, requestJson } from "./requests.js";
import { model } from "./served_model.js";

export function showModel() {
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

export async function showSamples() {
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
