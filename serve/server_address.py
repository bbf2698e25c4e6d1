"""Where a server is asked, and with which key. Knows URLs and headers; sends nothing."""

import re

import httpx

from hubplugin.errors import ServeError

PASSWORD = re.compile(r"(?<=//)[^/]*@")  # of a URL that is shown


def endpoint(base_url: str) -> str:
    """The URL as servers are asked under it: with the path that was given, with /v1 where there is none.

    Its query is sent and not shown, since some servers take keys there. ServeError where it is no URL, or carries a
    password.
    """
    try:
        url = httpx.URL(base_url.strip())
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 80) < 65536:
        raise ServeError(
            PASSWORD.sub("", base_url) or "url", "is no http URL", "give something like http://127.0.0.1:8000"
        )
    if url.userinfo:
        raise ServeError(url.host, "the URL carries a password", "put the key into VLLM_API_KEY")
    path = url.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/models").rstrip("/") or "/v1"
    return str(url.copy_with(path=path, query=None, fragment=None))


def address(base_url: str, path: str) -> httpx.URL:
    """Where a request goes: `path` under the endpoint, with the query that the URL was given with."""
    return httpx.URL(f"{endpoint(base_url)}/{path}").copy_with(query=httpx.URL(base_url.strip()).query or None)


def headers(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()
    if not key.isascii() or not key.isprintable():
        raise ServeError(
            "VLLM_API_KEY", "holds characters that no header can carry", "look for what was pasted with it"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}
