// A long name in a table may break after a dot, a slash or an underscore, or before a capital, and nowhere else.
document.addEventListener("DOMContentLoaded", () => {
  for (const name of document.querySelectorAll(".md-typeset table:not([class]) :is(code, a)")) {
    const walker = document.createTreeWalker(name, NodeFilter.SHOW_TEXT), words = [];
    while (walker.nextNode()) words.push(walker.currentNode);
    for (const word of words) {
      const parts = word.data.split(/(?<=[_./=:,(])(?=[^_./=:,()\s\d])|(?<=[a-z])(?=[A-Z])/);
      word.replaceWith(...parts.flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part])));
    }
  }
});
