// Keeps the changing part of the page as it is on the server: each event asks
// for it anew, at most twice a second; without events, every ten seconds.
const live = document.getElementById("live");
const link = document.getElementById("link");
let wanted = false;
let busy = false;

async function refresh() {
  wanted = true;
  if (busy) return;
  busy = true;
  try {
    while (wanted) {
      wanted = false;
      const answer = await fetch("/part/live");
      if (!answer.ok) throw new Error(answer.statusText);
      // The part is made by the server's template, which escapes all text.
      live.innerHTML = await answer.text();
      await new Promise((done) => setTimeout(done, 500));
    }
  } catch {
    link.textContent = "No connection to denoised; what is shown may be old.";
  } finally {
    busy = false;
  }
}

const events = new EventSource("/api/events");
for (const type of ["received", "slice", "delivery", "series", "destination"]) {
  events.addEventListener(type, refresh);
}
events.addEventListener("open", () => {
  link.textContent = "Live.";
  refresh();
});
events.addEventListener("error", () => {
  link.textContent = "No connection to denoised; what is shown may be old.";
});
setInterval(refresh, 10000);
