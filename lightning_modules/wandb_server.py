"""Whether W&B records online, and whether its server can be reached: known before any work, not after it.

Looks where W&B looks, without importing it: it reads its environment once.
"""

import configparser
import netrc
import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from pytorch_lightning.utilities.rank_zero import rank_zero_only

OFFLINE_MODES = ("offline", "disabled", "dryrun")
SECONDS = 10.0
"""How long to wait for the server; W&B itself tries for two minutes."""

WANDB_WAY_OUT = (
    "Set WANDB_MODE=offline: the run is recorded on this disk, and `wandb sync` brings it up once the server is reached"
)


def set_wandb_mode() -> None:
    """Without an API key, W&B stops the run: make it an offline one, unless WANDB_MODE says something else."""
    if "WANDB_MODE" in os.environ or os.environ.get("WANDB_API_KEY"):
        return
    host = urlsplit(_base_url()).hostname or ""
    home = Path.home()
    files = [Path(os.environ["NETRC"])] if "NETRC" in os.environ else [home / ".netrc", home / "_netrc"]
    if not any(_has_key(file, host) for file in files):
        os.environ["WANDB_MODE"] = "offline"


def wandb_mode() -> str:
    """`online`, or what WANDB_MODE or `wandb offline` have set."""
    return _setting("mode") or "online"


@rank_zero_only
def check_wandb() -> None:
    """Raises:
    ConnectionError: the run is to be recorded online, and the server gives no connection; says what to do.
    """
    reason = None if wandb_mode() in OFFLINE_MODES else unreachable()
    if reason is not None:
        raise ConnectionError(
            f"Weights & Biases cannot be reached: {reason}, and this run is to be recorded online. {WANDB_WAY_OUT}"
        )


def unreachable() -> str | None:
    """Why W&B's server gives no connection; None where it gives one, and behind a proxy, which a connection past it
    does not tell of."""
    url = urlsplit(_base_url())
    proxies = getproxies()  # also those that are written in capitals
    if url.hostname is None or any(proxies.get(name) or _setting(f"{name}_proxy") for name in ("http", "https", "all")):
        return None
    port = url.port or (80 if url.scheme == "http" else 443)
    found: list[str | None] = []
    # A thread, for looking up a name takes as long as the system likes.
    attempt = threading.Thread(target=lambda: found.append(_refusal(url.hostname or "", port)), daemon=True)
    attempt.start()
    attempt.join(SECONDS)
    reason = found[0] if found else f"no answer in {SECONDS:.0f} s"
    return None if reason is None else f"{url.hostname}:{port} ({reason})"


def _refusal(host: str, port: int) -> str | None:
    try:
        socket.create_connection((host, port), timeout=SECONDS / 3).close()
    except OSError as error:
        return str(error)
    return None


def _base_url() -> str:
    return _setting("base_url") or "https://api.wandb.ai"


def _setting(name: str) -> str | None:
    """WANDB_<NAME>, or what `wandb login --host` or `wandb offline` wrote; a folder's own file wins over the user's."""
    if value := os.environ.get(f"WANDB_{name.upper()}"):
        return value
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    files = configparser.ConfigParser(interpolation=None)
    try:
        files.read([user / "settings", Path(os.environ.get("WANDB_DIR") or ".") / "wandb" / "settings"])
    except (configparser.Error, UnicodeDecodeError):
        return None
    return files.get("default", name, fallback=None)


def _has_key(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
