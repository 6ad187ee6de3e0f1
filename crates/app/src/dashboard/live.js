// Keeps an open page true: asks for it again when something happened, and puts the new <main> in its place.
"use strict";
(() => {
  const mode = document.body.dataset.live;
  let asking = false, again = false;
  const refresh = async () => {
    if (asking) { again = true; return; }
    asking = true;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, cache: "no-store" });
      if (answer.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const fresh = page.querySelector("main");
        if (fresh) document.querySelector("main").replaceWith(document.adoptNode(fresh));
        document.body.dataset.live = page.body.dataset.live;
      }
    } catch (_) { /* the next event or tick asks again */ }
    asking = false;
    if (again) { again = false; setTimeout(refresh, 250); }
  };
  if (mode === "poll") {
    const timer = setInterval(() => {
      if (document.body.dataset.live !== "poll") clearInterval(timer);
      else if (!document.hidden) refresh();
    }, 3000);
  }
  if (mode === "events") {
    let soon = null;
    const later = () => { if (!soon) soon = setTimeout(() => { soon = null; refresh(); }, 1000); };
    const source = new EventSource("/live");
    // Event types are many and may grow; every one of them only means: look again.
    source.onmessage = later;
    for (const kind of ["invoice.detected", "invoice.confirmed", "invoice.settled", "invoice.underpaid", "invoice.overpaid",
      "invoice.expired", "invoice.canceled", "invoice.late_payment", "invoice.reverted", "payment.ambiguous",
      "delivery.dead_lettered", "settlement.frozen", "settlement.thawed", "provider.faulty", "quorum.lost",
      "quorum.restored", "endpoint.disabled"]) source.addEventListener(kind, later);
    setInterval(() => { if (!document.hidden) refresh(); }, 10000);
  }
})();
