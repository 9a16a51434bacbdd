// Renders every formula with KaTeX 0.19.1 (MIT licence), which lies in katex/ as npm packs it: nothing is fetched.
document.addEventListener("DOMContentLoaded", () => {
  const options = {
    delimiters: [
      { left: "$$", right: "$$", display: true },
      { left: "\\[", right: "\\]", display: true },
      { left: "\\(", right: "\\)", display: false },
      { left: "$", right: "$", display: false },
    ],
    throwOnError: false,
  };
  for (const place of document.querySelectorAll(".arithmatex, .jp-RenderedMarkdown")) {
    renderMathInElement(place, options);
  }
});
