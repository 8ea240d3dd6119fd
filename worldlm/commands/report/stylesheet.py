"""The style sheet of the page, for small screens, paper, light and dark mode."""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1a1c1f; --soft: #5a6069; --page: #ffffff; --sheet: #f4f5f7; --line: #d9dce1; --link: #0060a8;
  --warn: #8a4b00; --warn-sheet: #fff3df; --edge: #0006;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8eb; --soft: #a3a9b3; --page: #14161a; --sheet: #1e2127; --line: #363b44; --link: #6cb8f5;
    --warn: #ffcf8a; --warn-sheet: #33260f; --edge: #fff5;
    --c0: #4aa3df; --c1: #f07f3c; --c2: #2fc197; --c3: #e29cc3; --c4: #f0b429; --c5: #7cc8f2; --c7: #a0a0a0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0 auto; padding: 1rem clamp(0.9rem, 3vw, 2rem) 3rem; max-width: 72rem;
  background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.2rem 0 0.6rem; padding-top: 0.7rem;
  border-top: 1px solid var(--line); }
p { margin: 0.5rem 0; max-width: 48rem; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; margin: 0.9rem 0; }
nav a { padding: 0.25rem 0; }
.note, footer { color: var(--soft); font-size: 0.875rem; }
.warning { background: var(--warn-sheet); color: var(--warn); padding: 0.6rem 0.8rem; border-radius: 0.4rem; }
.cards { list-style: none; display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 0.6rem;
  margin: 1rem 0; padding: 0; }
.cards li { background: var(--sheet); border-radius: 0.5rem; padding: 0.6rem 0.8rem; display: flex;
  flex-direction: column; }
.cards span, .cards small { color: var(--soft); font-size: 0.8125rem; line-height: 1.35; }
.cards strong { font-size: 1.2rem; line-height: 1.5; white-space: nowrap; font-variant-numeric: tabular-nums; }
.wide { margin: 0.8rem 0; --under: var(--page); }
.wide, pre { overflow-x: auto; /* a shadow at the edge where more follows; at the end its cover hides it */
  background: linear-gradient(to right, var(--under) 50%, transparent) left / 3rem 101% no-repeat local,
    linear-gradient(to left, var(--under) 50%, transparent) right / 3rem 101% no-repeat local,
    linear-gradient(to right, var(--edge), transparent) left / 0.9rem 100% no-repeat scroll,
    linear-gradient(to left, var(--edge), transparent) right / 0.9rem 100% no-repeat scroll, var(--under); }
.wide:focus-visible, summary:focus-visible, pre:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
tbody th { font-weight: 500; }
.words { text-align: left; }
th:first-child { position: sticky; left: 0; background: var(--page); padding-left: 0; }
td.words { white-space: normal; min-width: 6rem; max-width: 24rem; }
th span { padding-left: calc(var(--depth, 0) * 1em); }
.picture svg { display: block; width: var(--width); max-width: max(100%, calc(0.9 * var(--width))); height: auto; }
.picture text { font-family: system-ui, sans-serif; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 0.5rem 1rem; }
figure { margin: 0.2rem 0; min-width: 0; }
figcaption { font-size: 0.875rem; overflow-wrap: anywhere; }
.panels .picture { margin: 0; }
.panels .picture svg { width: 100%; max-width: 100%; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; padding: 0; margin: 0.6rem 0;
  font-size: 0.875rem; }
.swatch { display: inline-block; width: 1.8rem; height: 0.7em; margin-right: 0.4rem; color: var(--colour);
  background: linear-gradient(var(--colour), var(--colour)) center / 100% 2px no-repeat; font-size: 0.8em;
  line-height: 0.7em; text-align: center; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 1.2rem; margin: 0.6rem 0; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  tbody th { white-space: normal; min-width: 7.8rem; max-width: 9rem; overflow-wrap: anywhere; }
  th span { display: block; padding-left: calc(var(--depth, 0) * 0.7em); }
}
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 0.5rem; } }
pre { --under: var(--sheet); border-radius: 0.4rem; padding: 0.7rem 0.9rem; font-size: 0.8125rem;
  line-height: 1.45; max-height: 32rem; }
.command { white-space: pre-wrap; }
.command span { white-space: nowrap; }
details { margin: 0.7rem 0; }
summary { cursor: pointer; color: var(--link); padding: 0.3rem 0; }
.run { border: 1px solid var(--line); border-radius: 0.5rem; padding: 0.2rem 0.9rem; }
.run > summary { font-weight: 600; }
.checks { list-style: none; padding: 0; }
.checks li { padding-left: 2.6rem; position: relative; margin: 0.2rem 0; }
.checks b { position: absolute; left: 0; }
.checks .no b, .checks .no { color: var(--warn); }
footer { margin-top: 3rem; }
@media print {
  .wide, pre { overflow: visible; max-height: none; background: none; }
  .wide table { font-size: 0.7rem; }
  .words { white-space: normal; overflow-wrap: anywhere; }
  pre { white-space: pre-wrap; }
  .picture svg, .panels .picture svg { max-width: 100%; max-height: 24cm; }
  details::details-content { content-visibility: visible; block-size: auto; }
  h2, p:has(+ .picture), figcaption { break-after: avoid; }
  .picture, figure, .cards li, tr { break-inside: avoid; }
}
"""
