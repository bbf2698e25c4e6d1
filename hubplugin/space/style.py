"""How the page looks, beside what it has from the chat page. Knows elements of the page; no Gradio and no content."""

CSS = """
.gradio-container {width: 100% !important; max-width: 1180px !important; margin: 0 auto !important}
body .gradio-container > .main {padding: 16px clamp(10px, 3vw, 32px) !important}
footer {display: none !important}
.gradio-container {--quiet: var(--neutral-500)}
.dark .gradio-container, .gradio-container.dark {--quiet: var(--neutral-400)}
#head .html-container, #token-note .html-container {padding: 0 !important}
#status {min-height: 2.6rem}
#head h1 {font-size: 1.25rem; font-weight: 650; letter-spacing: -.01em; margin: 0}
#head p {color: var(--quiet); font-size: .92rem; margin: 2px 0 0}
#options .form {border: none; box-shadow: none; background: transparent; gap: 14px}
#options .block {border: none !important; box-shadow: none; background: transparent; padding: 0}
#options #file {border: 1px dashed var(--border-color-primary) !important; padding: 6px}
#options fieldset .wrap {gap: 6px}
.note {color: var(--quiet); font-size: .85rem; margin: 0}
h3 {font-size: 1rem; font-weight: 620; margin: 0 0 8px; overflow-wrap: anywhere}
.facts {border: none !important}
.facts {border-collapse: collapse; width: 100%; margin: 0 0 12px; font-size: .9rem; table-layout: auto}
.facts th, .facts td {text-align: left; vertical-align: top; border: none !important}
.facts th, .facts td {padding: 4px 12px 4px 0 !important}
.facts tr {border: none !important; border-bottom: 1px solid var(--border-color-primary) !important}
.facts th {font-weight: 450; color: var(--quiet); width: 36%}
.facts td {overflow-wrap: anywhere; font-variant-numeric: tabular-nums}
#plan ul {list-style: disc; padding-left: 1.2em; font-size: .85rem; color: var(--quiet)}
.fault {border-left: 3px solid #dc2626; padding: 2px 0 2px 14px; margin: 0; display: grid}
.fault {grid-template-columns: max-content 1fr; gap: 3px 12px; font-size: .92rem}
.fault dt {color: var(--quiet)}
.fault dd {margin: 0; overflow-wrap: anywhere}
.tiles {display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 10px; margin-bottom: 14px}
.tiles div {border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 10px 12px}
.tiles b {display: block; font-size: 1.15rem; font-weight: 620; font-variant-numeric: tabular-nums}
.tiles span {color: var(--quiet); font-size: .8rem}
.done {font-size: .95rem; margin: 0 0 4px; overflow-wrap: anywhere}
.run {font-size: .92rem; margin: 0; font-variant-numeric: tabular-nums}
.run progress {width: 100%; height: 8px; accent-color: var(--color-accent)}
#log textarea {font-family: var(--font-mono); font-size: .78rem; line-height: 1.45}
#manifest {max-width: 100%}
.card {font-size: .92rem; line-height: 1.55; overflow-wrap: anywhere}
.card h1 {font-size: 1.2rem; font-weight: 650; margin: 0 0 8px}
.card h2 {font-size: 1.02rem; font-weight: 620; margin: 20px 0 6px}
.card p, .card ul, .card pre {margin: 8px 0}
.card ul {list-style: disc; padding-left: 1.3em}
.card table {border: none !important}
.card table {display: block; overflow-x: auto; border-collapse: collapse; font-size: .86rem; margin: 8px 0}
.card table {overflow-wrap: normal}
.card th, .card td {border: 1px solid var(--border-color-primary); padding: 4px 10px; text-align: left}
.card td {min-width: 5.5em}
.card pre {overflow-x: auto; background: var(--background-fill-secondary); border-radius: 8px; padding: 10px 12px}
.card pre code {white-space: pre; overflow-wrap: normal; font-size: .8rem}
.card :not(pre) > code {font-size: .85em}
.card img {max-width: 100%; background: white; border-radius: 8px}
.card a, .done a {color: var(--link-text-color); text-decoration: underline}
"""
