// Keys press the buttons, a new item begins at its top, the rater's name is kept for the next visit.
addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target.matches("textarea, input[type=text]")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  // With an input method switched on, `key` is "Process" and only `code` tells which key it was.
  const key = /^[a-z0-9]$/i.test(event.key) ? event.key.toLowerCase() : event.code.slice(-1).toLowerCase();
  if (key === "t") {
    const thoughts = [...document.querySelectorAll("details.thought")];
    const open = thoughts.some((thought) => !thought.open);
    thoughts.forEach((thought) => (thought.open = open));
    return;
  }
  const button = document.getElementById("key-" + key);
  if (button) {
    event.preventDefault();
    button.click();
  }
});

let before = null; // the item that is on, as an element

addEventListener("click", (event) => {
  const button = event.target.closest("#votes button, #other button");
  if (!button) return;
  button.blur(); // or the space bar would press it again, on an item that nobody has read
  if (button.id === "leave") document.cookie = "rater=; Path=/; Max-Age=0; SameSite=Lax";
  const item = before;
  setTimeout(() => item === before && fetch("/theme.css").then((reply) => warn(!reply.ok), () => warn(true)), 3000);
});

// Gradio says nothing when its server is gone.
function warn(gone) {
  document.getElementById("gone")?.remove();
  if (!gone) return;
  const text =
    "服务器没有回应，没有存上。请用终端里的新链接重新打开。\n" +
    "The server does not answer; nothing was saved. Open the new link that the terminal shows.";
  document.body.append(Object.assign(document.createElement("div"), { id: "gone", role: "alert", innerText: text }));
}

new MutationObserver(() => {
  const card = document.querySelector("#card .prompt");
  const head = document.querySelector(".head");
  if (!card || !head || card === before) return;
  before = card;
  scrollTo(0, 0);
  warn(false);
  const name = encodeURIComponent(head.dataset.rater);
  document.cookie = `rater=${name}; Path=/; Max-Age=31536000; SameSite=Lax`;
}).observe(document.documentElement, { childList: true, subtree: true });
