"use strict";
const events = new EventSource("/.well-known/edge-proxy/waiting");
const state = document.getElementById("state");
const over = () => {
  events.close();
  state.textContent = "It did not wake up yet. Reload to try again.";
};
events.addEventListener("ready", () => {
  events.close();
  location.reload();
});
events.addEventListener("over", over);
events.onerror = () => { if (events.readyState === EventSource.CLOSED) over(); };
