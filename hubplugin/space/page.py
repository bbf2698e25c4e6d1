"""The page: options, a plan that follows them, one run at a time, its result, and publishing with the visitor's token.

Knows Gradio's components and events. What they do is in desk.py; it knows no process and no Hub.
"""

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from hubplugin.space import options
from hubplugin.space.desk import NO_MANIFEST, NO_PLAN, Desk, Shown

HEAD = """<h1>Compress a model of the Hub</h1>
<p>GPTQ and structured pruning, measured beside the base, published with a card that says what it costs.</p>"""
TOKEN_NOTE = {
    "space": "Signing in is only needed to publish, and for models that are private or gated. The token stays in your "
    "browser's cookie and in requests to the Hub; it is not stored here.",
    "own": "Needed to publish, and for models that are private or gated. Left empty, the login of this machine "
    "(<code>hf auth login</code>) is used. It is not stored.",
    "shared": "Needed to publish, and for models that are private or gated. It is not stored.",
}
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
WATCHED: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
MOST_TEXT = "5mb"


def build(desk: Desk, *, on_space: bool) -> gr.Blocks:
    """The page of a desk. `on_space`: visitors sign in by Hugging Face's own button."""
    with gr.Blocks(title="hubplugin space", analytics_enabled=False, delete_cache=(3600, 7200)) as page:
        gr.HTML(HEAD, elem_id="head")
        with gr.Row():
            with gr.Column(scale=5, min_width=320, elem_id="options"):
                chosen = _options()
                token = _token(desk, on_space=on_space)
            with gr.Column(scale=6, min_width=320):
                plan = gr.HTML(NO_PLAN, elem_id="plan")
                manifest = gr.Code(
                    NO_MANIFEST,
                    language="yaml",
                    label="Manifest",
                    elem_id="manifest",
                    interactive=False,
                    buttons=["copy"],
                )
                with gr.Row():
                    start = gr.Button("Compress", variant="primary", elem_id="compress")
                    cancel = gr.Button("Cancel", elem_id="cancel", interactive=False)
                status = gr.HTML(elem_id="status")
                log = gr.Textbox(label="What the run says", lines=8, max_lines=8, elem_id="log", visible=False)
                result = gr.HTML(elem_id="result")
                publish = gr.Button("Publish to the Hub", variant="primary", elem_id="publish", visible=False)
                outcome = gr.HTML(elem_id="published")
        card = gr.HTML(elem_id="card")
        run = (start, cancel, status, log, result, publish, outcome, card)
        _events(desk, page, [token, *chosen], plan, manifest, run)
    return page


def _options() -> list[Any]:
    """The components of `options.Options`, in the order of its fields, and the file."""
    names = [(f"{bits} bits", bits) for bits in options.BITS]
    sizes = [("whole row" if size < 0 else str(size), size) for size in options.GROUP_SIZES]
    model = gr.Textbox(label="Model of the Hub", placeholder="owner/name", elem_id="model", autofocus=True, max_lines=1)
    method = gr.Radio(options.METHODS, value=options.QUANTIZE, label="Method", elem_id="method")
    bits = gr.Radio(names, value=4, label="Bits per weight", elem_id="bits")
    group = gr.Radio(sizes, value=128, label="Group size", info="Weights that share a scale", elem_id="group")
    symmetric = gr.Checkbox(True, label="Symmetric, without zero points", elem_id="symmetric")
    ratio = gr.Slider(
        0.05,
        0.6,
        0.2,
        step=0.05,
        label="Ratio to remove",
        info="Of the weights of the blocks, split over channels, heads and layers by measured costs",
        visible=False,
        elem_id="ratio",
    )
    source = gr.Radio(options.CALIBRATIONS, value=options.OWN, label="Calibration", elem_id="calibration")
    file = gr.File(
        label="Text in UTF-8", file_types=[".txt", ".md"], type="filepath", visible=False, elem_id="file", height=110
    )
    with gr.Row():
        samples = gr.Number(64, label="Sequences", precision=0, minimum=1, elem_id="samples", min_width=120)
        length = gr.Number(512, label="Tokens each", precision=0, minimum=16, elem_id="length", min_width=120)
    owner = gr.Textbox(
        label="Publish to",
        info="Your name on the Hub, or an organization; empty: nowhere",
        elem_id="owner",
        max_lines=1,
    )
    private = gr.Checkbox(True, label="Private repo", elem_id="private")
    accepted = gr.Checkbox(False, label="I have read and accept the base's licence", elem_id="licence")

    def fitting(method: str, source: str) -> list[Any]:
        grid = gr.update(visible=method != options.PRUNE)
        pruning, text = gr.update(visible=method != options.QUANTIZE), gr.update(visible=source == options.TEXT)
        return [grid, grid, grid, pruning, text]

    gr.on(
        [method.change, source.change],
        fitting,
        [method, source],
        [bits, group, symmetric, ratio, file],
        queue=False,
        **QUIET,
    )
    return [model, method, bits, group, symmetric, ratio, source, samples, length, owner, private, accepted, file]


def _token(desk: Desk, *, on_space: bool) -> gr.Textbox:
    """Where the visitor's token comes from: Hugging Face's button on a Space, else a field that hides it."""
    if on_space:
        gr.LoginButton(elem_id="login")
    field = gr.Textbox(
        label="Access token", type="password", elem_id="token", max_lines=1, visible=not on_space, placeholder="hf_..."
    )
    said = TOKEN_NOTE["space" if on_space else "own" if desk.own_machine else "shared"]
    gr.HTML(f'<p class="note">{said}</p>', elem_id="token-note")
    return field


def _events(
    desk: Desk, page: gr.Blocks, inputs: list[Any], plan: gr.HTML, manifest: gr.Code, run: tuple[Any, ...]
) -> None:
    start, cancel, _, _, _, publish, *_ = run
    shown = list(run)
    token, model, owner = inputs[0], inputs[1], inputs[10]

    def planned(request: gr.Request, signed: gr.OAuthToken | None, *values: Any) -> tuple[str, str]:
        return desk.plan(request.session_hash, signed.token if signed else None, *values)

    async def compressed(
        request: gr.Request, signed: gr.OAuthToken | None, *values: Any
    ) -> AsyncIterator[tuple[Any, ...]]:
        async for state in desk.compress(request.session_hash, signed.token if signed else None, *values):
            yield _updates(state)

    def cancelled(request: gr.Request) -> tuple[Any, ...]:
        return _updates(desk.cancel(request.session_hash))

    def published(request: gr.Request, signed: gr.OAuthToken | None, typed: str) -> tuple[Any, ...]:
        return _updates(desk.publish(request.session_hash, signed.token if signed else None, typed))

    def name(signed: gr.OAuthToken | None, typed: str, written: str) -> str:
        return written or desk.user_name(signed.token if signed else None, typed)

    def left(request: gr.Request) -> None:
        desk.visitors.leave(request.session_hash)

    written = [model, owner, token]  # asked once they are whole, not at each letter
    changes = [one.change for one in inputs if one not in written]
    changes += [listener for one in written for listener in (one.blur, one.submit)]
    gr.on(changes, planned, inputs, [manifest, plan], trigger_mode="always_last", concurrency_limit=4, **WATCHED)
    known = {"inputs": [token, owner], "outputs": owner, "concurrency_limit": 4, **QUIET}
    token.blur(name, **known).then(planned, inputs, [manifest, plan], **QUIET)
    page.load(name, **known)
    # The desk keeps the line: a run that waits in Gradio's would have to be cancelled by Gradio, which now and then
    # (6.31) draws its Error badge over what the desk says. "multiple": one that was cancelled may still be ending.
    start.click(compressed, inputs, shown, trigger_mode="multiple", concurrency_limit=None, **WATCHED)
    cancel.click(cancelled, None, shown, queue=False, **QUIET)
    publish.click(published, [token], shown, concurrency_limit=1, concurrency_id="publish", **WATCHED)
    page.unload(left)


def _updates(state: Shown) -> tuple[Any, ...]:
    """The buttons, the status, the log, the figures, what came of publishing, and the card."""
    return (
        gr.update(interactive=not state.running),
        gr.update(interactive=state.running),
        state.status,
        gr.update(value=state.log, visible=bool(state.log)),
        state.result,
        gr.update(visible=state.publishable),
        state.published,
        state.card,
    )
