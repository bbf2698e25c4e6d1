"""One OpenAI-compatible endpoint in front of an engine per model: `pool` starts and stops engines, `forwarding` passes
requests on to them, `guard` says who may ask how much, `app` is the routes and `command` the server in the foreground.
Nothing here imports vLLM.
"""
