// Elements of the page, its status line, and percentages.
export const find = (id) => document.getElementById(id);

export function make(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
}

export function makeButton(text, onClick, className = "button button-small") {
  const button = make("button", className, text);
  button.type = "button";
  button.addEventListener("click", onClick);
  return button;
}

export function say(text, isProblem = false) {
  find("status").textContent = text;
  find("status").classList.toggle("message-problem", isProblem);
}

export function formatPercent(value) {
  const percent = value * 100;
  if (percent > 99.9 && percent < 100) return ">99.9%";
  if (percent > 0 && percent < 0.1) return "<0.1%";
  return `${percent.toFixed(1)}%`;
}
