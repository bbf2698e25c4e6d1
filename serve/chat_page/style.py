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
#chat-tab > .row, #chat-tab .row:has(> #main) {column-gap: 32px}
#main > * {flex-grow: 0 !important}
#main > #talks {flex-grow: 1 !important; column-gap: 28px}
.talk > * {flex-grow: 0 !important}
.talk {gap: 8px}
.talk > .said {flex-grow: 1 !important; border-radius: 12px; min-height: 300px}
#main .said button[aria-label="Clear"], #main .said .icon-button-wrapper.top-panel {display: none}
#main .said .message {font-size: .95rem; line-height: 1.55; border-radius: 12px; border: none; box-shadow: none}
#main .said .user.message {padding: 7px 14px}
#main .said .bot.message {background: transparent; padding: 0}
#main .said .message-buttons {opacity: .45}
#main .said .message-buttons * {border: none; box-shadow: none; background: transparent}
#main .said .message-buttons:hover {opacity: 1}
#main .said .failure {border-left: 3px solid #ef4444; padding: 2px 0 2px 12px; color: var(--body-text-color)}
#main .said .failure b {color: #ef4444; font-weight: 600}
#main .said .failure small {color: var(--body-text-color-subdued); font-size: .85rem}
#main .said .md ul {list-style: disc}
#main .said .md ul ul {list-style: circle}
#main .said .md :is(ul, ol) :is(ul, ol) {font-size: inherit}
#main .said .md .task-list-item {list-style: none; margin-left: -1.2em}
#main .said .task-list-item-checkbox:checked {background-color: var(--color-accent); border-color: var(--color-accent)}
#main .said .md .code_wrap {margin: .6em 0}
#main .said .md .code_wrap pre {overflow-x: auto; border-radius: 8px}
#main .said .md .code_wrap code {white-space: pre; overflow-wrap: normal}
.dark #main .said .md .code_wrap pre {background: var(--body-background-fill)}
.dark #main .said .md .token.comment {color: var(--body-text-color-subdued)}
#main .said .md :not(pre) > code {display: inline; white-space: pre-wrap; font-size: .85em}
#main .said .md .table {overflow-x: auto; margin: .8em 0}
#main .said .md table {overflow-wrap: normal; word-break: normal; width: auto; margin: 0}
#main .said .md .katex-display {overflow: auto hidden; padding: 2px 0; margin: .7em 0}
#main .said .md .unfinished {font-family: var(--font-mono); font-size: .85em; color: var(--body-text-color-subdued)}
#main .said .md .unfinished {white-space: pre-wrap}
#main .said mark.differs {background: #fde68a; color: #1e293b; border-radius: 3px; padding: 0 1px}
#main .said mark.place {padding: 0 3px; margin-left: 2px}
#main .said mark.place::after {content: "\\2038"}
#main .said mark.differs::before {content: "the answers differ from here on: "; position: absolute; width: 1px}
#main .said mark.differs::before {height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap}
#difference {padding: 0 4px; font-size: .9rem}
#difference:not(:has(p)) {position: absolute}
#difference p {margin: 0}
.block.about:not(:has(b)) {display: none}
:is(.about, #difference) .html-container {padding: 0}
:is(.about, #difference) [data-testid="status-tracker"] {display: none}
.block.about {padding: 0 4px; font-size: .85rem}
.about b {display: block; font-size: .95rem; font-weight: 600; overflow-wrap: anywhere}
.about span {color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; overflow-wrap: anywhere}
#actions {gap: 2px; flex-wrap: wrap}
#actions button {flex: 0 0 auto; width: auto; min-width: 0; white-space: nowrap; padding: 2px 8px}
#actions button {background: transparent; border: none; box-shadow: none}
#actions button {color: var(--body-text-color-subdued); font-size: .85rem; font-weight: 450}
#actions button:hover {color: var(--body-text-color)}
.gradio-container:has(#talk-b) {max-width: 1500px !important}
@media (min-width: 1000px) {
  #talks:has(#talk-b) {display: grid; grid-template: auto 1fr auto / 1fr 1fr}
  #talks:has(#talk-b) .said {height: max(400px, 100vh - 360px) !important}
  #talks:has(#talk-b) > .talk {display: grid; grid-row: span 3; grid-template-rows: subgrid; min-width: 0 !important}
}
.talk > .status {min-height: 1.5rem; padding: 0 4px}
#main .status p {color: var(--body-text-color-subdued); font-size: .85rem; margin: 0}
#main .status p {font-variant-numeric: tabular-nums}
#main .status strong {color: var(--body-text-color); font-weight: 600}
#box {border-radius: 12px; padding: 8px 8px 8px 12px}
#box textarea {background: transparent; border: none; box-shadow: none; padding: 6px 2px}
#box .submit-button, #box .stop-button {border-radius: 8px; padding: 4px 16px; font-weight: 550}
#box .submit-button {background: var(--color-accent); color: white}
#settings > *, #settings .form > * {flex-grow: 0 !important}
#settings .form {border: none; box-shadow: none; background: transparent; gap: 16px}
#settings .block {border: none; box-shadow: none; background: transparent; padding: 0}
#settings .head {column-gap: 4px}
#settings input.border-none {padding-right: 22px; text-overflow: ellipsis}
#settings button#clear {font-size: .9rem; font-weight: 500; margin-top: 6px}
@media (max-width: 640px) {
  .talk > .said {min-height: 62vh}
  #talks:has(#talk-b) .said {min-height: 44vh}
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
