// Switches between the light and the dark theme; without it, the page follows the system.
(() => {
  "use strict";
  const root = document.documentElement;
  const toggle = document.getElementById("theme-toggle");
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const show = () => {
    const other = isDark() ? "Light" : "Dark";
    toggle.querySelector("span").textContent = other;
    toggle.title = `Switch to the ${other.toLowerCase()} theme`;
    toggle.setAttribute("aria-label", `${other}: switch to the ${other.toLowerCase()} theme`);
  };
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  prefersDark.addEventListener("change", show);
  toggle.hidden = false;
  show();
})();
