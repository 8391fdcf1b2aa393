"""Access: every route by every kind of caller; and no caller learns anything about a foreign mailbox."""

import base64
import functools
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from django.utils import timezone

from messaging.auth import keys, tokens
from messaging.models import ApiKey
from tests import document
from tests.conftest import MakeKey
from tests.helpers import Answer, Api
from tests.routes import api_routes, other_paths
from tests.state import nothing_changes
from tests.test_reading import MISSING

SECRET = "a-secret-of-these-tests-0123456789abcdef0123456789abcdef"
FOREIGN = "foreign"


@functools.cache
def rsa_key(number: int) -> rsa.RSAPrivateKey:
    """A private key; making one takes a while."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(autouse=True)
def token_settings(settings: Any, tmp_path: Any) -> rsa.RSAPrivateKey:
    """Tokens by HS256 and by the public half of an RSA key; returns its private half."""
    private = rsa_key(0)
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [public | {"kid": "one", "alg": "RS256", "use": "sig"}]}))
    settings.MESSAGES_TOKEN_SECRET = SECRET
    settings.MESSAGES_TOKEN_JWKS = str(tmp_path / "jwks.json")
    settings.MESSAGES_TOKEN_AUDIENCE = "messages"
    return private


def claims(**changed: Any) -> dict[str, Any]:
    now = int(timezone.now().timestamp())
    found = {"sub": "ada", "aud": "messages", "scope": "read manage", "iat": now, "exp": now + 600} | changed
    return {name: value for name, value in found.items() if value is not None}


def signed(**changed: Any) -> str:
    return jwt.encode(claims(**changed), SECRET, algorithm="HS256")


def unsigned(header: dict[str, Any], signature: str = "") -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part(header)}.{part(claims())}.{signature}"


# --- the table: what each route needs, and who has what

# Every call, the scope it needs, and what it is called with: the id of a message of the mailbox `name`.
ROUTES: dict[tuple[str, str], tuple[str, Callable[[str, str], tuple[str, Any]]]] = {
    ("GET", "/messages"): ("read", lambda name, id_: (f"?recipient={name}", None)),
    ("GET", "/messages/unread"): ("read", lambda name, id_: (f"?recipient={name}", None)),
    ("GET", "/messages/{id}"): ("read", lambda name, id_: ("", None)),
    ("GET", "/mailbox"): ("read", lambda name, id_: (f"?recipient={name}", None)),
    ("GET", "/changes"): ("read", lambda name, id_: (f"?recipient={name}&since=0", None)),
    ("POST", "/mailbox/ticket"): ("read", lambda name, id_: ("", {"recipient": name})),
    ("POST", "/messages"): ("send", lambda name, id_: ("", {"recipient": name, "content": "x"})),
    ("POST", "/messages/batch"): ("send", lambda name, id_: ("", {"messages": [{"recipient": name, "content": "x"}]})),
    ("PATCH", "/messages/mark-read"): ("manage", lambda name, id_: ("", {"recipient": name, "up_to": id_})),
    ("POST", "/messages/mark-read"): ("manage", lambda name, id_: ("", {"ids": [id_]})),
    ("POST", "/messages/mark-unread"): ("manage", lambda name, id_: ("", {"recipient": name, "up_to": id_})),
    ("PATCH", "/messages/mark-unread"): ("manage", lambda name, id_: ("", {"ids": [id_]})),
    ("DELETE", "/messages/bulk"): ("manage", lambda name, id_: ("", {"ids": [id_]})),
    ("POST", "/messages/bulk-delete"): ("manage", lambda name, id_: ("", {"ids": [id_]})),
    ("DELETE", "/messages/{id}"): ("manage", lambda name, id_: ("", None)),
}
OPEN_PATHS = {"/", "/health", "/livez", "/readyz", "/docs", "/redoc", "/redoc/redoc.js", "/openapi.json", "/inbox"}
BY_IDS = {
    ("PATCH", "/messages/mark-unread"),
    ("POST", "/messages/mark-read"),
    ("DELETE", "/messages/bulk"),
    ("POST", "/messages/bulk-delete"),
}


def test_the_table_has_every_route() -> None:
    assert api_routes() == set(ROUTES)
    assert other_paths() - {"/metrics"} == OPEN_PATHS | {"/admin", "/admin/overview"}


def call(api: Api, route: tuple[str, str], name: str, id_: str, **options: Any) -> Answer:
    method, path = route
    rest, body = ROUTES[route][1](name, id_)
    if body is not None:
        options["json"] = body
    return api.request(method, path.format(id=id_) + rest, **options)


def succeeded(route: tuple[str, str]) -> int:
    method, path = route
    [status] = [int(code) for code in document.load()["paths"][path][method.lower()]["responses"] if code[0] == "2"]
    return status


def expired(make_key: MakeKey) -> str:
    text = make_key(expires_at=timezone.now() + timedelta(hours=1))
    ApiKey.objects.filter(prefix=text.split("_")[1]).update(expires_at=timezone.now() - timedelta(seconds=1))
    return text


def revoked(make_key: MakeKey) -> str:
    text = make_key()
    keys.revoke(prefix=text.split("_")[1])
    return text


# Callers with something: the scopes they hold; all of them may reach the mailbox of ada.
HOLDERS: dict[str, tuple[set[str], Callable[[MakeKey], str]]] = {
    "everything": ({"send", "read", "manage"}, lambda make: make()),
    "send": ({"send"}, lambda make: make("send")),
    "read": ({"read"}, lambda make: make("read")),
    "manage": ({"manage"}, lambda make: make("manage")),
    "bound to ada": ({"send", "read", "manage"}, lambda make: make(recipient="ada")),
    "bound to ada, read": ({"read"}, lambda make: make("read", recipient="ada")),
    "bound to a sender": ({"send", "read", "manage"}, lambda make: make(sender="shop")),
    "token": ({"read"}, lambda make: signed(scope=None)),
    "token, read": ({"read"}, lambda make: signed(scope="read")),
    "token, manage": ({"manage"}, lambda make: signed(scope="manage")),
    "token, all it may hold": ({"read", "manage"}, lambda make: signed()),
    "token that claims to send": ({"read"}, lambda make: signed(scope="read send admin")),
    "token without a scope": (set(), lambda make: signed(scope="")),
    "token by command": ({"read", "manage"},
        lambda make: tokens.create(recipient="ada", scopes=["read", "manage"], lifetime=timedelta(minutes=5))),
}  # fmt: skip


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_scope_opens_its_routes_and_no_other(
    api: Api, make_key: MakeKey, route: tuple[str, str], holder: str
) -> None:
    id_ = api.send("ada")["id"]
    scopes, credential = HOLDERS[holder]
    caller = api.holding(credential(make_key))
    if ROUTES[route][0] in scopes:
        call(caller, route, "ada", id_).expect(succeeded(route))
    else:
        with nothing_changes():
            call(caller, route, "ada", id_).expect(403, "insufficient_scope")


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_open_access_opens_everything(api: Api, anonymous: Api, open_access: None, route: tuple[str, str]) -> None:
    id_ = api.send("ada")["id"]
    call(anonymous, route, "ada", id_).expect(succeeded(route))


def strangers(make_key: MakeKey, private: rsa.RSAPrivateKey) -> dict[str, str]:
    """What looks like a credential and is none."""
    good, now = make_key(), int(timezone.now().timestamp())
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    # PyJWT refuses a PEM as a secret, so an attacker signs by hand.
    start = unsigned({"alg": "HS256", "typ": "JWT", "kid": "one"}).rstrip(".")
    confused = base64.urlsafe_b64encode(hmac.new(pem, start.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    stranger = rsa_key(1)
    rs_good = jwt.encode(claims(), private, algorithm="RS256", headers={"kid": "one"})
    return {
        "nothing of ours": "garbage",
        "empty": "",
        "unknown key": "msg_aaaaaaaaaa_" + "x" * 43,
        "wrong secret": good[:-1] + ("a" if good[-1] != "a" else "b"),
        "longer secret": good + "x",
        "shorter secret": good[:-1],
        "prefix alone": good.rpartition("_")[0],
        "upper case": good.upper(),
        "NUL": good + "\x00",
        "not ASCII": "msg_\xff_\xff",
        "very long": "msg_" + "a" * 5_000,
        "expired key": expired(make_key),
        "revoked key": revoked(make_key),
        "expired token": signed(iat=now - 600, exp=now - 60),
        "token of the future": signed(nbf=now + 600),
        "token for another service": signed(aud="billing"),
        "token without an audience": signed(aud=None),
        "token without an end": signed(exp=None),
        "token for ever": signed(exp=now + 10**9),
        "token with an infinite end": unsigned({"alg": "HS256"}, "x"),
        "token without a recipient": signed(sub=None),
        "token for nobody": signed(sub=""),
        "token for a number": signed(sub="a\x00"),
        "token signed by another secret": jwt.encode(claims(), SECRET[::-1], algorithm="HS256"),
        "token by another algorithm": jwt.encode(claims(), SECRET + SECRET, algorithm="HS512"),
        "alg none": unsigned({"alg": "none", "typ": "JWT"}),
        "alg None": unsigned({"alg": "None", "typ": "JWT"}),
        "alg none, signed": unsigned({"alg": "none", "typ": "JWT"}, signed().rpartition(".")[2]),
        "no alg": unsigned({"typ": "JWT"}),
        "public key as HS256 secret": f"{start}.{confused}",
        "RS256 by a stranger": jwt.encode(claims(), stranger, algorithm="RS256", headers={"kid": "one"}),
        "EdDSA by a stranger": jwt.encode(claims(), ed25519.Ed25519PrivateKey.generate(), algorithm="EdDSA"),
        "key of its own": jwt.encode(claims(), stranger, algorithm="RS256",
            headers={"jwk": json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(stranger.public_key()))}),
        "changed claims": ".".join([rs_good.split(".")[0], signed(sub="bob").split(".")[1], rs_good.split(".")[2]]),
        "cut off": rs_good[:-20],
    }  # fmt: skip


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_requests_without_a_valid_credential_are_refused(
    api: Api, make_key: MakeKey, token_settings: rsa.RSAPrivateKey, route: tuple[str, str]
) -> None:
    id_ = api.send("ada")["id"]
    credentials = strangers(make_key, token_settings)
    with nothing_changes():
        missing = [None, "Basic YTpi", "Token x", "Bearerx y", ""]
        for header in missing:
            answer = call(api.holding(None), route, "ada", id_, headers={"Authorization": header})
            answer.expect(401, "not_authenticated")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        texts = set()
        for name, credential in credentials.items():
            answer = call(api, route, "ada", id_, headers={"Authorization": f"Bearer {credential}"})
            assert (name, answer.status, answer.code) == (name, 401, "invalid_key")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            texts.add(answer.json["detail"])
        # One text for every cause, so that it does not tell which keys there are.
        assert len(texts) == 1
    # The same key by its right holder, and the same kind of token from its right signer, do open it.
    good = jwt.encode(claims(), token_settings, algorithm="RS256", headers={"kid": "one"})
    assert call(api.holding(good), route, "ada", id_).status in {succeeded(route), 403}


def test_a_bad_key_is_refused_where_access_is_open_too(api: Api, open_access: None) -> None:
    for credential in ("msg_aaaaaaaaaa_" + "x" * 43, "garbage"):
        api.holding(credential).get("/mailbox?recipient=ada").expect(401, "invalid_key")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_the_authentication_scheme_is_case_insensitive(api: Api, make_key: MakeKey, scheme: str) -> None:
    api.get("/mailbox?recipient=ada", headers={"Authorization": f"{scheme} {make_key()}"}).expect(200)


def test_a_key_is_taken_from_its_header_only(api: Api, make_key: MakeKey) -> None:
    key = make_key()
    for query in (f"key={key}", f"access_token={key}", f"token={key}"):
        api.holding(None).get(f"/mailbox?recipient=ada&{query}").expect(401)
    api.holding(None).get("/mailbox?recipient=ada", headers={"Cookie": f"key={key}", "X-Api-Key": key}).expect(401)


def test_public_paths_need_no_key(transactional_db: None, anonymous: Api) -> None:
    for path in OPEN_PATHS - {"/openapi.json"}:
        anonymous.get(path).expect(200)


def test_an_unknown_path_needs_no_key(anonymous: Api) -> None:
    anonymous.get("/nowhere").expect(404, "unknown_path")


# --- another's mailbox


def neutral(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    """An answer without what differs from one request to the next."""
    headers = {name: value for name, value in answer.headers.items() if name not in {"x-request-id", "date"}}
    return answer.status, headers, answer.body


BOUND: dict[str, Callable[[MakeKey], str]] = {
    "key": lambda make: make(recipient="ada"),
    "token": lambda make: signed(),
}


@pytest.mark.parametrize("kind", BOUND)
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_foreign_message_looks_like_a_missing_one(
    api: Api, make_key: MakeKey, route: tuple[str, str], kind: str
) -> None:
    bound = api.holding(BOUND[kind](make_key))
    same_id = {"headers": {"X-Request-ID": "the-same"}}
    id_ = api.send(FOREIGN, "secret")["id"]
    api.patch("/messages/mark-read", {"ids": [id_]}).expect(200)
    with nothing_changes():
        there = call(bound, route, FOREIGN, id_, **same_id)
    api.delete(f"/messages/{id_}").expect(204)
    gone = call(bound, route, FOREIGN, id_, **same_id)

    assert neutral(there) == neutral(gone)
    assert b"secret" not in there.body
    if ROUTES[route][0] == "send" and kind == "token":
        there.expect(403, "insufficient_scope")
    elif route in BY_IDS:
        assert there.expect(200).json["results"] == [{"id": id_, "status": "not_found"}]
        assert there.json["mailboxes"] == []
    else:
        there.expect(404, "not_found")
    # A mailbox that never was looks the same as one that was, too.
    if route[1] in {"/messages", "/messages/unread", "/mailbox"}:
        never = call(bound, route, "never", id_, **same_id)
        assert neutral(never) == neutral(there)


def test_a_foreign_message_looks_missing_to_head_conditions_and_up_to(api: Api, make_key: MakeKey) -> None:
    mine, other = api.send("ada"), api.send(FOREIGN)
    tag = api.get(f"/messages/{other['id']}").headers["ETag"]
    for credential in BOUND.values():
        bound = api.holding(credential(make_key))
        assert bound.request("HEAD", f"/messages/{other['id']}").expect(404).body == b""
        for condition in (tag, "*"):
            for path in (
                f"/messages/{other['id']}",
                f"/mailbox?recipient={FOREIGN}",
                f"/messages/?recipient={FOREIGN}",
            ):
                assert "ETag" not in bound.get(path, headers={"If-None-Match": condition}).expect(404).headers
        with nothing_changes():
            told = {
                bound.patch(
                    "/messages/mark-read", {"recipient": "ada", "up_to": id_}, headers={"X-Request-ID": "the-same"}
                ).expect(404).body
                for id_ in (other["id"], MISSING)
            }  # fmt: skip
            assert len(told) == 1
            outcome = bound.patch("/messages/mark-unread", {"ids": [other["id"], mine["id"], MISSING]}).expect(200).json
        assert [r["status"] for r in outcome["results"]] == ["not_found", "unchanged", "not_found"]
        assert [m["recipient"] for m in outcome["mailboxes"]] == ["ada"]


def test_a_cursor_of_a_foreign_mailbox_is_refused(api: Api, make_key: MakeKey) -> None:
    for _ in range(3):
        api.send(FOREIGN)
    url = api.get(f"/messages/?recipient={FOREIGN}&limit=1").expect(200).json["next"]
    cursor = url.partition("cursor=")[2]
    for credential in BOUND.values():
        bound = api.holding(credential(make_key))
        assert bound.get(f"/messages/?cursor={cursor}").expect(400).faults == {"?cursor": "foreign_cursor"}
        bound.get(f"/messages/?recipient={FOREIGN}&cursor={cursor}").expect(404, "not_found")


# --- fields that are not the client's to set


def test_fields_of_a_message_are_set_only_by_their_calls(api: Api) -> None:
    message = api.send("ada")
    taken = {"recipient", "sender", "content", "metadata", "expires_at"}
    more = {"mailbox": 1, "mailbox_id": 1, "pk": 1, "version": 9, "scopes": ["manage"], "caller": "x", "_id": "x"}
    with nothing_changes():
        for name, value in {**message, **more}.items():
            if name not in taken:
                body = {"recipient": "ada", "content": "x", name: value}
                assert api.post("/messages/", body).expect(400).faults == {f"/{name}": "unknown_field"}
                faults = api.post("/messages/batch", {"messages": [body]}).expect(400).faults
                assert faults == {f"/messages/0/{name}": "unknown_field"}
            if name not in {"ids", "recipient"}:
                for path in ("/messages/mark-read", "/messages/mark-unread", "/messages/bulk-delete"):
                    method = "POST" if path.endswith("delete") else "PATCH"
                    faults = api.request(method, path, {"ids": [message["id"]], name: value}).expect(400).faults
                    assert faults == {f"/{name}": "unknown_field"}
        for method in ("PUT", "PATCH", "POST"):
            api.request(method, f"/messages/{message['id']}", {"content": "changed"}).expect(405)
            api.request(method, "/mailbox", {"recipient": "ada", "unread": 0}).expect(405)
