"use strict";
for (const box of document.querySelectorAll(".stages")) {
  box.querySelector("input")?.addEventListener("input", event => {
    const name = box.querySelector(`[data-for="${event.target.value}"]`).dataset.name;
    box.dataset.stage = event.target.value;
    box.querySelector("output").textContent = name;
    event.target.setAttribute("aria-valuetext", name);
  });
}
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
const openLinked = () => {
  const part = document.getElementById(location.hash.slice(1));
  if (part?.localName === "details") part.open = true;
};
addEventListener("hashchange", openLinked);
openLinked();
// Paper has no clicks: print with everything open that a reader would open, then close it again.
const opened = [];
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open], .values)")) {
    part.open = true;
    opened.push(part);
  }
});
addEventListener("afterprint", () => {
  for (const part of opened.splice(0)) part.open = false;
});
