"""What the real Hub has and this one has not: 501 with a sentence. And names of repos that are no names: 404.

These routes come last, after all that the hub does have, but for one that a repo's URL would match.
"""

import re

from fastapi import APIRouter
from starlette.requests import Request

from hubplugin.localhub.dependencies import Context, request_context
from hubplugin.localhub.http_errors import http_error, not_supported, repo_not_found

first = APIRouter()
router = APIRouter()

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
RUN = "Spaces that run"
# The beginning of a URL path -> what this hub does not have.
TOPICS = {
    r"api/(jobs|scheduled-jobs)\b": "jobs and no hardware to run them",
    r"api/spaces/(hardware|templates|semantic-search)$": RUN,
    r"api/spaces/[^/]+/[^/]+/(secrets|variables|runtime|hardware|sleeptime|storage|volumes)\b": RUN,
    r"api/spaces/[^/]+/[^/]+/(pause|restart|dev-mode|logs|events|metrics)\b": RUN,
    r"api/settings/(webhooks|mcp|notifications)\b": "webhooks and no notifications",
    r"(api/)?buckets\b": "buckets",
    r"api/kernels\b": "kernels",
    r"(api/)?(papers|daily_papers)\b": "papers",
    r"api/(models|datasets|spaces)/.+/like(rs)?$": "likes",
    r"api/users/[^/]+/likes\b": "likes",
    r"api/(users|organizations)/": "pages of users and organizations",
    r"api/(collections|models|datasets|spaces)/.+/resource-group$": "resource groups",
    r"api/datasets/[^/]+/[^/]+/(leaderboard|parquet|croissant)\b": "dataset viewer and no leaderboards",
    r"api/(models|datasets|spaces)/[^/]+/[^/]+/(scan|jwt|notebook|compare|treesize)\b": "such view of a repo",
    r"api/(models|datasets)-tags-by-type$": "list of all tags",
    r"api/(partners|inference-proxy|endpoints|billing|oauth|posts|blog|trending|quicksearch)\b": "such service",
    r"uploads$": "attachments",
    r"oauth/": "sign-in with OAuth",
}


@first.get("/api/spaces/zero-gpu/quota")
def zero_gpu_quota() -> None:
    """Not a Space of the name quota."""
    raise not_supported(RUN)


@router.api_route("/{name}/resolve/{path:path}", methods=METHODS)
@router.api_route("/{name}/raw/{path:path}", methods=METHODS)
@router.api_route("/{name}.git/{path:path}", methods=METHODS)
def file_without_namespace(context: Context) -> None:
    """A file in a repo whose id has no namespace, such as gpt2. This hub has no such repos."""
    raise repo_not_found(authenticated=context.user is not None)


@router.api_route("/{path:path}", methods=METHODS)
def not_here(request: Request) -> None:
    """Every other URL: 404 for a repo that does not exist, 501 for a topic of the real Hub, else 404."""
    path = request.url.path.lstrip("/")
    topic = next((topic for pattern, topic in TOPICS.items() if re.match(pattern, path)), None)
    match = re.fullmatch(r"api/(models|datasets|spaces)/([^/]+)(?:/([^/]+))?.*", path)
    if match and match[3] is None and topic == RUN:
        raise not_supported(topic)
    if match:
        context = request_context(request)
        with context.hub.store.read() as db:
            context.hub.access.authorize(db, context.user, match[1], f"{match[2]}/{match[3]}", "view")
    if topic:
        raise not_supported(topic)
    raise http_error(404, "NotFound", f"No such URL: /{path[:200]}")
