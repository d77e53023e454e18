// Starts the page: asks for a token if the server needs one, then shows the model and its inputs.
import { find, say } from "./elements.js";
import { showModel, showSamples } from "./model_section.js";
import { connectInputs } from "./photo_inputs.js";
import { showProblem } from "./predictions.js";
import { hasToken } from "./requests.js";
import { loadModel } from "./served_model.js";
import { askToken, connectTokenForm } from "./token_form.js";

async function start() {
  if (document.body.dataset.needsToken !== undefined && !hasToken()) {
    askToken("");
    return;
  }
  try {
    await loadModel();
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
connectTokenForm(start);
start();
