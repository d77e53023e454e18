// Photos from a file, the camera, a drop or the clipboard.
import { find, say } from "./elements.js";
import { predictFiles } from "./predictions.js";

function connectInput(button, input) {
  find(button).addEventListener("click", () => find(input).click());
  find(input).addEventListener("change", () => {
    predictFiles([...find(input).files]);
    find(input).value = "";
  });
}

export function connectInputs() {
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
}
