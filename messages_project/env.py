"""Typed readers of environment variables, which collect every fault. An empty variable counts as not set."""

import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_RATE = re.compile(r"[1-9][0-9]{0,8}/(?:s|min|h|d)", re.ASCII)
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?", re.ASCII)
_ANY_ORIGIN = re.compile(_ORIGIN.pattern.replace("https?", "[a-z][a-z0-9+.-]*"), re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)

# What ALLOWED_HOSTS may hold: a name, `.example.com` for it and all below it, an address, or `*`.
_HOST = re.compile(r"\*|\.?[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:.]+\]", re.ASCII | re.IGNORECASE)
_PUBLIC_URL = re.compile(
    r"(?P<origin>https?://(?P<host>[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?)"
    r"(?P<prefix>(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*)/?",
    re.ASCII,
)
_OWN_PORTS = {"http": ":80", "https": ":443"}
_SERVER = re.compile(r"(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?", re.ASCII | re.IGNORECASE)
# Kubernetes sets NAME_PORT to this if the namespace has a service called NAME (enableServiceLinks).
_SERVICE_LINK = re.compile(r"(?:tcp|udp|sctp)://[^/]+:([0-9]{1,5})")


class PublicUrl(NamedTuple):
    """The parts of a URL such as PUBLIC_URL; all are empty if it is not set."""

    origin: str = ""  # scheme://host[:port]
    host: str = ""
    prefix: str = ""  # /path without a slash at its end


class SettingsError(Exception):
    """One or more environment variables cannot be used. The message lists each of them, with what to do."""

    def __init__(self, faults: list[str]) -> None:
        lines = "".join(f"\n  - {fault}" for fault in faults)
        super().__init__(f"The configuration cannot be used:{lines}\nCorrect these variables and start again.")
        self.faults = faults


class Env:
    """Reads variables and collects every fault, so that one call of `verify` reports them all.

    A reader that finds a fault returns its default, so no value may be used before `verify`.
    """

    def __init__(self, source: Mapping[str, str] | None = None) -> None:
        self._source = os.environ if source is None else source
        self._read: set[str] = set()
        self._faults: list[str] = []

    def verify(self) -> None:
        """Raise SettingsError if any reader found a fault."""
        if self._faults:
            raise SettingsError(self._faults)

    def fault(self, text: str) -> None:
        """Add a fault that concerns more than one variable."""
        self._faults.append(text)

    def misspelt(self, prefix: str) -> None:
        """Report each variable with this prefix whose name is nearly that of a setting: it would have no effect."""
        for name in sorted(self._source.keys() - self._read):
            if name.startswith(prefix) and (meant := get_close_matches(name, self._read, 1, cutoff=0.88)):
                self.fault(f"{name} is no variable of this service; write {meant[0]}.")

    def _raw(self, name: str) -> str:
        self._read.add(name)
        raw = self._source.get(name, "")
        # Python decodes bytes of the environment that are not UTF-8 as lone surrogates (PEP 383).
        if raw.isascii() or raw.encode(errors="replace").decode() == raw:
            return raw
        self.fault(f"{name} is not UTF-8 text.")
        return ""

    def text(self, name: str, default: str = "") -> str:
        return self._raw(name).strip() or default

    def integer(self, name: str, default: int, *, minimum: int = 0, maximum: int = 2**31 - 1) -> int:
        raw = self.text(name)
        if re.fullmatch(r"[+-]?[0-9]{1,12}", raw, re.ASCII) and minimum <= int(raw) <= maximum:
            return int(raw)
        if raw:
            self.fault(f"{name}={raw!r} is not a whole number from {minimum} to {maximum}; leave it out for {default}.")
        return default

    def port(self, name: str, default: int, *, of_service: bool = False) -> int:
        """A port. A service link of Kubernetes counts as not set; with `of_service` its port is used."""
        if link := _SERVICE_LINK.fullmatch(self.text(name)):
            return int(link[1]) if of_service else default
        return self.integer(name, default, minimum=1, maximum=65_535)

    def flag(self, name: str, *, default: bool = False) -> bool:
        raw = self.text(name)
        if raw.lower() in _TRUE | _FALSE:
            return raw.lower() in _TRUE
        if raw:
            self.fault(f"{name}={raw!r} is neither true nor false; leave it out for {str(default).lower()}.")
        return default

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        raw = self.text(name, default)
        if raw in choices or raw == default:
            return raw
        self.fault(f"{name}={raw!r} is not one of {', '.join(choices)}; leave it out for {default or 'none'}.")
        return default

    def listing(self, name: str) -> list[str]:
        """A comma separated list, without its empty items."""
        items = [item.strip() for item in self.text(name).split(",")]
        return [item for item in items if item]

    def _matching(self, name: str, matches: Callable[[str], object], fault: str) -> list[str]:
        """A comma separated list of which each item matches."""
        items = self.listing(name)
        for item in items:
            if not matches(item):
                self.fault(f"{name}: {item!r} {fault}")
        return items

    def hosts(self, name: str, default: tuple[str, ...]) -> list[str]:
        """Host names as ALLOWED_HOSTS takes them."""
        fault = "is no host name; write it without scheme, port and path, like api.example.com."
        return self._matching(name, _HOST.fullmatch, fault) or list(default)

    def servers(self, name: str, default_port: int) -> list[tuple[str, int]]:
        """A comma separated list of host[:port], each once; an IPv6 address stands in brackets."""
        servers: list[tuple[str, int]] = []
        for item in self.listing(name):
            match = _SERVER.fullmatch(item)
            port = int(match["port"] or default_port) if match else 0
            if match is None or not (1 <= port <= 65_535 and _is_resolvable(match["host"])):
                self.fault(f"{name}: {item!r} is no server; write it like db2.internal or db2.internal:5433.")
            elif (server := (match["host"].strip("[]"), port)) in servers:
                self.fault(f"{name}: {item!r} stands more than once; keep one of them.")
            else:
                servers.append(server)
        return servers

    def server(self, name: str, default: str) -> str:
        """A host name or address without its port, or the folder of a socket."""
        host = re.sub(r"^\[([0-9a-f:.]+)\]$", r"\1", self.text(name, default), flags=re.IGNORECASE)
        has_more = "://" in host or re.fullmatch(r"(?:[^/:]+|\[.*\]):\d+", host)
        if has_more or not (host[0] in "/@" or _is_resolvable(host)):
            self.fault(f"{name} is no host; write its name or address alone, without a scheme and a port.")
        return host

    def public_url(self, name: str) -> PublicUrl:
        """A URL by which clients reach a process of the service: scheme, host, port, and a path prefix."""
        raw = self.text(name)
        match = _PUBLIC_URL.fullmatch(raw)
        if match and _has_possible_host(raw):
            return PublicUrl(_as_browsers_send(match["origin"]), match["host"], match["prefix"])
        if raw:
            self.fault(
                f"{name}={raw!r} is no URL that can be continued; write it in lower case, like"
                " https://example.com/inbox."
            )
        return PublicUrl()

    def origins(self, name: str, *, any_scheme: bool = False) -> list[str]:
        """Origins as browsers send them: scheme://host[:port], no path, lower case; the port of the scheme is removed.

        The scheme is http or https; with `any_scheme` also that of an app or extension, such as capacitor://localhost.
        """
        pattern = _ANY_ORIGIN if any_scheme else _ORIGIN
        origins = self._matching(
            name,
            lambda item: pattern.fullmatch(item) and _has_possible_host(item),
            "is no origin; write it like https://app.example.com, without a path.",
        )
        return [_as_browsers_send(origin) for origin in origins]

    def header_names(self, name: str) -> list[str]:
        """Names of HTTP headers (RFC 9110, 5.1)."""
        return self._matching(name, _TOKEN.fullmatch, "is no name of a header; write it like X-Client-Version.")

    def rate(self, name: str, default: str = "") -> str:
        """A rate such as `600/min` or `20/s`; empty means no limit."""
        raw = self.text(name, default)
        if raw and not _RATE.fullmatch(raw):
            self.fault(f"{name}={raw!r} is no rate; write it like 600/min or 20/s (s, min, h, d), or leave it out.")
            return ""
        return raw

    def secret(self, name: str, default: str = "") -> str:
        """A secret from NAME, or from the file that NAME_FILE names, without the line ends after it."""
        path = self.text(f"{name}_FILE")
        if not path:
            return self._raw(name).rstrip("\r\n") or default
        if self._source.get(name, ""):
            self.fault(f"{name} and {name}_FILE are both set; keep one of them.")
            return default
        found = ""
        try:
            found = Path(path).read_text(encoding="utf-8-sig").rstrip("\r\n")
            reason = "it is empty"
        except OSError as error:
            reason = str(error.strerror)
        except UnicodeDecodeError:
            reason = "it is not UTF-8 text"
        if not found:
            self.fault(f"{name}_FILE={path!r} cannot be read ({reason}); name a readable file that holds the secret.")
        return found or default


def _as_browsers_send(origin: str) -> str:
    """The origin without the port that belongs to its scheme, which browsers leave out."""
    return origin.removesuffix(_OWN_PORTS.get(origin.partition(":")[0], ""))


def _has_possible_host(url: str) -> bool:
    """Whether the port of a URL, and the address in brackets, may exist."""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _is_resolvable(hosts: str) -> bool:
    """Whether Python can look up each of these host names; it raises UnicodeError for an empty or a too long label."""
    try:
        return all(host.encode("idna") for host in hosts.split(","))
    except UnicodeError:
        return False


def is_set(name: str) -> bool:
    """Whether a variable is set and not empty."""
    return bool(os.environ.get(name, "").strip())


def default(**variables: str) -> None:
    """Set the variables that are not set, or empty."""
    for name, value in variables.items():
        if not is_set(name):
            os.environ[name] = value
