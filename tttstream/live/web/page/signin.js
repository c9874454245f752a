// Shows the token to the server once; after that the browser's cookie does. The token leaves the address bar at once.

const form = document.getElementById("form");
const field = document.getElementById("token");
const message = document.getElementById("message");

async function signIn(token) {
  const answer = await fetch("/api/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  });
  if (answer.ok) {
    location.replace("/");
    return;
  }
  message.textContent = (await answer.json()).error;
  message.classList.add("alert");
  field.value = "";
  field.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(field.value);
});

const given = new URLSearchParams(location.hash.slice(1)).get("token");
history.replaceState(null, "", "/");
if (given) {
  signIn(given);
} else {
  // Whoever comes from a link on another site has the cookie, but the browser did not send it with that visit.
  fetch("/api/status").then((answer) => answer.ok && location.replace("/"));
}
