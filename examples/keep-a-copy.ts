/**
 * Keep a copy of a mailbox in IndexedDB, by GET /changes, and follow its events. For browsers, without libraries.
 *   const copy = await Copy.open("https://messages.example.com", token, "ada");
 *   copy.onchange = async () => show(await copy.messages());
 *   copy.follow();
 */
export interface Message {
  id: string; seq: number; recipient: string; sender: string; content: string; metadata: Record<string, unknown>;
  created_at: string; read_at: string | null; is_read: boolean; expires_at: string | null }
interface Changes { messages: Message[]; deleted: string[]; until: number; next: string | null }
export class Copy {
  onchange: () => void = () => {};
  #turn: Promise<unknown> = Promise.resolve(); // one catching up at a time
  token = ""; // assign a new one before it expires
  private service = ""; private live = ""; private database!: IDBDatabase;

  /** The token is one recipient's, and so is the database `name`. `live` is where the live process is, if elsewhere. */
  static async open(service: string, token: string, name: string, live = service): Promise<Copy> {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("seq", "seq");
      request.result.createObjectStore("state");
    };
    return Object.assign(new Copy(), { service, live, token, database: await result(request) });
  }

  /** Every message, in the order of arrival. */
  messages = (): Promise<Message[]> =>
    result(this.database.transaction("messages").objectStore("messages").index("seq").getAll());

  /** As of which version the copy is whole; 0 for none. */
  version = async (): Promise<number> =>
    (await result(this.database.transaction("state").objectStore("state").get("version"))) ?? 0;

  /** Apply all changes since `version`, at least up to the version heard of. */
  catchUp = (heard = "0"): Promise<unknown> => (this.#turn = this.#turn.catch(() => {}).then(() => this.#apply(heard)));

  async #apply(heard: string): Promise<void> {
    const since = await this.version();
    let url: string | null = `${this.service}/changes?since=${since}`;
    while (url) {
      const response: Response = await this.#call("GET", url, { "Messages-Min-Version": heard });
      if (response.status === 410 && since) {
        await this.#write((messages, state) => (messages.clear(), state.clear()));
        return this.#apply(heard); // from 0, as changes that far back are no longer kept
      }
      const changes: Changes = await response.json();
      await this.#write((messages, state) => {
        for (const message of changes.messages) messages.put(message);
        for (const id of changes.deleted) messages.delete(id);
        if (!changes.next) state.put(changes.until, "version"); // only now is the copy whole
      });
      url = changes.next;
    }
    this.onchange();
  }

  /** Catch up after each event; try again what fails. Rejects at a refusal that lasts: its `cause` has the status. */
  async follow(): Promise<never> {
    for (let pause = 1000, told = 0; ; pause = Math.min(2 * pause, 30_000), told = 0) {
      try {
        await this.catchUp();
        const { ticket } = await (await this.#call("POST", `${this.service}/mailbox/ticket`)).json();
        const events = new EventSource(`${this.live}/mailbox/events?ticket=${encodeURIComponent(ticket)}`);
        await new Promise((end, fail) => {
          events.onerror = end;
          events.addEventListener("mailbox", (e) => this.catchUp(e.lastEventId).then(() => (pause = 1000), fail));
        }).finally(() => events.close());
      } catch (error: any) {
        if ([400, 401, 403, 404].includes(error.cause?.status)) throw error; // 401: with a new token, follow() again
        console.info(`${error}; trying again`);
        told = 1000 * Number(error.cause?.headers?.get("Retry-After")) || 0; // a proxy may write a date
      }
      await new Promise((resolve) => setTimeout(resolve, Math.max(told, pause * (0.5 + Math.random() / 2))));
    }
  }

  async #call(method: string, url: string, headers = {}): Promise<Response> {
    const sent = { ...headers, Authorization: `Bearer ${this.token}` };
    const response = await fetch(url, { method, headers: sent, signal: AbortSignal.timeout(40_000) });
    if (!response.ok && response.status !== 410) throw new Error(`${url}: ${response.status}`, { cause: response });
    return response;
  }

  #write(change: (messages: IDBObjectStore, state: IDBObjectStore) => void): Promise<void> {
    const transaction = this.database.transaction(["messages", "state"], "readwrite");
    change(transaction.objectStore("messages"), transaction.objectStore("state"));
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
    });
  }
}

const result = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
