"""Addresses and messages that are safe to show, without the password in them."""

import re
from urllib.parse import urlsplit


def shown_uri(uri: str) -> str:
    """Mask the password in an address.

    Example:
        >>> shown_uri("postgresql://enigma:secret@127.0.0.1/mlflow")
        'postgresql://enigma:***@127.0.0.1/mlflow'
        >>> shown_uri("sqlite:////home/li/mlflow.db")
        'sqlite:////home/li/mlflow.db'
    """
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", uri)


def hide_password(text: str, uri: str) -> str:
    """Mask the password of an address wherever a library's message repeats it.

    Example:
        >>> hide_password("no route to enigma:secret@db", "postgresql://enigma:secret@db/mlflow")
        'no route to enigma:***@db'
    """
    password = urlsplit(uri).password
    return text.replace(password, "***") if password else text
