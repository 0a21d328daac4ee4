// Keeps the changing part of the page as it is on the server: each event asks
// for it anew, at most once a second, though steps of the full method come more
// often; without events, every ten seconds.
const live = document.getElementById("live");
const link = document.getElementById("link");
let wanted = false;
let busy = false;

// A page that shows what once was must not look like news.
function connected(yes) {
  link.textContent = yes ? "Live." : "No connection to denoised; what is shown may be old.";
  document.title = yes ? "denoised" : "NO CONNECTION: denoised";
  live.classList.toggle("stale", !yes);
}

async function refresh() {
  wanted = true;
  if (busy) return;
  busy = true;
  try {
    while (wanted) {
      wanted = false;
      const answer = await fetch("/part/live", { signal: AbortSignal.timeout(8000) });
      if (!answer.ok) throw new Error(answer.statusText);
      // The part is made by the server's template, which escapes all text.
      live.innerHTML = await answer.text();
      connected(true);
      await new Promise((done) => setTimeout(done, 1000));
    }
  } catch {
    connected(false);
  } finally {
    busy = false;
  }
}

const events = new EventSource("/api/events");
for (const type of ["received", "slice", "high", "flag", "delivery", "series", "destination"]) {
  events.addEventListener(type, refresh);
}
// Whether there is a connection, the question tells: there may be one without events.
events.addEventListener("open", refresh);
events.addEventListener("error", refresh);
setInterval(refresh, 10000);

// A button of a row says in what quality its series is wanted.
const notice = document.getElementById("notice");

live.addEventListener("click", async (click) => {
  const button = click.target.closest("button[data-series]");
  if (!button) return;
  const { series, quality } = button.dataset;
  let why = "";
  if (quality === "high") {
    why = prompt("Full method for this series. Reason, if you like (no patient's name):", "");
    if (why === null) return;
  }
  button.disabled = true;
  try {
    const answer = await fetch(`/api/series/${encodeURIComponent(series)}/flag`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ quality, why, by: "status page" }),
      signal: AbortSignal.timeout(8000),
    });
    const said = await answer.json();
    notice.textContent = answer.ok ? "" : `Not done: ${said.error}`;
  } catch (trouble) {
    notice.textContent = `Not done: ${trouble.message}`;
  }
  refresh();
});
