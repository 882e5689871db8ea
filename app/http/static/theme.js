/**
 * The light or dark theme, and the button that changes it.
 *
 * A classic script in the head: the page must have its theme before anything is painted, and
 * modules run later. Without a choice the theme is that of the system. Each change dispatches
 * "themechange" on the document, for what is painted on a canvas.
 */

"use strict";

{
  const KEY = "seg-loss-theme";
  const systemIsDark = window.matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;

  // Access to the storage throws where the browser blocks it.
  const saved = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  };

  const save = (theme) => {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // The theme lasts until the page is closed.
    }
  };

  const apply = (theme) => {
    root.dataset.theme = theme;
    document.dispatchEvent(new Event("themechange"));
  };

  const chosen = saved();
  const isChosen = chosen === "light" || chosen === "dark";
  apply(isChosen ? chosen : systemIsDark.matches ? "dark" : "light");

  systemIsDark.addEventListener("change", () => {
    if (saved() === null) apply(systemIsDark.matches ? "dark" : "light");
  });

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme-button");
    const name = () => {
      const other = root.dataset.theme === "dark" ? "light" : "dark";
      button.textContent = other === "dark" ? "Dark" : "Light";
      button.title = `Change to the ${other} theme`;
    };
    button.addEventListener("click", () => {
      const theme = root.dataset.theme === "dark" ? "light" : "dark";
      save(theme);
      apply(theme);
    });
    document.addEventListener("themechange", name);
    name();
  });
}
