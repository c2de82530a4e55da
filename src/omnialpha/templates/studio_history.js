element.addEventListener("click", event => {
  const card = event.target.closest("[data-run]");
  if (card) trigger("pick", {run: card.dataset.run});
});
