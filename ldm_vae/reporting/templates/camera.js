// Which part of the pictures all panes show: a point of the picture in the middle, and how large its pixels are.

const LARGEST_SCALE = 48;

class Camera {
  constructor() {
    this.scale = null; // null: as large as fits
    this.x = 0.5;
    this.y = 0.5;
  }

  // What a pane of so many pixels shows of a picture.
  view(width, height, picture) {
    const fit = Math.min(width / picture.width, height / picture.height);
    const scale = this.scale === null ? fit : Math.max(this.scale, Math.min(fit, 1));
    const [x, y] = this.scale === null ? [0.5, 0.5] : [this.x, this.y];
    return { fit, scale, left: width / 2 - x * picture.width * scale, top: height / 2 - y * picture.height * scale };
  }

  fit() {
    this.scale = null;
    this.x = this.y = 0.5;
  }

  // Zooms about a place of a pane, which stays where it is.
  zoom(factor, place, size, picture) {
    const view = this.view(size.width, size.height, picture);
    const scale = Math.min(view.scale * factor, LARGEST_SCALE);
    if (scale <= view.fit * 1.001) {
      this.fit();
      return;
    }
    const [x, y] = [(place.x - view.left) / view.scale, (place.y - view.top) / view.scale];
    this.scale = scale;
    this.x = (x - (place.x - size.width / 2) / scale) / picture.width;
    this.y = (y - (place.y - size.height / 2) / scale) / picture.height;
    this.keepInside(size, picture);
  }

  move(dx, dy, size, picture) {
    if (this.scale === null) return;
    this.x -= dx / this.scale / picture.width;
    this.y -= dy / this.scale / picture.height;
    this.keepInside(size, picture);
  }

  keepInside(size, picture) {
    const half = [size.width / picture.width, size.height / picture.height].map((side) => side / 2 / this.scale);
    [this.x, this.y] = [this.x, this.y].map((value, i) =>
      half[i] >= 0.5 ? 0.5 : Math.min(Math.max(value, half[i]), 1 - half[i]));
  }
}
