"""A password is in no address that is shown, and in no message that repeats one."""

import pytest

from pipelines.tracking.uris import hide_password, shown_uri


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://li:s3cret@mlflow:5000/a@b", "http://li:***@mlflow:5000/a@b"),
        ("http://:s3cret@mlflow", "http://:***@mlflow"),
        ("postgresql+psycopg://li:s3c%40ret@db/x", "postgresql+psycopg://li:***@db/x"),
        ("postgresql://li:a/b@db/x", "postgresql://li:***@db/x"),
        ("http://li@mlflow:5000/", "http://li@mlflow:5000/"),
        ("http://mlflow:5000/a:b@c", "http://mlflow:5000/a:b@c"),
        ("http://mlflow/a:b@c", "http://mlflow/a:b@c"),
    ],
)
def test_only_the_password_of_an_address_is_hidden(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown


def test_a_message_loses_the_password_wherever_it_repeats_it() -> None:
    uri = "postgresql://li:s3cret@db/mlflow"
    message = f"cannot open {uri}: password s3cret of li was rejected"
    hidden = hide_password(message, uri)
    assert "s3cret" not in hidden
    assert hidden == message.replace("s3cret", "***")
    assert hide_password(message, "postgresql://li@db/mlflow") == message
    assert hide_password("", "sqlite:///mlflow.db") == ""


def test_a_password_is_hidden_as_it_is_written_and_as_it_is_meant() -> None:
    uri = "postgresql://li:p%40ss@db/mlflow"
    assert hide_password("p%40ss or p@ss", uri) == "*** or ***"
