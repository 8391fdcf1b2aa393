"""`make fuzz`: Schemathesis with all its checks over the committed document, against the real service with a key.

What it is told about the service beyond the document stands in fuzz_hooks.py. FUZZ_SECONDS bounds the run; the
arguments go to Schemathesis, `--seed 7` for instance.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from messages_project import embedded_postgres, env
from tests.servers import PROJECT_DIR, RunningServer

CONFIGURATION = """\
hooks = "tests.fuzz_hooks"
# Threads of one process: CPython 3.11 cannot compile in two at once without an error now and then.
workers = 1
max-failures = 20
seed = 1

[generation]
# U+0000 is refused wherever it stands, which no schema can say of metadata.
allow-x00 = false
database = "none"
"""


def main() -> None:
    """Exit with Schemathesis' own status: 0 for a service and a document that agree."""
    seconds = os.environ.get("FUZZ_SECONDS") or "75"
    with tempfile.TemporaryDirectory(prefix="messages-fuzz-") as folder:
        os.environ["SECRET_KEY"] = "only-for-fuzzing-1f0c7d6b9a8e5c4d3f2a1b0c9d8e7f6a"
        os.environ["MESSAGES_ACCESS"] = "keys"
        if not env.is_set("POSTGRES_HOST"):
            # Stops when this process ends.
            embedded_postgres.start(Path(tempfile.mkdtemp(prefix="messages-fuzz-")), throwaway=True)
        configuration = Path(folder) / "schemathesis.toml"
        configuration.write_text(CONFIGURATION)
        with RunningServer(ACCESS_LOG="false") as server:
            status = _run(server.url, configuration, seconds)
            if status:
                sys.stdout.write(server.log)
    sys.exit(status)


def _run(url: str, configuration: Path, seconds: str) -> int:
    manage = [sys.executable, "manage.py", "create_api_key", "fuzz", "--scopes", "send,read,manage"]
    key = subprocess.run(manage, cwd=PROJECT_DIR, capture_output=True, text=True, check=True).stdout.strip()
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(configuration),
        "run", "openapi.yaml", "--url", url, "--header", f"Authorization: Bearer {key}",
        # The live process serves these.
        "--exclude-path-regex", "^/mailbox/(events|wait)$",
        "--checks", "all", "--max-time", seconds, *sys.argv[1:],
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=PROJECT_DIR, env=os.environ | {"PYTHONPATH": str(PROJECT_DIR)}, check=False
    ).returncode


if __name__ == "__main__":
    main()
