/* <message-inbox>: one mailbox on a page. To embed it in any page:
 *
 *   <script src="https://messages.example.com/static/messaging/inbox.js" defer></script>
 *   <message-inbox src="https://messages.example.com" token="eyJ…"></message-inbox>
 *
 * src        where the service is; the page's own origin if left out
 * token      an end-user token with the scopes read and manage. Set it again before it expires: the event
 *            `message-inbox-unauthorized` says that it no longer works
 * recipient  whose mailbox, where the token does not say so (open access)
 * live       where the live process is, if not at src
 *
 * The service must allow the page's origin (MESSAGES_CORS_ORIGINS). The element has its own styles; its height, font and
 * the custom properties --accent, --line and --muted are the page's to set. The event `message-inbox-unread` carries the
 * number of unread messages in `detail`.
 *
 * How it works: a page of messages first, then GET /changes after each new version of the mailbox. Versions are heard of by
 * server-sent events, by long polls where events do not get through, and by conditional requests where there is no live process.
 */
(() => {
  const PAGE = 50;
  const UNDO_MS = 6_000;
  const FIRST_EVENT_MS = 6_000; // a proxy that buffers would hold it back for ever
  const WAIT_MS = 30_000; // and a browser a request, while streams of other tabs have all its connections
  const POLL_MS = 5_000;
  const SLOW_POLL_MS = 60_000; // in a hidden tab; and beside a stream, which may have broken without a word
  const MAX_PAUSE_MS = 30_000;
  const READ_ONLY = "This token may only read.";

  class Refusal extends Error {}

  /** The calls of the API that an inbox makes. */
  class Api {
    constructor(src, live, token, recipient) {
      Object.assign(this, { src, live, token, whose: recipient ? { recipient } : {} });
      this.mailbox = JSON.stringify([src, recipient || (subjectOf(token) ?? token)]); // two of one mailbox are equal
    }

    async call(method, path, { query = {}, body, headers = {}, base = this.src, signal } = {}) {
      const search = query instanceof URLSearchParams ? query : new URLSearchParams({ ...this.whose, ...query });
      const response = await fetch(`${base}${path}?${search}`, {
        method, signal, cache: "no-store", credentials: "omit", body: body && JSON.stringify(body),
        keepalive: Boolean(body), // what a person did is sent though the page is closed
        headers: {
          ...(this.token && { Authorization: `Bearer ${this.token}` }),
          ...(body && { "Content-Type": "application/json" }),
          ...headers,
        },
      });
      if (response.status === 304 || response.status === 204) return { etag: headers["If-None-Match"] };
      const json = await response.json().catch(() => ({}));
      if (!response.ok) {
        const retryMs = 1000 * Number(response.headers.get("Retry-After"));
        throw Object.assign(new Refusal(json.detail ?? `HTTP ${response.status}`), { status: response.status, retryMs });
      }
      return { json, etag: response.headers.get("ETag") };
    }
  }

  /** A copy of the newest part of a mailbox. Call its methods one after another. */
  class Copy {
    constructor(api) {
      this.api = api;
      this.messages = new Map();
      this.version = -1; // up to which the copy is whole
      this.mailbox = { version: -1, unread: 0, total: 0 }; // the newest that was seen
      this.older = null; // the query of the next page; null at the end
      this.oldest = 0; // the seq from which on all messages have been read
    }

    see(mailbox) { if (mailbox.version >= this.mailbox.version) this.mailbox = mailbox; }

    take({ results, next }) {
      for (const message of results) this.messages.set(message.id, message);
      this.older = queryOf(next);
      this.oldest = next ? results.at(-1).seq : 0;
    }

    async begin() {
      const { json } = await this.api.call("GET", "/messages/", { query: { limit: PAGE } });
      this.messages.clear();
      this.take(json);
      this.mailbox = json.mailbox;
      this.version = json.mailbox.version;
    }

    async more() {
      if (!this.older) return;
      const { json } = await this.api.call("GET", "/messages/", { query: this.older });
      this.take(json);
    }

    /** Catch up. Returns how many messages are new. */
    async sync() {
      if (this.version < 0) return void (await this.begin());
      const before = this.version;
      let arrived = 0;
      let query = new URLSearchParams({ ...this.api.whose, since: this.version });
      try {
        while (query) {
          // A replica of the database may not have yet what an event has told.
          const headers = { "Messages-Min-Version": this.mailbox.version };
          const { json } = await this.api.call("GET", "/changes", { query, headers });
          for (const message of json.messages) {
            // What is older than the pages read so far will come with its page.
            if (message.seq < this.oldest) continue;
            arrived += !this.messages.has(message.id) && message.seq > before && !message.is_read;
            this.messages.set(message.id, message);
          }
          for (const id of json.deleted) this.messages.delete(id);
          this.see(json.mailbox);
          query = queryOf(json.next);
          if (!query) this.version = json.until; // whole again
        }
      } catch (error) {
        if (error.status !== 410) throw error;
        await this.begin(); // changes that far back are no longer kept
      }
      return arrived;
    }
  }

  /** Whom an end-user token (a JWT) is for; undefined for another one. */
  function subjectOf(token) {
    try {
      return JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"))).sub;
    } catch {
      return undefined;
    }
  }

  const queryOf = (url) => (url ? new URL(url).searchParams : null);

  class MessageInbox extends HTMLElement {
    static observedAttributes = ["src", "token", "recipient", "live"];

    #run = null; // the AbortController of the run that shows the present attributes
    #copy = null;
    #items = new Map(); // id → <li>
    #toRead = new Set(); // outbox: ids to be marked, and to be deleted
    #toDelete = new Set();
    #undoable = new Map(); // id → timer
    #turn = Promise.resolve(); // calls that change the copy run one after another
    #wake = () => {};
    #isNearEnd = false; // of the list
    #isFilling = false;

    connectedCallback() {
      if (!this.shadowRoot) this.#build();
      this.#start();
    }

    disconnectedCallback() { this.#run?.abort(); }
    attributeChangedCallback() { if (this.isConnected && this.#run) this.#start(); }

    // --- the conversation with the service

    async #start() {
      this.#run?.abort();
      const run = (this.#run = new AbortController());
      await null; // several attributes may be set one after another
      if (run.signal.aborted) return;
      const src = (this.getAttribute("src") || location.origin).replace(/\/$/, "");
      const live = (this.getAttribute("live") || src).replace(/\/$/, "");
      const api = new Api(src, live, this.getAttribute("token"), this.getAttribute("recipient"));
      const known = this.#copy;
      this.#copy = new Copy(api);
      if (known?.api.mailbox === api.mailbox) Object.assign(this.#copy, known, { api }); // with a new token
      else if (known) this.#forget();
      const [wake, signal] = [() => this.#wake(), run.signal];
      for (const name of ["online", "offline"]) addEventListener(name, wake, { signal });
      document.addEventListener("visibilitychange", wake, { signal });
      addEventListener("pagehide", () => this.#settle([...this.#undoable.keys()]), { signal });
      signal.addEventListener("abort", wake);
      this.#follow(this.#copy, signal);
    }

    /** Another mailbox is to be shown: nothing of the last one may be seen or sent. */
    #forget() {
      this.#undoable.forEach((timer) => clearTimeout(timer));
      for (const each of [this.#undoable, this.#toRead, this.#toDelete]) each.clear();
      this.#draw();
    }

    /** For ever: catch up, then listen for a new version by the best way that works. */
    async #follow(copy, signal) {
      const ways = [this.#byEvents, this.#byWaiting, this.#byPolling];
      let [way, failures] = [0, 0];
      while (!signal.aborted) {
        try {
          await this.#sync(copy, signal);
          failures = 0;
        } catch (error) {
          if (signal.aborted) return;
          if (error.status === 401) {
            this.#say("This link has expired. Ask for a new one.");
            return this.#tell("message-inbox-unauthorized");
          }
          this.#say(error instanceof Refusal ? error.message : "Offline. Trying again …");
          way = 0;
          const pause = error.retryMs || Math.min(MAX_PAUSE_MS, 1000 * 2 ** failures++);
          await this.#pause(pause * (0.5 + Math.random()));
          continue;
        }
        this.#say(["Live", "Live", "Up to date"][way]);
        try {
          await ways[way].call(this, copy, signal);
          if (ways[way] === this.#byPolling) way = 0; // perhaps there is a live process by now
        } catch {
          way = Math.min(way + 1, ways.length - 1);
        }
      }
    }

    /** Returns when the stream ends; throws if it never began. */
    async #byEvents(copy, signal) {
      const { json } = await copy.api.call("POST", "/mailbox/ticket", { signal });
      const query = new URLSearchParams({ ...copy.api.whose, ticket: json.ticket });
      const source = new EventSource(`${copy.api.live}/mailbox/events?${query}`);
      let works = false;
      const check = setInterval(async () => {
        const { json } = await copy.api.call("GET", "/mailbox").catch(() => ({}));
        if (json && json.version > copy.version) source.dispatchEvent(new Event("error"));
      }, SLOW_POLL_MS);
      try {
        await new Promise((resolve) => {
          setTimeout(() => works || resolve(), FIRST_EVENT_MS);
          source.addEventListener("mailbox", (event) => {
            works = true;
            this.#hear(copy, JSON.parse(event.data), signal).catch(resolve);
          });
          source.addEventListener("error", resolve);
          this.#wake = () => (navigator.onLine && !signal.aborted) || resolve();
        });
      } finally {
        clearInterval(check);
        source.close();
      }
      if (!works) throw new Error("no events");
      // As others do whose stream has ended at the same moment, but not all at once.
      await this.#pause(500 + 2500 * Math.random());
    }

    async #byWaiting(copy, signal) {
      const query = { version: copy.version, seconds: 25 };
      const options = { query, base: copy.api.live, signal: AbortSignal.any([signal, AbortSignal.timeout(WAIT_MS)]) };
      const { json } = await copy.api.call("GET", "/mailbox/wait", options);
      await this.#hear(copy, json, signal);
    }

    /** Returns when the mailbox has a new version, or after a while, so that the better ways are tried again. */
    async #byPolling(copy, signal) {
      let known;
      for (let polls = 0; polls < 12 && !signal.aborted; polls++) {
        const headers = known ? { "If-None-Match": known } : {};
        const { json, etag } = await copy.api.call("GET", "/mailbox", { headers, signal });
        if (json && json.version !== copy.version) await this.#hear(copy, json, signal);
        known = etag;
        await this.#pause(document.hidden ? SLOW_POLL_MS : POLL_MS);
      }
    }

    async #hear(copy, mailbox, signal) {
      copy.see(mailbox);
      if (mailbox.version !== copy.version) await this.#sync(copy, signal);
    }

    /** Send what is in the outbox, then catch up. */
    #sync(copy, signal) {
      return this.#inTurn(async () => {
        if (signal.aborted) return;
        await this.#flush(copy);
        const arrived = await copy.sync();
        if (arrived) this.#announce(arrived === 1 ? "1 new message" : `${arrived} new messages`);
        this.#draw();
      });
    }

    #inTurn(work) {
      const result = this.#turn.then(work);
      this.#turn = result.catch(() => {});
      return result;
    }

    async #flush(copy) {
      for (const [ids, path] of [[this.#toRead, "/messages/mark-read"], [this.#toDelete, "/messages/bulk-delete"]]) {
        while (ids.size) {
          const some = [...ids].slice(0, 100);
          try {
            const { json } = await copy.api.call("POST", path, { query: new URLSearchParams(), body: { ids: some } });
            json.mailboxes.forEach((mailbox) => copy.see(mailbox));
            if (ids === this.#toDelete) some.forEach((id) => copy.messages.delete(id));
          } catch (error) {
            if (error.status !== 403) throw error;
            this.#say(READ_ONLY);
            for (const message of copy.messages.values()) message.is_read = message.read_at !== null;
          }
          some.forEach((id) => ids.delete(id));
        }
      }
    }

    /** Send the outbox now; what fails stays in it until the next connection. */
    #send() {
      this.#draw();
      const copy = this.#copy;
      this.#inTurn(() => this.#flush(copy)).then(() => this.#draw(), () => {});
    }

    /** Until then, or until the network, the tab or the attributes change. */
    #pause(milliseconds) {
      return new Promise((resolve) => {
        setTimeout(resolve, milliseconds);
        this.#wake = resolve;
      });
    }

    // --- what a person does

    #open(id, button) {
      const isOpen = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!isOpen));
      button.nextElementSibling.hidden = isOpen;
      const message = this.#copy.messages.get(id);
      if (isOpen || message.is_read) return;
      message.is_read = true;
      this.#toRead.add(id);
      this.#send();
    }

    /** Mark everything up to the newest message that is shown; what arrives meanwhile stays unread. */
    #readAll() {
      const copy = this.#copy;
      return this.#inTurn(async () => {
        const shown = this.#shown();
        await copy.sync(); // some of them may just have been deleted elsewhere
        const newest = shown.find(({ id }) => copy.messages.has(id));
        const body = newest && { ...copy.api.whose, up_to: newest.id };
        for (let complete = !newest; !complete; ) {
          const { json } = await copy.api.call("PATCH", "/messages/mark-read", { query: new URLSearchParams(), body });
          complete = json.complete;
        }
        await copy.sync();
        this.#draw();
      }).catch((error) => {
        const why = error instanceof Refusal ? error.message : "Offline: nothing was marked.";
        this.#say(error.status === 403 ? READ_ONLY : why);
      });
    }

    async #more() {
      await this.#inTurn(() => this.#copy.more()).catch(() => this.#say("Older messages cannot be loaded now."));
      this.#draw();
    }

    /** Load older messages while the end of the list is near, one page at a time. */
    async #fill() {
      if (this.#isFilling) return;
      this.#isFilling = true;
      while (this.#isNearEnd && this.#copy?.older && this.isConnected) {
        const before = this.#copy.older;
        await this.#more();
        // The observer tells of a change after the next frame.
        if (this.#copy.older !== before) for (const _ of "12") await new Promise(requestAnimationFrame);
        else await new Promise((resolve) => setTimeout(resolve, POLL_MS)); // it failed
      }
      this.#isFilling = false;
    }

    #delete(id) {
      const heads = this.#heads();
      const at = heads.indexOf(this.#items.get(id).querySelector(".head"));
      this.#undoable.set(id, setTimeout(() => this.#settle([id]), UNDO_MS));
      this.#draw();
      (heads[at + 1] ?? heads[at - 1] ?? this.#part("title")).focus();
      this.#announce("Message deleted. Control Z undoes it for a few seconds.");
    }

    /** These deletions can no longer be undone. */
    #settle(ids) {
      for (const id of ids) {
        clearTimeout(this.#undoable.get(id));
        this.#undoable.delete(id);
        this.#toDelete.add(id);
      }
      this.#send();
    }

    #undo() {
      const [first] = this.#undoable.keys();
      this.#undoable.forEach((timer) => clearTimeout(timer));
      this.#undoable.clear();
      this.#draw();
      this.#items.get(first)?.querySelector(".head").focus();
      this.#announce("Deletion undone.");
    }

    #key(event) {
      if ((event.ctrlKey || event.metaKey) && event.key === "z" && this.#undoable.size) {
        event.preventDefault();
        this.#undo();
        return;
      }
      const head = event.target.closest(".head");
      if (!head || event.altKey || event.ctrlKey || event.metaKey) return;
      const heads = this.#heads();
      const at = heads.indexOf(head);
      const to = { ArrowDown: heads[at + 1], ArrowUp: heads[at - 1], Home: heads[0], End: heads.at(-1) }[event.key];
      if (to) to.focus();
      else if (event.key === "Delete") this.#delete(head.closest("li").dataset.id);
      else return;
      event.preventDefault();
    }

    // --- what is shown

    #part = (name) => this.shadowRoot.getElementById(name);
    #heads = () => [...this.#part("list").querySelectorAll(".head")];
    #say = (text) => (this.#part("status").textContent = text);
    #announce = (text) => (this.#part("news").textContent = text);
    #tell = (name, detail) => this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));

    #shown() {
      return [...this.#copy.messages.values()]
        .filter(({ id }) => !this.#undoable.has(id) && !this.#toDelete.has(id))
        .sort((a, b) => b.seq - a.seq);
    }

    #draw() {
      const shown = this.#shown();
      const list = this.#part("list");
      const ids = new Set(shown.map((message) => message.id));
      for (const [id, item] of this.#items) if (!ids.has(id)) (item.remove(), this.#items.delete(id));
      let place = list.firstElementChild;
      for (const message of shown) {
        const item = this.#items.get(message.id) ?? this.#item(message);
        const isRead = message.is_read || this.#toRead.has(message.id);
        item.classList.toggle("unread", !isRead);
        item.querySelector(".state").textContent = isRead ? "" : "Unread. ";
        if (item === place) place = place.nextElementSibling;
        else list.insertBefore(item, place);
      }
      const unsent = [...this.#toRead, ...this.#undoable.keys(), ...this.#toDelete];
      const pending = unsent.filter((id) => this.#copy.messages.get(id)?.read_at === null).length;
      const unread = Math.max(0, this.#copy.mailbox.unread - pending);
      this.#part("badge").textContent = unread || "";
      this.#part("count").textContent = `${unread} unread of ${this.#copy.mailbox.total} messages`;
      this.#part("all").disabled = !unread;
      this.#part("older").hidden = !this.#copy.older;
      this.#part("empty").hidden = shown.length > 0 || this.#copy.older || this.#copy.version < 0;
      this.#part("undo").hidden = !this.#undoable.size;
      this.#part("undone").textContent = `Deleted: ${this.#undoable.size}.`;
      if (unread !== this.unread) {
        this.unread = unread;
        this.#tell("message-inbox-unread", unread);
      }
    }

    #item(message) {
      const item = this.#part("item").content.firstElementChild.cloneNode(true);
      const [head, body] = item.children;
      item.dataset.id = message.id;
      item.querySelector(".sender").textContent = message.sender || "—";
      item.querySelector(".preview").textContent = message.content.slice(0, 200);
      const at = message.created_at;
      Object.assign(item.querySelector("time"), { dateTime: at, textContent: when(new Date(at)) });
      item.querySelector(".text").textContent = message.content;
      head.addEventListener("click", () => this.#open(message.id, head));
      body.querySelector("button").addEventListener("click", () => this.#delete(message.id));
      this.#items.set(message.id, item);
      return item;
    }

    #build() {
      this.attachShadow({ mode: "open" }).innerHTML = MARKUP;
      const sheet = new CSSStyleSheet();
      sheet.replaceSync(STYLE);
      this.shadowRoot.adoptedStyleSheets = [sheet];
      this.#part("all").addEventListener("click", () => this.#readAll());
      this.#part("undo").lastElementChild.addEventListener("click", () => this.#undo());
      this.shadowRoot.addEventListener("keydown", (event) => this.#key(event));
      const older = this.#part("older");
      older.addEventListener("click", () => this.#more());
      new IntersectionObserver((entries) => {
        this.#isNearEnd = entries.at(-1).isIntersecting; // a busy browser tells of several changes at once
        this.#fill();
      }, { rootMargin: "800px" }).observe(older);
    }
  }

  function when(date) {
    const isToday = date.toDateString() === new Date().toDateString();
    return date.toLocaleString(undefined, isToday ? { timeStyle: "short" } : { dateStyle: "medium" });
  }

  // Fixed text only: what messages hold is set as textContent.
  const MARKUP = `
    <header>
      <h2 id="title" tabindex="-1">Inbox <span id="badge" aria-hidden="true"></span></h2>
      <span id="count" class="for-readers"></span> <span id="status" role="status"></span>
      <button id="all" type="button" disabled>Mark all as read</button>
    </header>
    <div id="news" class="for-readers" role="status"></div>
    <ol id="list" role="list" aria-labelledby="title"></ol>
    <p id="empty" hidden>No messages.</p> <button id="older" type="button" hidden>Older messages</button>
    <div id="undo" hidden><span id="undone"></span> <button type="button" aria-keyshortcuts="Control+Z Meta+Z">Undo</button></div>
    <template id="item"><li>
      <button class="head" type="button" aria-expanded="false"><span class="state for-readers"></span>
        <bdi class="sender" dir="auto"></bdi> <time></time> <span class="preview" dir="auto"></span></button>
      <div class="body" hidden><p class="text" dir="auto"></p><button type="button">Delete</button></div>
    </li></template>`;

  const STYLE = `
    :host { --accent: #0b62d6; --line: #d8dce3; --muted: #5b6472; color-scheme: light dark; display: block; overflow: auto;
      position: relative; font: 16px/1.45 system-ui, sans-serif; color: CanvasText; background: Canvas }
    @media (prefers-color-scheme: dark) { :host { --accent: #6ea8ff; --line: #3a404b; --muted: #a3acba } }
    header { position: sticky; top: 0; z-index: 1; display: flex; gap: .8em; align-items: center; flex-wrap: wrap;
      padding: .6em 1em; background: Canvas; border-bottom: 1px solid var(--line) }
    h2 { margin: 0; font-size: 1.2em } ol { list-style: none; margin: 0; padding: 0 }
    #badge:not(:empty) { padding: .1em .55em; border-radius: 1em; background: var(--accent); color: Canvas; font-size: .75em }
    #status { flex: 1; color: var(--muted); font-size: .85em }
    button { padding: .3em .8em; border: 1px solid var(--line); border-radius: .4em; background: none; color: inherit;
      font: inherit; cursor: pointer }
    button:disabled { color: var(--muted); cursor: default }
    :focus-visible { outline: 2px solid var(--accent); outline-offset: -2px }
    li { border-bottom: 1px solid var(--line); content-visibility: auto; contain-intrinsic-size: auto 4.2em }
    .head { display: grid; grid-template-columns: 1fr auto; gap: 0 1em; width: 100%; padding: .6em 1em; border: 0;
      text-align: start }
    .sender, .preview { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
    .preview { grid-column: 1 / -1; color: var(--muted) }
    [aria-expanded=true] .preview { visibility: hidden; height: 0 }
    time { color: var(--muted); font-size: .85em }
    .unread .sender { font-weight: 700 } .unread .sender::before { content: "●"; color: var(--accent); margin-inline-end: .4em }
    .body { padding: 0 1em 1em } .text { margin: .2em 0 .8em; white-space: pre-wrap; overflow-wrap: anywhere }
    #empty { padding: 2em; text-align: center; color: var(--muted) } #older { display: block; margin: 1em auto }
    #undo { position: sticky; bottom: 1em; width: fit-content; margin: 1em auto; padding: .6em 1em; border-radius: .5em;
      background: CanvasText; color: Canvas }
    [hidden] { display: none !important }
    .for-readers { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap }
  `;

  customElements.define("message-inbox", MessageInbox);
})();
