// What makes the page more than readable; without it, all pictures and tables are there.

function enhanceTheme(button) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const isDark = () => (chosen ?? (dark.matches ? "dark" : "light")) === "dark";
  const tell = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.hidden = false;
  button.addEventListener("click", () => {
    chosen = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    tell();
  });
  dark.addEventListener("change", tell);
  tell();
}

// Rows of images whose pictures are on the page lead to them.
function enhanceImages(section, viewer) {
  const pictures = new Map(viewer.pictures.map((picture) => [picture.index, picture]));
  section.querySelectorAll("tr[data-picture]").forEach((row) => {
    const picture = pictures.get(row.dataset.picture);
    if (!picture) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "look";
    const name = row.querySelector(".name");
    button.append(...name.childNodes);
    name.append(button);
    button.addEventListener("click", () => {
      viewer.show(picture);
      viewer.root.scrollIntoView({ block: "start" });
    });
  });
}

enhanceTheme(document.querySelector(".theme"));
document.querySelectorAll("table.sortable").forEach(enhanceTable);
const viewers = [...document.querySelectorAll(".comparison")]
  .filter((section) => section.querySelector(".picture"))
  .map((section) => {
    const viewer = new Viewer(section);
    enhanceImages(section, viewer);
    return viewer;
  });
