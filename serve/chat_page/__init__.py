"""The chat page: what was said as HTML. Knows any OpenAI-compatible URL through `client`; no engine and no folder."""
