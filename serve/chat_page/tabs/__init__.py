"""The tabs beside the chat: all models of the server compared, and a small load on one of them, timed. Knows
`catalogue` and `client`; nothing of conversations."""
