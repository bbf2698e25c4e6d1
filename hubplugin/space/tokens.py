"""Whose access token a request of a visitor carries: their own, this machine's, or none.

Tokens pass through here and are kept nowhere. Knows no page.
"""

import re

from hubplugin.errors import HubError
from hubplugin.hub.client import Token


def of_visitor(typed: str | None, signed_in: str | None, *, own_machine: bool) -> Token:
    """The token of whoever signed in or typed one; else on one's own machine that of the machine, and else none.

    A page that others reach never lends them the token of the machine it runs on. Raises HubError for what cannot be a
    token, which is not shown.
    """
    given = (signed_in or typed or "").strip()
    if not given:
        return None if own_machine else False
    if not re.fullmatch(r"[\x21-\x7e]{1,2048}", given):
        raise HubError("token", "holds spaces or letters that no access token has", "copy it again, whole and alone")
    return given
