// The pixels of a picture and of its reconstructions, and what tells them apart.

const RAMP = [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];

function rampColour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const below = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[below].map((level, i) => level + (place - below) * (RAMP[below + 1][i] - level));
}

const RAMP_TABLE = Array.from({ length: 256 }, (_, level) => rampColour(level / 255));

// An image as a canvas, to be drawn, and as bytes, to be read.
async function readPixels(image) {
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  return { canvas, data, width: canvas.width, height: canvas.height };
}

// How far a pixel is off: the mean over channels of the absolute difference, or that of the transparency if it is larger.
function pixelError(a, b, at) {
  const colours = Math.abs(a[at] - b[at]) + Math.abs(a[at + 1] - b[at + 1]) + Math.abs(a[at + 2] - b[at + 2]);
  return Math.max(colours / 3, Math.abs(a[at + 3] - b[at + 3]));
}

// Where the reconstruction is off, times the gain, in colours.
function errorMap(original, other, gain) {
  return mapped(original, other, (a, b, at, out) => {
    const colour = RAMP_TABLE[Math.min(255, Math.round(pixelError(a, b, at) * gain))];
    for (let i = 0; i < 3; i += 1) out[at + i] = colour[i];
  });
}

// In which direction it is off: grey where nothing is.
function differenceMap(original, other, gain) {
  return mapped(original, other, (a, b, at, out) => {
    for (let i = 0; i < 3; i += 1) out[at + i] = 128 + (b[at + i] - a[at + i]) * gain;
  });
}

function mapped(original, other, write) {
  const canvas = document.createElement("canvas");
  canvas.width = original.width;
  canvas.height = original.height;
  const context = canvas.getContext("2d");
  const out = context.createImageData(canvas.width, canvas.height);
  for (let at = 0; at < out.data.length; at += 4) {
    write(original.data, other.data, at, out.data);
    out.data[at + 3] = 255;
  }
  context.putImageData(out, 0, 0);
  return canvas;
}

// The largest gain, a power of two, with which hardly any pixel of these error maps is beyond the colours.
function fittingGain(original, others) {
  const counts = new Uint32Array(256);
  for (const { data } of others) {
    for (let at = 0; at < data.length; at += 4) {
      counts[Math.round(pixelError(original.data, data, at))] += 1;
    }
  }
  let left = 0.02 * counts.reduce((sum, count) => sum + count, 0);
  let level = 255;
  while (level > 0 && left >= counts[level]) {
    left -= counts[level];
    level -= 1;
  }
  return 2 ** Math.min(6, Math.max(0, Math.floor(Math.log2(255 / Math.max(level, 1)))));
}

function pixelText(pixels, x, y) {
  const at = 4 * (y * pixels.width + x);
  return [0, 1, 2].map((i) => pixels.data[at + i]).join(" ");
}
