"""Routes about the sender of a request: whoami."""

from typing import Any

from fastapi import APIRouter

from hubplugin.localhub.dependencies import Context
from hubplugin.localhub.users import require_user

router = APIRouter()


@router.get("/api/whoami-v2")
def whoami(context: Context) -> dict[str, Any]:
    """The user of the token, and the namespaces that they own as organizations."""
    user = require_user(context.user)
    with context.hub.store.read() as db:
        organizations = context.hub.access.organizations(db, user)
    return {
        "type": "user",
        "id": user.name,
        "name": user.name,
        "fullname": user.name,
        "isPro": False,
        "orgs": [
            {"type": "org", "id": name, "name": name, "fullname": name, "roleInOrg": "admin"} for name in organizations
        ],
        "auth": {"type": "access_token", "accessToken": {"displayName": "local", "role": user.role}},
    }


@router.get("/api/agent-harnesses")
def agent_harnesses() -> dict[str, Any]:
    """An empty list. huggingface_hub asks for it before its first request."""
    return {"standardEnvVars": [], "harnesses": {}}
