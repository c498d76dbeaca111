"""Addresses and messages that are safe to show, without the password in them."""

import re
from urllib.parse import unquote

HTTP_PASSWORD = re.compile(r"(?<=://)([^/@:]*):([^/@]*)@")
# SQLAlchemy also accepts a password with a slash in it.
DATABASE_PASSWORD = re.compile(r"(?<=://)([^/@:]*):([^@]*)@")


def shown_uri(uri: str) -> str:
    """Mask the password in an address.

    Example:
        >>> shown_uri("postgresql://enigma:secret@127.0.0.1/mlflow")
        'postgresql://enigma:***@127.0.0.1/mlflow'
        >>> shown_uri("sqlite:////home/li/mlflow.db")
        'sqlite:////home/li/mlflow.db'
    """
    return _password_in(uri).sub(r"\1:***@", uri)


def hide_password(text: str, uri: str) -> str:
    """Mask the password of an address wherever a library's message repeats it.

    Example:
        >>> hide_password("no route to enigma:secret@db", "postgresql://enigma:secret@db/mlflow")
        'no route to enigma:***@db'
    """
    found = _password_in(uri).search(uri)
    for password in (found[2], unquote(found[2])) if found and found[2] else ():
        text = text.replace(password, "***")
    return text


def _password_in(uri: str) -> re.Pattern[str]:
    http = uri.lower().startswith(("http://", "https://"))
    return HTTP_PASSWORD if http else DATABASE_PASSWORD
