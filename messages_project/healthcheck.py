"""`python -m messages_project.healthcheck`: exit status 0 if the process on this machine answers.

The HEALTHCHECK of the image. It ignores proxy variables of the environment, and needs no settings.
"""

import http.client
import sys

from messages_project.env import Env


def main() -> None:
    env = Env()
    bind = env.server("BIND", "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104 - a comparison
    connection = http.client.HTTPConnection(host, env.port("PORT", 8000), timeout=3)
    try:
        connection.request("GET", "/livez")
        status = connection.getresponse().status
    except OSError as error:
        sys.exit(f"no answer from {host}: {error}")
    sys.exit(0 if status == http.HTTPStatus.OK else f"/livez answered {status}")


if __name__ == "__main__":
    main()
