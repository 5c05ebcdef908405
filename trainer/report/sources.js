// A sentence of a summary shows its sources while the pointer is on it, and for as long as it is chosen.
const chosen = new WeakMap();
const sentenceOf = event => event.target.closest?.("[data-sources]");
const boxOf = part => part.closest(".grounded");
const read = sentence => sentence.dataset.sources.split(" ").filter(Boolean).map(each => each.split(":").map(Number));
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const scrollTo = passage => {
  const pane = passage.closest("pre");
  const top = passage.offsetTop - Math.max(0, (pane.clientHeight - passage.offsetHeight) / 2);
  pane.scrollTo({top, behavior: calm.matches ? "instant" : "smooth"});
};
const light = (box, sentence) => {
  for (const passage of box.querySelectorAll(".passage.lit")) passage.classList.remove("lit", "strongest");
  box.classList.toggle("asking", Boolean(sentence));
  const sources = sentence ? read(sentence) : [];
  const lit = sources.map(([number, weight], rank) => {
    const passage = box.querySelector(`[data-passage="${number}"]`);
    passage.classList.add("lit");
    passage.classList.toggle("strongest", rank === 0);
    passage.dataset.rank = rank + 1;
    passage.style.setProperty("--share", weight / sources[0][1]);
    return passage;
  });
  if (lit.length) scrollTo(lit[0]);
  return lit;
};
const list = (box, sentence, lit) => {
  const found = box.querySelector(".found"), sources = sentence ? read(sentence) : [];
  const percents = sources.map(([, weight]) => (100 * weight).toFixed(weight < 0.1 ? 1 : 0));
  found.hidden = !sentence;
  found.querySelector("p").textContent = sources.length
    ? "Its main sources, with their shares of what the decoder read for this sentence in particular"
    : "No passage was read for this sentence in particular";
  found.querySelector("ol").replaceChildren(...lit.map((passage, rank) => {
    const entry = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    for (const [name, text] of [["b", rank + 1], ["span", `${percents[rank]} %`], ["span", passage.textContent.trim()]]) {
      button.append(Object.assign(document.createElement(name), {textContent: text}));
    }
    button.children[1].className = "share";
    button.children[2].className = "quote";
    button.title = button.children[2].textContent;
    button.addEventListener("click", () => {
      scrollTo(passage);
      passage.closest("pre").scrollIntoView({block: "nearest"});
    });
    entry.append(button);
    return entry;
  }));
};
const choose = (box, sentence) => {
  for (const other of box.querySelectorAll("[data-sources]")) {
    other.setAttribute("aria-pressed", other === sentence);
    if (sentence) other.tabIndex = other === sentence ? 0 : -1;
  }
  chosen.set(box, sentence);
  const lit = light(box, sentence);
  list(box, sentence, lit);
  lit[0]?.closest("pre").scrollIntoView({block: "nearest"});
};
const STEPS = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity};
addEventListener("mouseover", event => {
  const sentence = sentenceOf(event);
  if (sentence) light(boxOf(sentence), sentence);
});
addEventListener("mouseout", event => {
  const sentence = sentenceOf(event);
  if (sentence) light(boxOf(sentence), chosen.get(boxOf(sentence)));
});
addEventListener("focusin", event => {
  const sentence = sentenceOf(event);
  if (sentence) choose(boxOf(sentence), sentence);
});
addEventListener("click", event => {
  const sentence = sentenceOf(event);
  if (sentence) choose(boxOf(sentence), sentence);
  else if (event.target.closest?.(".clear")) choose(boxOf(event.target), null);
});
addEventListener("keydown", event => {
  const box = event.target.closest?.(".grounded"), sentence = sentenceOf(event);
  if (box && event.key === "Escape") choose(box, null);
  if (!sentence) return;
  const all = [...box.querySelectorAll("[data-sources]")];
  if (event.key in STEPS) {
    all[Math.min(all.length - 1, Math.max(0, all.indexOf(sentence) + STEPS[event.key]))].focus();
  } else if (event.key === "Enter" || event.key === " ") {
    choose(box, sentence);
    box.querySelector(".found button")?.focus();
  } else return;
  event.preventDefault();
});
