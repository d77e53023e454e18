// Switches between the light and the dark theme; without a choice, the page follows the system.
(() => {
  "use strict";
  const KEY = "finetune-theme";
  const THEMES = ["light", "dark"];
  const root = document.documentElement;
  const toggle = document.getElementById("theme-toggle");
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);

  // a browser may refuse to keep anything for a page; the choice then ends with the page
  function readChoice() {
    try {
      return window.localStorage.getItem(KEY);
    } catch {
      return null;
    }
  }

  function keepChoice(theme) {
    try {
      window.localStorage.setItem(KEY, theme);
    } catch {
      // see above
    }
  }

  /** Name the button for what it does. */
  function nameToggle() {
    const name = isDark() ? "Light theme" : "Dark theme";
    toggle.querySelector("span").textContent = name;
    toggle.title = name;
  }

  function applyChoice() {
    const choice = readChoice();
    if (THEMES.includes(choice) && choice !== root.dataset.theme) root.dataset.theme = choice;
    nameToggle();
  }

  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    keepChoice(root.dataset.theme);
    nameToggle();
  });
  prefersDark.addEventListener("change", nameToggle);
  // a page that the browser has kept for the way back may be older than the choice
  window.addEventListener("pageshow", applyChoice);

  applyChoice();
  toggle.hidden = false;
})();
