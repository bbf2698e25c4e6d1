"""How the chat page looks. Knows colours and fonts; nothing of conversations."""

from typing import Any

import gradio as gr

CSS = """
.gradio-container {width: 100% !important; max-width: 1080px !important; margin: 0 auto !important}
body .gradio-container > .main {padding: 16px clamp(10px, 3vw, 32px) !important}
footer {display: none !important}
#head {padding: 0 2px}
#head .html-container {display: flex; flex-wrap: wrap; align-items: baseline; column-gap: .75rem; padding: 0}
#head h1 {font-size: 1.2rem; font-weight: 650; letter-spacing: -.01em; margin: 0}
#head span {color: var(--body-text-color-subdued); font-size: .85rem}
#head + .row {column-gap: 32px}
#main > * {flex-grow: 0 !important}
#main > #chat {flex-grow: 1 !important; border-radius: 12px; min-height: 300px}
#chat button[aria-label="Clear"], #chat .icon-button-wrapper.top-panel {display: none}
#chat .message {font-size: .95rem; line-height: 1.55; border-radius: 12px; border: none; box-shadow: none}
#chat .user.message {padding: 7px 14px}
#chat .bot.message {background: transparent; padding: 0}
#chat .message-buttons {opacity: .45}
#chat .message-buttons * {border: none; box-shadow: none; background: transparent}
#chat .message-buttons:hover {opacity: 1}
#chat .failure {border-left: 3px solid #ef4444; padding: 2px 0 2px 12px; color: var(--body-text-color)}
#chat .failure b {color: #ef4444; font-weight: 600}
#chat .failure small {color: var(--body-text-color-subdued); font-size: .85rem}
#chat .md ul {list-style: disc}
#chat .md ul ul {list-style: circle}
#chat .md :is(ul, ol) :is(ul, ol) {font-size: inherit}
#chat .md .task-list-item {list-style: none; margin-left: -1.2em}
#chat .md .task-list-item-checkbox:checked {background-color: var(--color-accent); border-color: var(--color-accent)}
#chat .md .code_wrap {margin: .6em 0}
#chat .md .code_wrap pre {overflow-x: auto; border-radius: 8px}
#chat .md .code_wrap code {white-space: pre; overflow-wrap: normal}
.dark #chat .md .code_wrap pre {background: var(--body-background-fill)}
.dark #chat .md .token.comment {color: var(--body-text-color-subdued)}
#chat .md :not(pre) > code {display: inline; white-space: pre-wrap; font-size: .85em}
#chat .md .table {overflow-x: auto; margin: .8em 0}
#chat .md table {overflow-wrap: normal; word-break: normal; width: auto; margin: 0}
#chat .md .katex-display {overflow: auto hidden; padding: 2px 0; margin: .7em 0}
#chat .md .unfinished {font-family: var(--font-mono); font-size: .85em; color: var(--body-text-color-subdued)}
#chat .md .unfinished {white-space: pre-wrap}
#status {min-height: 1.5rem; padding: 0 4px}
#status p {color: var(--body-text-color-subdued); font-size: .85rem; margin: 0}
#status p {font-variant-numeric: tabular-nums}
#status strong {color: var(--body-text-color); font-weight: 600}
#box {border-radius: 12px; padding: 8px 8px 8px 12px}
#box textarea {background: transparent; border: none; box-shadow: none; padding: 6px 2px}
#box .submit-button, #box .stop-button {border-radius: 8px; padding: 4px 16px; font-weight: 550}
#box .submit-button {background: var(--color-accent); color: white}
#settings > *, #settings .form > * {flex-grow: 0 !important}
#settings .form {border: none; box-shadow: none; background: transparent; gap: 22px}
#settings .block {border: none; box-shadow: none; background: transparent; padding: 0}
#settings input.border-none {padding-right: 22px; text-overflow: ellipsis}
#settings button#clear {font-size: .9rem; font-weight: 500; margin-top: 6px}
@media (max-width: 640px) {
  #main > #chat {min-height: 62vh}
}
"""


def theme() -> Any:
    """Quiet greys, one accent, and the fonts the reader's system has."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
