"""End-user tokens: accepted only with a valid signature by a configured key, for this service, at this time."""

import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from django.core import checks
from django.core.management import CommandError, call_command
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from messages_project.management.commands import doctor
from messaging.access import Scope
from messaging.api.authentication import BearerAuthentication
from messaging.api.problems import problem_of
from messaging.auth import signing_keys, tokens
from messaging.auth.signing_keys import KeySet
from messaging.auth.tokens import Verifier
from messaging.errors import InvalidInputError, TokenKeysUnavailableError
from tests.servers import wait_until

SECRET = "a-secret-of-the-tests-of-more-than-32-bytes"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SHORT_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
ED_KEY = ed25519.Ed25519PrivateKey.generate()
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def claims(**changed: Any) -> dict[str, Any]:
    """The claims of a good token, with changes; None leaves a claim out."""
    now = int(time.time())
    merged = {"sub": "ada", "aud": "messages", "iat": now, "exp": now + 600} | changed
    return {name: value for name, value in merged.items() if value is not None}


def signed(key: Any = SECRET, algorithm: str = "HS256", *, header: dict[str, Any] | None = None, **changed: Any) -> str:
    return jwt.encode(claims(**changed), key, algorithm, headers=header)


def by_hand(header: dict[str, Any] | bytes, payload: dict[str, Any] | bytes, signature: bytes = b"") -> str:
    """A token as an attacker composes it."""

    def part(value: Any) -> str:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    return ".".join(map(part, (header, payload, signature)))


def public(key: Any, **members: Any) -> dict[str, Any]:
    """The public half of a key as an entry of a JWKS."""
    kinds: dict[Any, Any] = {
        rsa.RSAPrivateKey: RSAAlgorithm,
        ed25519.Ed25519PrivateKey: OKPAlgorithm,
        ec.EllipticCurvePrivateKey: ECAlgorithm,
    }
    [algorithm] = [found for kind, found in kinds.items() if isinstance(key, kind)]
    return algorithm.to_jwk(key.public_key(), as_dict=True) | members  # type: ignore[no-any-return]


def verifier(*, jwks: str = "", **options: Any) -> Verifier:
    described: dict[str, Any] = {"secrets": (SECRET,), "audience": "messages", "max_seconds": 3600}
    return Verifier(**(described | options), jwks=jwks)


@pytest.fixture
def jwks(tmp_path: Path) -> Callable[..., str]:
    """A JWKS file with these keys; its path."""

    def write(*entries: Any) -> str:
        path = tmp_path / "jwks.json"
        path.write_text(json.dumps({"keys": entries}))
        return str(path)

    return write


# Shared secrets


def test_a_token_makes_a_caller_of_one_recipient() -> None:
    caller = verifier().caller_of(signed(scope="read manage"))
    assert caller
    assert (caller.recipient, caller.sender, caller.scopes) == ("ada", None, frozenset({Scope.READ, Scope.MANAGE}))
    # The same for each of her tokens, another for another's, and her name is not in it.
    again, other = verifier().caller_of(signed(iat=None)), verifier().caller_of(signed(sub="bob"))
    assert again
    assert other
    assert caller.identity == again.identity != other.identity
    assert re.fullmatch(r"token:[0-9a-f]{32}", caller.identity)


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [
        (None, {"read"}),
        ("read", {"read"}),
        ("manage", {"manage"}),
        ("", set()),
        ("send read", {"read"}),
        ("send", set()),
        ("openid profile", set()),
        ("reader read,manage", set()),
    ],
)
def test_a_token_reads_and_manages_and_never_sends(scope: str | None, scopes: set[str]) -> None:
    caller = verifier().caller_of(signed(scope=scope))
    assert caller
    assert set(caller.scopes) == scopes


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(lambda: signed(exp=int(time.time()) - 10), id="expired"),
        pytest.param(lambda: signed(exp=None), id="without exp"),
        pytest.param(lambda: signed(exp=int(time.time()) + 7200), id="lives too long"),
        pytest.param(lambda: signed(exp=int(time.time()) + 7200, iat=None), id="lives too long, without iat"),
        pytest.param(lambda: signed(iat=int(time.time()) - 7200), id="has lived too long"),
        pytest.param(lambda: signed(iat=int(time.time()) + 3000), id="from the future"),
        pytest.param(lambda: signed(nbf=int(time.time()) + 3000), id="not yet"),
        pytest.param(lambda: signed(aud="other"), id="for another service"),
        pytest.param(lambda: signed(aud=None), id="without aud"),
        pytest.param(lambda: signed(sub=None), id="without sub"),
        pytest.param(lambda: signed(sub=""), id="for nobody"),
        pytest.param(lambda: signed(sub="a\nb"), id="for a control character"),
        pytest.param(lambda: signed(sub="a\x00b"), id="for U+0000"),
        pytest.param(lambda: signed(sub="a\ud800b"), id="for a lone surrogate"),
        pytest.param(lambda: signed(sub="n" * 256), id="for too long a name"),
        pytest.param(lambda: by_hand({"alg": "none"}, claims()), id="unsigned"),
        pytest.param(lambda: by_hand({"alg": "None"}, claims()), id="unsigned, in other letters"),
        pytest.param(lambda: by_hand({"typ": "JWT"}, claims()), id="without alg"),
        pytest.param(lambda: by_hand({"alg": ["HS256"]}, claims()), id="alg is a list"),
        pytest.param(lambda: by_hand({"alg": {}}, claims()), id="alg is an object"),
        pytest.param(lambda: by_hand({"alg": "HS256"}, claims()), id="without signature"),
        pytest.param(lambda: signed("another-secret-of-more-than-32-bytes-as-well"), id="another secret"),
        pytest.param(lambda: signed(RSA_KEY, "RS256"), id="RS256 without a JWKS"),
        pytest.param(lambda: signed(header={"crit": ["x"], "x": 1}), id="an unknown critical header"),
        pytest.param(lambda: signed()[:-4] + "AAAA", id="changed signature"),
        pytest.param(
            lambda: ".".join([signed().split(".")[0], by_hand({}, claims(sub="bob")).split(".")[1], "x"]), id="changed"
        ),
        pytest.param(lambda: signed() + "." + "x", id="four parts"),
        pytest.param(lambda: signed().replace(".", "", 1), id="two parts"),
        pytest.param(lambda: "a.b.c", id="nonsense"),
        pytest.param(lambda: "..", id="nothing"),
        pytest.param(lambda: "", id="empty"),
        pytest.param(lambda: "\xe9.\xe9.\xe9", id="no ASCII"),
        pytest.param(lambda: by_hand(b"[" * 2000, b"{}"), id="a deep header"),
        pytest.param(lambda: by_hand(b'{"alg":"HS256","x":' + b"9" * 2000 + b"}", b"{}"), id="a long number"),
        pytest.param(lambda: by_hand({"alg": "HS256", "kid": 7}, claims()), id="kid is a number"),
        pytest.param(lambda: signed(padding="x" * 7000), id="too long"),
    ],
)
def test_whatever_is_not_a_good_token_is_refused(token: Callable[[], str]) -> None:
    assert verifier().caller_of(token()) is None


@pytest.mark.parametrize(
    "payload",
    [
        b'{"sub":"ada","aud":"messages","exp":Infinity}',
        b'{"sub":"ada","aud":"messages","exp":NaN}',
        b'{"sub":"ada","aud":"messages","exp":1e999}',
        b'{"sub":"ada","aud":"messages","exp":"x"}',
        b'{"sub":"ada","aud":"messages","exp":[]}',
        b'{"sub":"ada","aud":"messages","exp":' + b"9" * 1000 + b"}",
        b'{"sub":["ada"],"aud":"messages","exp":EXP}',
        b'{"sub":7,"aud":"messages","exp":EXP}',
        b'{"sub":null,"aud":"messages","exp":EXP}',
        b'{"sub":"ada","aud":{"messages":1},"exp":EXP}',
        b'{"sub":"ada","aud":"messages","exp":EXP,"scope":["read"]}',
        b'{"sub":"ada","aud":"messages","exp":EXP,"iat":"x"}',
        b'{"sub":"ada","aud":"messages","exp":EXP,"iat":null}',
        b'{"sub":"ada","aud":"messages","exp":EXP,"iat":-Infinity}',
        b'["sub"]',
        b"[" * 1200,
        b"\xff",
    ],
)
def test_odd_claims_under_a_good_signature_are_refused(payload: bytes) -> None:
    payload = payload.replace(b"EXP", str(int(time.time()) + 60).encode())
    assert verifier().caller_of(jwt.PyJWS().encode(payload, SECRET, "HS256")) is None


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_a_secret_verifies_with_its_own_algorithm_only(algorithm: str) -> None:
    secret = SECRET * 2
    assert verifier(secrets=(secret,)).caller_of(signed(secret))
    assert verifier(secrets=(secret,)).caller_of(signed(secret, algorithm)) is None


def test_a_short_secret_verifies_nothing() -> None:
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        text = signed("short")
    assert verifier(secrets=("short",)).caller_of(text) is None


def test_several_secrets_verify_so_that_they_can_be_changed() -> None:
    both = verifier(secrets=tokens.secrets_in(f"{'n' * 40}\n{SECRET}\n"))
    assert both.caller_of(signed())
    assert both.caller_of(signed("n" * 40))
    assert both.caller_of(signed("o" * 40)) is None


def test_an_issuer_is_asked_for_where_it_is_set() -> None:
    strict = verifier(issuer="https://id.example.com")
    assert strict.caller_of(signed(iss="https://id.example.com"))
    assert strict.caller_of(signed(iss="https://id.example.org")) is None
    assert strict.caller_of(signed()) is None
    assert verifier().caller_of(signed(iss="anybody"))


# Published keys


@pytest.mark.parametrize(("key", "algorithm"), [(RSA_KEY, "RS256"), (ED_KEY, "EdDSA")])
@pytest.mark.parametrize("key_id", ["one", None])
def test_a_published_key_verifies(jwks: Any, key: Any, algorithm: str, key_id: str | None) -> None:
    path = jwks(public(ED_KEY, kid="one"), public(RSA_KEY, kid="one"), public(RSA_KEY, kid="two", use="enc"))
    caller = verifier(jwks=path).caller_of(signed(key, algorithm, header={"kid": key_id} if key_id else None))
    assert caller
    assert caller.recipient == "ada"


def test_a_public_key_is_not_a_shared_secret(jwks: Any) -> None:
    path = jwks(public(RSA_KEY, kid="one"), public(ED_KEY, kid="two"))
    public_key = RSA_KEY.public_key()
    secrets = [
        public_key.public_bytes(encoding, form)
        for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER)
        for form in (serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.PKCS1)
    ]
    secrets += [base64.urlsafe_b64decode(public(ED_KEY)["x"] + "="), Path(path).read_bytes()]
    for secret in secrets:
        head, body, _ = by_hand({"alg": "HS256", "kid": "one"}, claims()).split(".")
        mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
        signature = base64.urlsafe_b64encode(mac.sign(f"{head}.{body}".encode(), secret)).rstrip(b"=").decode()
        for secrets_too in ((), (SECRET,)):
            assert verifier(jwks=path, secrets=secrets_too).caller_of(f"{head}.{body}.{signature}") is None


@pytest.mark.parametrize(
    ("token", "entries"),
    [
        pytest.param(
            lambda: signed(RSA_KEY, "RS256", header={"kid": "x"}), [public(RSA_KEY, kid="one")], id="another kid"
        ),
        pytest.param(lambda: signed(RSA_KEY, "RS512"), [public(RSA_KEY)], id="another hash"),
        pytest.param(lambda: signed(RSA_KEY, "PS256"), [public(RSA_KEY)], id="another padding"),
        pytest.param(
            lambda: signed(RSA_KEY, "RS256"), [public(RSA_KEY, alg="PS256"), public(ED_KEY)], id="key of another alg"
        ),
        pytest.param(
            lambda: signed(RSA_KEY, "RS256"), [public(RSA_KEY, use="enc"), public(ED_KEY)], id="key to encrypt with"
        ),
        pytest.param(lambda: signed(EC_KEY, "ES256"), [public(EC_KEY), public(ED_KEY)], id="another kind of key"),
        pytest.param(lambda: signed(SHORT_RSA_KEY, "RS256"), [public(SHORT_RSA_KEY)], id="a short key"),
        pytest.param(lambda: signed(ED_KEY, "EdDSA"), [public(RSA_KEY)], id="a key that is not there"),
        pytest.param(
            lambda: signed(header={"kid": "s"}),
            [{"kty": "oct", "kid": "s", "k": base64.urlsafe_b64encode(SECRET.encode()).decode()}, public(RSA_KEY)],
            id="a published secret",
        ),
        pytest.param(
            lambda: by_hand({"alg": "RS256", "jwk": public(ED_KEY)}, claims()), [public(RSA_KEY)], id="own key"
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
def test_a_published_key_verifies_with_its_own_algorithm_only(
    jwks: Any, token: Callable[[], str], entries: list[Any]
) -> None:
    assert verifier(jwks=jwks(*entries), secrets=()).caller_of(token()) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"keys": 7}',
        '{"keys": [7, {}, {"kty": "RSA"}, {"kty": ["RSA"]}, {"kty": "oct"}]}',
        '{"keys": ' + "[" * 100_000,
        "\xff",
        None,
    ],
)
def test_without_a_usable_key_no_token_is_verified(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "jwks.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(TokenKeysUnavailableError):
        verifier(jwks=str(path)).caller_of(signed(RSA_KEY, "RS256"))
    # Tokens of the shared secret go on.
    assert verifier(jwks=str(path)).caller_of(signed())


class Publisher:
    """A JWKS endpoint: counts how often it was asked."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.asked = 0
        self.works = True
        self.trickles = ""  # the part of a response in which it sends a little at a time: head or body
        self.is_over = threading.Event()
        self.pause = threading.Event()
        self.pause.set()
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.asked += 1
                publisher.pause.wait(20)
                trickles, body = publisher.trickles, json.dumps({"keys": publisher.entries}).encode()
                self.send_response(200 if publisher.works else 500)
                if trickles == "head":
                    self.flush_headers()
                    self.trickle(b"X-Pad: ")
                    self.wfile.write(b"\r\n")
                self.end_headers()
                if trickles == "body":
                    self.trickle()
                self.wfile.write(body)

            def trickle(self, start: bytes = b"") -> None:
                self.wfile.write(start)
                while not publisher.is_over.wait(0.05):
                    self.wfile.write(b" ")

            def log_message(self, *_: Any) -> None:
                """Nothing: tests are silent."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """Nothing: a client that went away is part of a test."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    found = Publisher()
    yield found
    found.pause.set()
    found.is_over.set()
    found.server.shutdown()
    found.server.server_close()


def test_doctor_reads_the_published_keys(db: None, publisher: Publisher, settings: Any) -> None:
    def found() -> list[doctor.Finding]:
        return [finding for finding in doctor.findings() if finding.subject == "token keys"]

    assert found() == []
    settings.MESSAGES_TOKEN_JWKS = publisher.url
    publisher.entries = [public(RSA_KEY, kid="one")]
    assert [(finding.state, finding.found) for finding in found()] == [("ok", "1 that verify tokens")]
    publisher.works = False
    assert [finding.state for finding in found()] == ["bad"]


def test_published_keys_are_fetched_again_after_a_while(publisher: Publisher) -> None:
    now = 0.0
    keys = KeySet(publisher.url, clock=lambda: now)
    publisher.entries = [public(RSA_KEY, kid="one")]
    for _ in range(100):
        assert len(keys.candidates("one", "RS256")) == 1
    assert publisher.asked == 1
    # A new key is found at its first use, but unknown key ids do not make the service fetch all the time.
    publisher.entries.append(public(ED_KEY, kid="two"))
    for _ in range(100):
        assert keys.candidates("two", "EdDSA") == []
    assert publisher.asked == 1
    now += 15
    assert len(keys.candidates("two", "EdDSA")) == 1
    assert publisher.asked == 2
    # One that was taken away is gone after five minutes.
    publisher.entries.pop(0)
    now += 299
    assert len(keys.candidates("one", "RS256")) == 1
    now += 1
    assert keys.candidates("one", "RS256") == []


def test_published_keys_are_kept_while_their_source_is_down(publisher: Publisher, caplog: Any) -> None:
    now = 0.0
    keys = KeySet(publisher.url, clock=lambda: now)
    publisher.entries = [public(RSA_KEY, kid="one")]
    assert keys.candidates("one", "RS256")
    publisher.works = False
    now += 300
    for _ in range(100):
        assert keys.candidates("one", "RS256")
    assert publisher.asked == 2
    assert "MESSAGES_TOKEN_JWKS" in caplog.text


def test_a_hanging_source_delays_a_request_only_briefly(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing_keys, "_TIMEOUT_SECONDS", 0.2)
    now = 0.0
    keys = KeySet(publisher.url, clock=lambda: now)
    publisher.pause.clear()
    for _ in range(20):
        with pytest.raises(TokenKeysUnavailableError):
            keys.candidates("one", "RS256")
    assert publisher.asked == 1
    publisher.entries = [public(RSA_KEY, kid="one")]
    publisher.pause.set()
    now += 15
    assert keys.candidates("one", "RS256")


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_source_that_trickles_once_is_asked_again(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(signing_keys, "_TIMEOUT_SECONDS", 0.2)
    now = 0.0
    keys = KeySet(publisher.url, clock=lambda: now)
    publisher.entries, publisher.trickles = [public(RSA_KEY, kid="old")], part
    with ThreadPoolExecutor(1) as thread, pytest.raises(TokenKeysUnavailableError):
        thread.submit(keys.candidates, "old", "RS256").result(10)
    [slow] = keys._readers
    publisher.entries, publisher.trickles = [public(RSA_KEY, kid="new")], ""
    for _ in range(20):
        with pytest.raises(TokenKeysUnavailableError):
            keys.candidates("new", "RS256")
    assert publisher.asked == 1
    now += 15
    assert keys.candidates("new", "RS256")
    # The answer of the slow one is older.
    publisher.is_over.set()
    slow.join(10)
    assert not slow.is_alive()
    assert keys.candidates("new", "RS256")
    assert publisher.asked == 2


def test_a_source_that_trickles_for_ever_does_not_collect_threads(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_keys, "_TIMEOUT_SECONDS", 0.2)
    now = 0.0
    keys = KeySet(publisher.url, clock=lambda: now)
    publisher.entries, publisher.trickles = [public(RSA_KEY, kid="one")], "head"
    for _ in range(15):
        with pytest.raises(TokenKeysUnavailableError):
            keys.candidates("one", "RS256")
        now += 15
    # At 0, 15, 45 and 105 s; and then at 225 s, when the source has recovered.
    assert sum(reader.is_alive() for reader in keys._readers) == 4
    publisher.trickles = ""
    assert keys.candidates("one", "RS256")


def test_a_source_that_does_not_end_takes_no_memory(publisher: Publisher, caplog: Any) -> None:
    publisher.entries = [public(RSA_KEY, kid="x" * 2_000_000)]
    with pytest.raises(TokenKeysUnavailableError):
        KeySet(publisher.url).candidates("one", "RS256")
    assert "above 1048576 bytes" in caplog.text


def test_one_thread_fetches_and_the_others_go_on(publisher: Publisher) -> None:
    now = 0.0
    keys = KeySet(publisher.url, clock=lambda: now)
    publisher.entries = [public(RSA_KEY, kid="one")]
    assert keys.candidates("one", "RS256")
    publisher.pause.clear()
    now += 300
    fetching = threading.Thread(target=keys.candidates, args=("one", "RS256"))
    fetching.start()
    wait_until(lambda: publisher.asked == 2, 5, what="a second fetch")
    assert keys.candidates("one", "RS256")
    assert fetching.is_alive()
    publisher.pause.set()
    fetching.join(10)
    assert publisher.asked == 2


# Caching


def test_a_verified_token_is_believed_until_it_expires_and_for_a_minute_at_most(monkeypatch: Any) -> None:
    now = time.time()
    verified = []
    found = verifier(clock=lambda: now)
    claims_of = found._claims

    def noted(text: str) -> dict[str, Any] | None:
        verified.append(text)
        return claims_of(text)

    monkeypatch.setattr(found, "_claims", noted)
    text = signed()
    for _ in range(100):
        assert found.caller_of(text)
    assert len(verified) == 1
    now += 60
    assert found.caller_of(text)
    assert len(verified) == 2
    # Its last seconds: what is cached does not outlive it.
    short = signed(exp=int(time.time()) - 3)
    assert found.caller_of(short)
    wait_until(lambda: verifier().caller_of(short) is None, 5, what="the token's end")
    now = time.time()
    assert found.caller_of(short) is None


def test_tokens_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_CACHED_TOKENS", 10)
    found = verifier()
    for number in range(50):
        assert found.caller_of(signed(sub=f"user-{number}"))
        assert found.caller_of(f"a.b.{number}") is None
    assert len(found._verified) <= 20
    assert not any(SECRET in repr(entry) or "eyJ" in repr(entry) for entry in found._verified)


# In a request


def authenticated(text: str) -> Any:
    request = APIRequestFactory().get("/messages/", HTTP_AUTHORIZATION=f"Bearer {text}")
    return BearerAuthentication().authenticate(Request(request))[0]


@pytest.mark.parametrize(
    "entry",
    [7, None, [], {}, {"kty": "oct"}, {"kty": "oct", "k": 7}, {"kty": "RSA", "n": "", "e": "AQAB"}, {"kty": 7},
     {**public(RSA_KEY), "alg": ["RS256"]}, {"kty": "OKP", "crv": [], "x": "AA"},
     {"kty": "EC", "crv": {}, "x": 1, "y": 1}, {**public(ED_KEY), "alg": "none"},
     json.loads(RSAAlgorithm.to_jwk(RSA_KEY))],
)  # fmt: skip
def test_a_key_that_cannot_verify_is_no_fault_of_the_others(jwks: Any, entry: Any) -> None:
    found = verifier(jwks=jwks(entry, public(ED_KEY)))
    assert found.caller_of(signed(ED_KEY, "EdDSA"))
    assert found.caller_of(signed(RSA_KEY, "RS256")) is None


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
def test_a_short_key_is_no_fault_of_the_others(jwks: Any) -> None:
    assert verifier(jwks=jwks(public(SHORT_RSA_KEY), public(RSA_KEY))).caller_of(signed(RSA_KEY, "RS256"))


def test_tokens_are_off_until_they_are_switched_on(settings: Any) -> None:
    with pytest.raises(AuthenticationFailed):
        authenticated(signed())
    settings.MESSAGES_TOKEN_SECRET = SECRET
    assert authenticated(signed()).recipient == "ada"
    settings.MESSAGES_TOKEN_AUDIENCE = "inbox"
    with pytest.raises(AuthenticationFailed):
        authenticated(signed())


def test_keys_that_cannot_be_fetched_are_not_the_clients_fault(settings: Any, tmp_path: Path) -> None:
    settings.MESSAGES_TOKEN_JWKS = str(tmp_path / "missing.json")
    with pytest.raises(TokenKeysUnavailableError) as refusal:
        authenticated(signed(RSA_KEY, "RS256"))
    problem = problem_of(refusal.value)
    assert problem
    assert (problem.status, problem.code) == (503, "token_keys_unavailable")


# The command


def created(*arguments: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    call_command("create_token", *arguments, stdout=out, stderr=err)
    assert err.getvalue() == ""
    return out.getvalue()


def test_create_token_prints_a_token_that_works(settings: Any) -> None:
    settings.MESSAGES_TOKEN_SECRET = f"{SECRET} {'o' * 40}"
    settings.MESSAGES_TOKEN_ISSUER = "https://id.example.com"
    output = created("--recipient", "ada", "--scopes", "manage, read", "--expires", "2m")
    caller = authenticated(output.removesuffix("\n"))
    assert (caller.recipient, set(caller.scopes)) == ("ada", {Scope.READ, Scope.MANAGE})
    found = jwt.decode(output.strip(), SECRET, ["HS256"], audience="messages")
    assert found["exp"] - found["iat"] == 120
    assert authenticated(created("--recipient", "ada").strip()).scopes == {Scope.READ}


def test_create_token_prints_a_token_that_works_for_the_longest_recipient(settings: Any) -> None:
    settings.MESSAGES_TOKEN_SECRET = SECRET
    settings.MESSAGES_TOKEN_ISSUER = ""
    recipient = "\N{GRINNING FACE}" * 255  # each of them is twelve characters in the claims
    assert authenticated(created("--recipient", recipient).strip()).recipient == recipient


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scopes", "read,send"], "'send'"),
        (["--scopes", "admin"], "'admin'"),
        (["--scopes", ","], "needs a scope"),
        (["--scopes", ""], "needs a scope"),
        (["--expires", "2d"], "1 day"),
        (["--expires", "2"], "15m or 90d"),
        (["--recipient", ""], "recipient"),
    ],
)
def test_create_token_says_what_is_wrong(settings: Any, arguments: list[str], message: str) -> None:
    settings.MESSAGES_TOKEN_SECRET = SECRET
    with pytest.raises(CommandError, match=message):
        created("--recipient", "ada", *arguments)


def test_create_token_says_how_to_switch_tokens_on(settings: Any) -> None:
    settings.MESSAGES_TOKEN_SECRET = ""
    with pytest.raises(CommandError, match="Set MESSAGES_TOKEN_SECRET"):
        created("--recipient", "ada")


def test_a_lifetime_of_zero_is_refused(settings: Any) -> None:
    settings.MESSAGES_TOKEN_SECRET = SECRET
    with pytest.raises(InvalidInputError):
        tokens.create(recipient="ada", scopes=["read"], lifetime=timedelta(0))


# Settings


def test_settings_of_tokens_are_checked(settings: Any, tmp_path: Path, jwks: Any) -> None:
    def found() -> list[str]:
        messages = [message for message in checks.run_checks() if (message.id or "").startswith("messaging.")]
        assert not any("hunter2" in str(message) for message in messages)
        return sorted(message.id or "" for message in messages)

    assert found() == []
    settings.MESSAGES_TOKEN_SECRET = f"{SECRET} hunter2"
    assert found() == ["messaging.E005"]
    settings.MESSAGES_TOKEN_SECRET = SECRET
    settings.MESSAGES_TOKEN_ISSUER = "https://id.example.com"
    settings.MESSAGES_TOKEN_JWKS = jwks(public(RSA_KEY))
    assert found() == []
    settings.MESSAGES_TOKEN_ISSUER = ""
    assert found() == ["messaging.W003"]
    settings.MESSAGES_TOKEN_JWKS = str(tmp_path / "missing.json")
    assert found() == ["messaging.E006", "messaging.W003"]
    settings.MESSAGES_TOKEN_JWKS = "http://id.example.com/jwks.json"
    assert found() == ["messaging.W002", "messaging.W003"]
    settings.MESSAGES_TOKEN_JWKS = "https://id.example.com/jwks.json"
    assert found() == ["messaging.W003"]
