// The viewer: one picture at a time, two panes for each autoencoder, all of them showing the same part of it.

class Viewer {
  constructor(section) {
    this.root = section.querySelector(".viewer");
    this.pictures = [...section.querySelectorAll(".picture")].map((item) => new PictureData(item));
    this.panes = [...this.root.querySelectorAll(".pane")].map((element) => new Pane(element, this));
    this.camera = new Camera();
    this.split = 0.5;
    this.kind = "error";
    this.gain = 8;
    this.left = "original";
    this.shown = null;
    this.bindControls();
    this.sort();
    this.root.hidden = false;
    section.classList.add("enhanced");
    this.show(this.pictures[0]);
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  bindControls() {
    this.find(".previous").addEventListener("click", () => this.step(-1));
    this.find(".next").addEventListener("click", () => this.step(1));
    this.find(".order").addEventListener("change", () => {
      this.sort();
      this.show(this.pictures[0]);
    });
    this.find(".left").addEventListener("change", (event) => this.change({ left: event.target.value }));
    this.root.querySelectorAll(".kinds input").forEach((input) =>
      input.addEventListener("change", () => this.change({ kind: input.value })));
    this.find(".gain").addEventListener("input", (event) => {
      this.change({ gain: 2 ** Number(event.target.value), gainIsChosen: true });
    });
    this.find(".in").addEventListener("click", () => this.zoom(1.5));
    this.find(".out").addEventListener("click", () => this.zoom(1 / 1.5));
    this.find(".fit").addEventListener("click", () => this.fit());
    this.find(".whole").addEventListener("click", () => this.toScale(1));
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  // Sorts the pictures by a figure of an autoencoder, those without a number first, and draws the strip anew.
  sort() {
    const option = this.find(".order").selectedOptions[0];
    if (option) {
      const [subject, ...name] = option.value.split(":");
      const sign = option.dataset.better === "higher" ? 1 : -1;
      const badness = (picture) => {
        const value = picture.figures[subject][name.join(":")];
        return typeof value === "number" ? sign * value : -Infinity;
      };
      this.pictures.sort((one, other) => (badness(one) < badness(other) ? -1 : Number(badness(one) > badness(other))));
      this.ordered = { subject, metric: name.join(":") };
    }
    const buttons = this.pictures.map((picture) => picture.button(this.ordered));
    buttons.forEach((button, place) => button.addEventListener("click", () => this.show(this.pictures[place])));
    this.find(".strip").replaceChildren(...buttons);
  }

  step(by) {
    const count = this.pictures.length;
    this.show(this.pictures[(this.pictures.indexOf(this.picture) + by + count) % count]);
  }

  async show(picture) {
    this.picture?.takeLatents();
    this.picture = picture;
    this.find(".now .name").textContent = picture.name;
    this.find(".now .place").textContent = `${this.pictures.indexOf(picture) + 1} of ${this.pictures.length} · ${picture.size}`;
    [...this.find(".strip").children].forEach((button, place) => {
      const current = this.pictures[place] === picture;
      button.setAttribute("aria-current", String(current));
      if (current) this.find(".strip").scrollLeft = button.offsetLeft - this.find(".strip").clientWidth / 2;
    });
    picture.giveLatents(this.find(".latent .place"));
    this.find(".latent").hidden = this.find(".latent h4") === null;
    const pixels = await picture.read();
    if (this.picture !== picture) return; // another one was asked for meanwhile
    this.pixels = pixels;
    this.camera.fit();
    this.root.querySelectorAll(".subject").forEach((element) => {
      const { subject } = element.dataset;
      element.querySelector(".said").textContent = picture.said[subject];
      element.querySelector(".pair").hidden = !pixels[subject];
      element.querySelector(".absent").hidden = Boolean(pixels[subject]);
    });
    this.panes.forEach((pane) => pane.prepare());
    if (!this.gainIsChosen) {
      const { original, ...others } = pixels;
      this.gain = fittingGain(original, Object.values(others));
    }
    this.change({});
    this.root.dataset.shown = picture.index;
  }

  change(values) {
    Object.assign(this, values);
    this.find(".gain").value = Math.log2(this.gain);
    this.find(".gain").nextElementSibling.value = `×${this.gain}`;
    this.find(".gain").setAttribute("aria-valuetext", `times ${this.gain}`);
    this.root.querySelectorAll(".split").forEach((input) => { input.value = 100 * this.split; });
    this.root.querySelectorAll(".kinds input").forEach((input) => { input.checked = input.value === this.kind; });
    this.root.classList.toggle("zoomed", this.camera.scale !== null);
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.panes.forEach((pane) => pane.draw());
      const first = this.panes.find((pane) => pane.drawn);
      if (first) this.find(".zoom output").value = `${Math.round(100 * first.drawn.scale)} %`;
    });
  }

  // The pane by whose middle buttons and keys zoom.
  get pane() {
    return this.panes.find((pane) => pane.element.contains(document.activeElement)) ?? this.panes.find((pane) => pane.drawn);
  }

  zoom(factor, pane = this.pane, place = pane?.middle) {
    if (!pane || !this.pixels) return;
    this.camera.zoom(factor, place, pane.size, this.pixels.original);
    this.change({});
  }

  toScale(scale) {
    const pane = this.pane;
    if (pane?.drawn) this.zoom(scale / pane.drawn.scale);
  }

  fit() {
    this.camera.fit();
    this.change({});
  }

  move(dx, dy, pane) {
    this.camera.move(dx, dy, pane.size, this.pixels.original);
    this.change({});
  }

  key(event) {
    if (event.target.closest("input, select") || event.ctrlKey || event.metaKey || event.altKey || !this.pixels) return;
    const step = 48;
    const arrows = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    const keys = {
      n: () => this.step(1),
      p: () => this.step(-1),
      "+": () => this.zoom(1.5),
      "=": () => this.zoom(1.5),
      "-": () => this.zoom(1 / 1.5),
      0: () => this.fit(),
      1: () => this.toScale(1),
      e: () => this.change({ kind: this.kind === "error" ? "difference" : "error" }),
    };
    if (event.target.matches("canvas") && event.key in arrows) {
      if (this.camera.scale === null) {
        if (arrows[event.key][0] === 0) return; // the page scrolls
        this.change({ split: Math.min(Math.max(this.split - arrows[event.key][0] / step / 50, 0), 1) });
      } else {
        this.move(...arrows[event.key], this.pane);
      }
    } else if (event.key in keys) {
      keys[event.key]();
    } else {
      return;
    }
    event.preventDefault();
  }
}
