"""Notify people: a line in the log, and a POST to a webhook if one is set.

The address of the webhook comes from the environment only (`ENIGMA_WEBHOOK_URL`). It is a
secret, so no parameter holds it and no error message repeats it. The body is
`{"text": ...}`, which Slack, Mattermost and Feishu bots understand.
"""

import json
import logging
import os
import urllib.error
import urllib.request
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

WEBHOOK = "ENIGMA_WEBHOOK_URL"
TIMEOUT_S = 10.0

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


def notify(text: str, logger: Log) -> None:
    """Log a line and post it to the webhook; a webhook that fails stops nothing.

    Args:
        text: What happened.
        logger: The logger of the flow run.
    """
    logger.warning("notification: %s", text)
    url = os.environ.get(WEBHOOK)
    if not url:
        return
    if not url.startswith(("http://", "https://")):
        logger.warning("%s: expected an address of http or https; nothing was sent", WEBHOOK)
        return
    body = json.dumps({"text": text}, ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json; charset=utf-8"}
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        logger.warning("the webhook answered %d; nothing else is wrong", error.code)
    except OSError as error:
        logger.warning(
            "the webhook cannot be reached (%s); nothing else is wrong", type(error).__name__
        )


def tell_of_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Notify of a flow run that failed or crashed; a hook of Prefect."""
    profile = (flow_run.parameters or {}).get("profile", "")
    text = f"{flow.name}/{profile} ({flow_run.name}): {state.name}: {state.message}"
    notify(text, flow_run_logger(flow_run, flow))
