"""From a folder to an answer in a browser: `engine` runs vLLM as a process, `client` streams from any
OpenAI-compatible URL, `chat_page` is the chat page over `client`, `smoke` proves that vLLM loads a folder and
generates from it. Nothing here knows how a folder was made: of `hubplugin` only `errors` and `manifest` are
imported.
"""
