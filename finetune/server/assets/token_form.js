// Form that asks for the token of the server.
import { find } from "./elements.js";
import { keepToken } from "./requests.js";

export function askToken(problem) {
  find("try").hidden = true;
  find("model").hidden = true;
  find("access").hidden = false;
  find("token-message").textContent = problem;
  find("token-message").hidden = problem === "";
  find("token").focus();
}

export function connectTokenForm(onToken) {
  find("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepToken(find("token").value.trim());
    onToken();
  });
}
