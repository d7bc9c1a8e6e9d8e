"""Keys of documents and fingerprints of tokenizers."""

import hashlib
import json
import secrets
from typing import Any

from ..documents import Document

CUTTING = 1  # changes with the rules of cutting.py and terms.py


def document_key(document: Document, allow_special_tokens: bool = False) -> str:
    """The name of a document in states: a digest of its files, or a random number for
    standard input and pipes, which cannot be read twice."""
    digest = document.digest()
    if digest is None:
        return secrets.token_hex(32)
    return sha256(f"{CUTTING} {bool(allow_special_tokens)} {digest}")


def fingerprint(tokenizer: Any) -> str:
    """The SHA-256 of a tokenizer's behaviour."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sha256(repr(sorted(tokenizer.get_vocab().items())))
    # Padding and truncation change when it is used.
    state = {**json.loads(backend.to_str()), "padding": None, "truncation": None}
    return sha256(json.dumps(state))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
