// A pane of the viewer: a canvas that shows an autoencoder's picture beside the original, or its error.

const HANDLE = 16; // pixels beside the slider's line that take hold of it

class Pane {
  constructor(element, viewer) {
    this.element = element;
    this.viewer = viewer;
    this.canvas = element.querySelector("canvas");
    this.compares = element.dataset.kind === "compare";
    const { subject, name } = element.closest(".subject").dataset;
    Object.assign(this, { subject, name, pointers: new Map() });
    new ResizeObserver(() => viewer.draw()).observe(this.canvas);
    element.querySelector(".split")?.addEventListener("input", (event) => viewer.change({ split: event.target.value / 100 }));
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    this.canvas.addEventListener("pointerleave", () => viewer.find(".readout").replaceChildren("\u00a0"));
    this.canvas.addEventListener("dblclick", (event) => viewer.zoom(event.shiftKey ? 0.5 : 2, this, this.place(event)));
    this.canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      viewer.zoom(Math.exp(-event.deltaY / 200), this, this.place(event));
    }, { passive: false });
  }

  get size() {
    return { width: this.canvas.clientWidth, height: this.canvas.clientHeight };
  }

  get middle() {
    return { x: this.size.width / 2, y: this.size.height / 2 };
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  // Begins with another picture.
  prepare() {
    const { original } = this.viewer.pixels;
    this.canvas.style.aspectRatio = `${original.width} / ${original.height}`;
    this.map = this.mapOf = null;
  }

  draw() {
    const { width, height } = this.size;
    const { pixels, camera, left } = this.viewer;
    this.drawn = null;
    if (!pixels?.[this.subject] || !width || !height) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const view = camera.view(width, height, pixels.original);
    context.imageSmoothingEnabled = view.scale * ratio < 1;
    context.imageSmoothingQuality = "high";
    const paint = (canvas) =>
      context.drawImage(canvas, view.left, view.top, canvas.width * view.scale, canvas.height * view.scale);
    if (this.compares) {
      paint(pixels[this.subject].canvas);
      this.paintLeft(context, () => paint((pixels[left] ?? pixels.original).canvas));
    } else {
      paint(this.error());
    }
    this.drawn = view;
    this.label();
  }

  // Paints what lies left of the slider, and its line.
  paintLeft(context, paint) {
    const { width, height } = this.size;
    const at = this.viewer.split * width;
    context.save();
    context.beginPath();
    context.rect(0, 0, at, height);
    context.clip();
    context.clearRect(0, 0, width, height);
    paint();
    context.restore();
    context.fillStyle = "rgb(0 0 0 / 0.45)";
    context.fillRect(at - 2, 0, 4, height);
    context.fillStyle = "#fff";
    context.fillRect(at - 1, 0, 2, height);
    context.beginPath();
    context.arc(at, height / 2, 9, 0, 2 * Math.PI);
    context.fill();
    context.strokeStyle = "rgb(0 0 0 / 0.45)";
    context.stroke();
  }

  error() {
    const { pixels, kind, gain } = this.viewer;
    const wanted = `${kind} ${gain}`;
    if (this.mapOf !== wanted) {
      const make = kind === "error" ? errorMap : differenceMap;
      this.map = make(pixels.original, pixels[this.subject], gain);
      this.mapOf = wanted;
    }
    return this.map;
  }

  label() {
    const { left, kind, gain, picture } = this.viewer;
    const from = this.element.querySelector(".from");
    if (this.compares) {
      const other = this.viewer.root.querySelector(`.subject[data-subject="${left}"]`);
      from.textContent = other ? other.dataset.name : "original";
      this.canvas.setAttribute("aria-label", `${picture.name}: ${from.textContent} left, ${this.name} right of the slider`);
      this.element.querySelector(".split").setAttribute("aria-label", `Slider between ${from.textContent} and ${this.name}`);
    } else {
      from.textContent = kind === "error" ? "error map" : "difference";
      this.canvas.setAttribute("aria-label", `${picture.name}: ${from.textContent} of ${this.name}, times ${gain}`);
      this.element.dataset.map = kind;
      const [low, limit] = [this.element.querySelector(".scale span"), this.element.querySelector(".limit")];
      low.textContent = kind === "error" ? "0" : `−${+(127 / gain).toPrecision(3)}`;
      limit.textContent = `${+((kind === "error" ? 255 : 127) / gain).toPrecision(3)} of 255`;
    }
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    const place = this.place(event);
    this.pointers.set(event.pointerId, place);
    const near = Math.abs(place.x - this.viewer.split * this.size.width) < HANDLE;
    this.moves = !this.compares || (this.viewer.camera.scale !== null && !near) ? "picture" : "slider";
    if (this.moves === "slider" && event.pointerType !== "touch") this.slide(place);
  }

  drag(event) {
    const place = this.place(event);
    this.tell(place);
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const distance = (point) => Math.hypot(point.x - other.x, point.y - other.y);
      this.viewer.zoom(distance(place) / Math.max(distance(before), 1), this, other);
    } else if (this.moves === "slider") {
      this.slide(place);
    } else {
      this.viewer.move(place.x - before.x, place.y - before.y, this);
    }
    this.pointers.set(event.pointerId, place);
  }

  slide(place) {
    this.viewer.change({ split: Math.min(Math.max(place.x / this.size.width, 0), 1) });
  }

  // Tells the values of the pixel under the pointer.
  tell(place) {
    const { pixels } = this.viewer;
    if (!this.drawn) return;
    const [x, y] = [(place.x - this.drawn.left) / this.drawn.scale, (place.y - this.drawn.top) / this.drawn.scale].map(Math.floor);
    const inside = x >= 0 && y >= 0 && x < pixels.original.width && y < pixels.original.height;
    this.viewer.find(".readout").textContent = inside
      ? `x ${x}, y ${y}: original ${pixelText(pixels.original, x, y)}, ${this.name} ${pixelText(pixels[this.subject], x, y)}`
      : "\u00a0";
  }
}

// A picture of the page, with its reconstructions by the number of the autoencoder.
class PictureData {
  constructor(item) {
    this.item = item;
    this.index = item.dataset.index;
    this.name = item.dataset.name;
    this.size = item.dataset.size;
    this.figures = JSON.parse(item.dataset.figures);
    this.latents = item.querySelector(".latents");
    this.said = [...item.querySelectorAll(".said")].map((element) => element.textContent.trim());
  }

  async read() {
    if (!this.pixels) {
      const images = [["original", this.item.querySelector(".original")]];
      this.item.querySelectorAll(".reconstruction").forEach((image) => images.push([image.dataset.subject, image]));
      this.pixels = Object.fromEntries(await Promise.all(images.map(async ([name, image]) => [name, await readPixels(image)])));
      setTimeout(() => { this.pixels = null; }, 60000); // they are large, and made again in no time
    }
    return this.pixels;
  }

  button(ordered) {
    const button = document.createElement("button");
    button.type = "button";
    const image = document.createElement("img");
    image.src = this.item.querySelector(".original").src;
    image.alt = "";
    const value = ordered && this.figures[ordered.subject][ordered.metric];
    const text = document.createElement("span");
    text.textContent = typeof value === "number" ? (ordered.metric === "psnr" ? `${value.toFixed(1)} dB` : value.toPrecision(3)) : "–";
    button.title = this.name;
    button.setAttribute("aria-label", `${this.name}, ${text.textContent}`);
    button.append(image, text);
    return button;
  }

  giveLatents(place) {
    place.replaceChildren(this.latents);
  }

  takeLatents() {
    this.item.append(this.latents);
  }
}
