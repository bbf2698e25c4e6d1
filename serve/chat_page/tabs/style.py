"""How the tabs look. Knows colours and sizes, and the classes that tables and plots have.

Gradio puts its own selector before each part of a list, those between brackets too. Rules also stand as they are
written, but for those within `@media`: there is no `:has(a, b)` in them (`tests/test_serve_style.py`).
"""

CSS = """
#tabs {flex-grow: 1; display: flex; flex-direction: column; gap: 0}
#tabs > .tab-wrapper {margin-bottom: 8px}
#tabs > .tabitem {padding: 0; border: none}
.block.tab {padding: 0 2px; overflow: visible}
.tab .html-container {padding: 0}
.tab [data-testid="status-tracker"] {display: none}
.tab p {margin: 0 0 8px; font-size: .9rem; color: var(--body-text-color-subdued); max-width: 70ch}
.tab code {font-family: var(--font-mono); font-size: .9em; color: var(--body-text-color)}
.tab .failure {border-left: 3px solid #ef4444; padding: 2px 0 2px 12px; margin: 8px 0; overflow-wrap: anywhere}
.tab .failure b {color: #dc2626; font-weight: 600}
.dark .tab .failure b {color: #f87171}
.tab .failure small {color: var(--body-text-color-subdued); font-size: .85rem}
.tab .box {overflow-x: auto; border: 1px solid var(--border-color-primary); border-radius: 8px; margin: 4px 0 20px}
.tab .box:focus-visible, .tab th button:focus-visible {outline: 2px solid var(--color-accent); outline-offset: -2px}
.tab table {border-collapse: separate; border-spacing: 0; width: 100%; margin: 0; padding: 0}
.tab table {font-size: .875rem; font-variant-numeric: tabular-nums}
.tab h2 {font-size: .95rem; font-weight: 600; margin: 0 0 8px; overflow-wrap: anywhere; color: var(--body-text-color)}
.tab .box table, .tab .box thead, .tab .box tbody, .tab .box tr {border: none; background: none}
.tab .box th, .tab .box td {padding: 6px 12px; white-space: nowrap; border: none}
.tab .box th, .tab .box td {text-align: left; font-weight: 400; color: var(--body-text-color)}
.tab .box tbody th, .tab .box tbody td {border-top: 1px solid var(--border-color-primary)}
.tab .box th.number, .tab .box td.number {text-align: right}
.tab .box th:first-child {position: sticky; left: 0; background: var(--body-background-fill)}
.tab .box thead th {color: var(--body-text-color-subdued); font-size: .8rem}
.tab th button {font: inherit; color: inherit; background: none; border: none; padding: 2px 0; cursor: pointer}
.tab th button:hover {color: var(--body-text-color)}
.tab th button::after {content: " \\2195"; opacity: .45}
.tab th[aria-sort="ascending"] button::after {content: " \\2191"; opacity: 1}
.tab th[aria-sort="descending"] button::after {content: " \\2193"; opacity: 1}
.tab .box tbody tr:hover th, .tab .box tbody tr:hover td {background: var(--background-fill-secondary)}
.tab .box tbody th.words {font-weight: 550; white-space: normal; overflow-wrap: anywhere; min-width: 15rem}
.tab .mark {font-size: .75rem; font-weight: 500; padding: 1px 7px; border-radius: 9px; white-space: nowrap}
.tab .mark {color: var(--body-text-color-subdued); border: 1px solid var(--border-color-primary)}
.tab .plots {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 20px}
#bench-results .plots {grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr))}
.tab .plot {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 8px}
.tab .plot svg {display: block; width: 100%; max-width: 640px; height: auto; margin: 0 auto; overflow: visible}
.tab .plot .wide {display: none}
@media (min-width: 500px) {
  #comparison .plot .wide {display: block}
  #comparison .plot .narrow {display: none}
}
#bench-results .plot svg {max-width: 420px}
.gradio-container:has(#compare-tab[style*="display: flex"] table) {max-width: 1500px !important}
.plot text {font: 12px system-ui, sans-serif; fill: var(--body-text-color-subdued); font-variant-numeric: tabular-nums}
.plot text.label {fill: var(--body-text-color); paint-order: stroke; stroke-linejoin: round}
.plot text.label {stroke: var(--body-background-fill); stroke-width: 3px}
.plot text.name {font-size: 12px; font-weight: 550}
.plot .grid {stroke: var(--border-color-primary); stroke-width: 1; opacity: .6}
.plot .axis, .plot .tick, .plot .lead {stroke: var(--body-text-color-subdued); stroke-width: 1; opacity: .7}
.plot .line {fill: none; stroke: var(--plot-0); stroke-width: 2}
.plot {--plot-0: #4f46e5; --plot-1: #c2410c; --plot-2: #0f766e}
.plot {--plot-3: #a21caf; --plot-4: #a16207; --plot-5: #475569}
.dark .plot {--plot-0: #a5b4fc; --plot-1: #fdba74; --plot-2: #5eead4}
.dark .plot {--plot-3: #f0abfc; --plot-4: #fde047; --plot-5: #cbd5e1}
.plot .point {stroke: var(--body-background-fill); stroke-width: 1.5}
.plot .marked {stroke: var(--body-text-color)}
.plot .group0 {fill: var(--plot-0)} .plot .group1 {fill: var(--plot-1)} .plot .group2 {fill: var(--plot-2)}
.plot .group3 {fill: var(--plot-3)} .plot .group4 {fill: var(--plot-4)} .plot .group5 {fill: var(--plot-5)}
#bench {gap: 16px; align-items: start}
#bench-model input {padding-right: 22px; text-overflow: ellipsis}
#bench-buttons {gap: 8px; justify-content: flex-start; margin: 4px 0}
#bench-buttons button {flex: 0 0 auto; width: auto}
#bench-tab:has(progress) #bench-start, #bench-tab:not(:has(progress)) #bench-stop {opacity: .55}
#bench-progress [role="status"] {font-size: .9rem; min-height: 1.4rem; overflow-wrap: anywhere}
#bench-progress progress {width: 100%; height: 8px; appearance: none}
#bench-progress progress {border: none; border-radius: 4px; overflow: hidden}
#bench-progress progress, #bench-progress progress::-webkit-progress-bar {background: var(--border-color-primary)}
#bench-progress progress::-webkit-progress-value {background: var(--color-accent)}
#bench-progress progress::-moz-progress-bar {background: var(--color-accent)}
@media (max-width: 640px) {
  #bench .form {flex-direction: column}
  .tab .box th.words:first-child {min-width: 40vw; max-width: 40vw}
}
"""
