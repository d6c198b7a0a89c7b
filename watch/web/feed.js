// A worker that all pages of a browser share, so that they need one stream: a browser opens few connections to a server.
"use strict";

const AGAIN_MS = 5000;
const ports = new Set();
let source = null;
let hello = "";

function tell(kind, text) {
  for (const port of ports) port.postMessage({ kind, text });
}

function open() {
  source = new EventSource("/events");
  source.addEventListener("hello", (event) => { hello = event.data; tell("hello", event.data); });
  source.addEventListener("update", (event) => tell("update", event.data));
  source.addEventListener("beat", (event) => tell("beat", event.data));
  source.onerror = () => {
    tell("lost", "");
    hello = "";
    if (source.readyState === EventSource.CLOSED) setTimeout(open, AGAIN_MS); // refused: it does not try by itself
  };
}

self.onconnect = (event) => {
  const port = event.ports[0];
  ports.add(port);
  port.onmessage = () => ports.delete(port); // the page is left
  if (!source) open();
  else if (hello) port.postMessage({ kind: "hello", text: hello });
};
