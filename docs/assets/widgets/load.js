// Finds the widgets of a page and puts each one in its figure's place. A page without widgets loads nothing more;
// where scripts are off, or a file does not arrive, the figure stays.
const places = document.querySelectorAll(".widget[data-widget]");

if (places.length) {
  const style = document.createElement("link");
  style.rel = "stylesheet";
  style.href = new URL("widgets.css", import.meta.url);
  style.onload = () => {
    for (const place of places) import(`./${place.dataset.widget}.js`).then(({ mount }) => mount(place));
  };
  document.head.append(style);
}
