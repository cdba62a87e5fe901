# SPDX-License-Identifier: GPL-2.0-only
"""The two SSH keys of a cache: host key of the guests, and client key. Both are ed25519 and never leave the cache."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cache import Artefact, Cache

# cryptography is imported where a key is created or read; an existing image needs neither.
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_TYPE = b"ssh-ed25519"
_KEY = {"type": "ed25519", "use": "guests"}


@dataclass(frozen=True)
class Keys:
    """The keys of one cache.

    Args:
        directory: directory of ``host`` and ``client``, private keys in the format of OpenSSH.
    """

    directory: Path

    @property
    def client(self) -> Path:
        """The private client key."""
        return self.directory / "client"

    @property
    def client_public(self) -> str:
        """The public client key, as a line of authorized_keys."""
        return _public_line(_load(self.client))

    @property
    def host_public(self) -> str:
        """The public host key, as in known_hosts: type and base64."""
        return _public_line(_load(self.directory / "host"))

    @property
    def host_dropbear(self) -> bytes:
        """The private host key in the format of dropbear (buf_put_priv_key() in its signkey.c)."""
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            PublicFormat,
        )

        key = _load(self.directory / "host")
        private = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return _string(_TYPE) + _string(private + public)

    @property
    def fingerprint(self) -> str:
        """A digest of both keys."""
        return hashlib.sha256(f"{self.host_public} {self.client_public}".encode()).hexdigest()


def keys_artefact(cache: Cache) -> Artefact[Keys]:
    """The keys of `cache`, created when first needed."""
    return Artefact(cache, "ssh-keys", lambda: _KEY, _make, Keys)


def _make(directory: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    for name in ("host", "client"):
        path = directory / name
        path.touch(mode=0o600)
        path.write_bytes(
            Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        )


def _load(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    key = load_ssh_private_key(path.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey), f"{path} was made by us as ed25519"
    return key


def _public_line(key: Ed25519PrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _string(data: bytes) -> bytes:
    """A string of the SSH protocol (RFC 4251, section 5)."""
    return struct.pack(">I", len(data)) + data
