"use strict";
for (const box of document.querySelectorAll(".stages")) {
  box.addEventListener("change", event => { box.dataset.stage = event.target.value; });
}
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
