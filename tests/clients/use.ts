// Uses the API with openapi-fetch: node use.js URL KEY. Every `check` is one thing that has to hold; the first that does not ends it.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { argv: string[] };
const [url, key] = process.argv.slice(2) as [string, string];
const api = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });
const recipient = "ada+x@example.com";

function check(what: string, holds: boolean): void {
  if (!holds) throw new Error(what);
}

function present<T>(value: T | null | undefined): T {
  if (value === null || value === undefined) throw new Error("a value is missing");
  return value;
}

const sent: components["schemas"]["Message"][] = [];
for (const content of ["one", "two", "three"]) {
  const { data, response } = await api.POST("/messages", {
    body: { recipient, content, metadata: { nested: { list: [1, 2.5, null] } } },
    params: { header: { "Idempotency-Key": content } },
  });
  sent.push(present(data));
  check("it is created", response.status === 201);
}
const again = await api.POST("/messages", {
  body: { recipient, content: "one", metadata: { nested: { list: [1, 2.5, null] } } },
  params: { header: { "Idempotency-Key": "one" } },
});
check("a retry is replayed", present(again.data).id === sent[0]!.id && again.response.headers.has("Idempotency-Replayed"));

const seen: string[] = [];
let cursor: string | undefined;
do {
  const query = { recipient, limit: 2, is_read: false, created_after: sent[0]!.created_at, cursor };
  const page = present((await api.GET("/messages", { params: { query } })).data);
  seen.push(...page.results.map((message) => message.content));
  cursor = page.next === null ? undefined : present(new URL(page.next).searchParams.get("cursor"));
} while (cursor !== undefined);
check("pages have all, newest first", seen.join() === "three,two,one");
const ordering: components["schemas"]["Ordering"] = "created_at";
for (const path of ["/messages", "/messages/unread"] as const) {
  const oldest = present((await api.GET(path, { params: { query: { recipient, ordering, limit: 1 } } })).data);
  check("the oldest comes first", oldest.results[0]!.content === "one");
}

const ids = sent.map((message) => message.id);
const marked = present((await api.PATCH("/messages/mark-read", { body: { ids: [ids[0]!] } })).data);
check("one was marked by its id", present(marked.results)[0]!.status === "changed");
const upTo = present((await api.POST("/messages/mark-read", { body: { recipient, up_to: ids[1]! } })).data);
check("one more was marked up to another", present(upTo.complete) && upTo.changed === 1);
const one = await api.GET("/messages/{id}", { params: { path: { id: ids[0]! } } });
check("read_at is set", typeof present(one.data).read_at === "string");

const mailbox = await api.GET("/mailbox", { params: { query: { recipient } } });
check("the counts are exact", present(mailbox.data).total === 3 && present(mailbox.data).unread === 1);
const known = { "If-None-Match": present(mailbox.response.headers.get("ETag")) };
const unchanged = await api.GET("/mailbox", { params: { query: { recipient }, header: known } });
check("an unchanged mailbox is 304", unchanged.response.status === 304);

const path = { id: ids[0]! };
check("a message is deleted", (await api.DELETE("/messages/{id}", { params: { path } })).response.status === 204);
const gone = present((await api.DELETE("/messages/{id}", { params: { path } })).error);
check("the second time it is a problem", gone.status === 404 && gone.code === "not_found");
const bulk = present((await api.DELETE("/messages/bulk", { body: { ids: [ids[0]!, ids[1]!] } })).data);
check("a DELETE has its body", bulk.changed === 1 && bulk.not_found === 1);

const refused = present((await api.POST("/messages", { body: { recipient, content: " " } })).error);
check("a fault is named", refused.code === "invalid_input" && refused.errors?.[0]?.pointer === "/content" && refused.errors[0].code === "blank");

const changes = present((await api.GET("/changes", { params: { query: { recipient, since: 0 } } })).data);
check("changes are followed", changes.messages.length === 1 && changes.next === null);
check("a ticket is given", present((await api.POST("/mailbox/ticket", { body: { recipient } })).data).ticket !== "");
check("the service is healthy", present((await api.GET("/health")).data).status === "ok");
