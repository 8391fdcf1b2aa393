/* The page /inbox: shows the mailbox that the URL's fragment names, which no server sees: #token=… or #recipient=… */
"use strict";
(() => {
  const inbox = document.createElement("message-inbox");

  function show() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const name of ["token", "recipient"]) {
      if (given.has(name)) inbox.setAttribute(name, given.get(name));
      else inbox.removeAttribute(name);
    }
    const isNamed = inbox.hasAttribute("token") || inbox.hasAttribute("recipient");
    document.getElementById("unnamed").hidden = isNamed;
    if (isNamed) document.querySelector("main").append(inbox);
    else inbox.remove();
    showUnread();
  }

  function showUnread() {
    document.title = inbox.isConnected && inbox.unread ? `(${inbox.unread}) Inbox` : "Inbox";
  }

  inbox.setAttribute("src", location.href.replace(/\/inbox\/?([?#].*)?$/, ""));
  inbox.setAttribute("live", document.body.dataset.live);
  inbox.addEventListener("message-inbox-unread", showUnread);
  addEventListener("hashchange", show);
  show();
})();
