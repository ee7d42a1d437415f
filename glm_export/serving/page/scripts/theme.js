// Before anything is painted: a theme that was chosen, else the system's.
(() => {
  const chosen = localStorage.getItem("glm-export.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
