"use strict";
/* The slice viewer: three planes of an image with its labels. */
const MISSED = [213, 94, 0], EXTRA = [86, 180, 233], SWAPPED = [240, 228, 66];
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const element = (name, attributes = {}, ...children) => {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
};
const channels = (colour) => [1, 3, 5].map((first) => parseInt(colour.slice(first, first + 2), 16));

/* Volumes: base64 of zlib-compressed bytes: image channels, truth, prediction. */
async function unpack(text) {
  const raw = atob(text.trim());
  const bytes = new Uint8Array(raw.length);
  for (let index = 0; index < raw.length; index++) bytes[index] = raw.charCodeAt(index);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Plane {
  /* A slice perpendicular to one axis; rows and columns are the two other axes. */
  constructor(viewer, axis) {
    this.viewer = viewer;
    this.axis = axis;
    [this.rowAxis, this.columnAxis] = [[1, 2], [0, 2], [0, 1]][axis];
    this.canvas = element("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "img");
    this.heading = element("figcaption");
    this.slider = element("input", { type: "range", min: 0, step: 1 });
    this.figure = element("figure", { className: "plane" }, this.canvas, this.heading, this.slider);
    this.buffer = element("canvas");
    this.slider.addEventListener("input", () => viewer.go(axis, Number(this.slider.value)));
    this.canvas.addEventListener("keydown", (event) => viewer.key(event, axis));
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.focus({ preventScroll: true });
      if (event.pointerType === "mouse") this.canvas.setPointerCapture(event.pointerId);
      this.point(event);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) this.point(event);
    });
  }

  /* If the first axis points up, rows are drawn from last to first. */
  get flipped() { return this.viewer.about.upright && this.rowAxis === 0; }

  wheel(event) {
    if (document.activeElement !== this.canvas || event.ctrlKey) return;
    event.preventDefault();
    this.viewer.go(this.axis, this.viewer.position[this.axis] - Math.sign(event.deltaY));
  }

  point(event) {
    const frame = this.canvas.getBoundingClientRect();
    const { shape } = this.viewer.about;
    const [rows, columns] = [shape[this.rowAxis], shape[this.columnAxis]];
    let row = clamp(Math.floor(((event.clientY - frame.top) / frame.height) * rows), 0, rows - 1);
    const column = clamp(Math.floor(((event.clientX - frame.left) / frame.width) * columns), 0, columns - 1);
    if (this.flipped) row = rows - 1 - row;
    this.viewer.position[this.rowAxis] = row;
    this.viewer.position[this.columnAxis] = column;
    this.viewer.draw();
  }

  resize() {
    const { shape, spacing } = this.viewer.about;
    const aspect = (shape[this.columnAxis] * spacing[this.columnAxis]) / (shape[this.rowAxis] * spacing[this.rowAxis]);
    const tallest = Math.max(180, Math.min(window.innerHeight * 0.6, 460));
    const width = Math.max(1, Math.min(this.figure.clientWidth, tallest * aspect));
    const scale = Math.min(window.devicePixelRatio || 1, 2);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${width / aspect}px`;
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round((width / aspect) * scale));
    this.scale = scale;
  }

  /* Draw the slice with its overlay. */
  draw() {
    const { viewer, axis } = this;
    const { shape, planes, corners, name } = viewer.about;
    const [rows, columns] = [shape[this.rowAxis], shape[this.columnAxis]];
    const strides = [shape[1] * shape[2], shape[2], 1];
    const at = (row, column) =>
      viewer.position[axis] * strides[axis] + (this.flipped ? rows - 1 - row : row) * strides[this.rowAxis] + column * strides[this.columnAxis];
    this.buffer.width = columns;
    this.buffer.height = rows;
    const paint = this.buffer.getContext("2d");
    const pixels = paint.createImageData(columns, rows);
    for (let row = 0, place = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, place += 4) {
        const offset = at(row, column);
        const grey = viewer.greys[viewer.image[offset]];
        const tint = viewer.tint(viewer.truth[offset], viewer.predicted[offset]);
        const share = tint ? viewer.opacity : 0;
        for (let part = 0; part < 3; part++)
          pixels.data[place + part] = grey * (1 - share) + (tint ? tint[part] * share : 0);
        pixels.data[place + 3] = 255;
      }
    }
    paint.putImageData(pixels, 0, 0);
    const context = this.canvas.getContext("2d");
    context.imageSmoothingEnabled = viewer.mode === "none";
    context.drawImage(this.buffer, 0, 0, this.canvas.width, this.canvas.height);
    if (viewer.mode === "both" || viewer.mode === "truth") this.outline(context, rows, columns, at);
    this.cross(context, rows, columns);
    const index = viewer.position[axis];
    this.slider.max = shape[axis] - 1;
    this.slider.value = index;
    const side = corners[axis][1] ? `, ${corners[axis][0]} to ${corners[axis][1]}` : "";
    this.heading.textContent = `${planes[axis]} ${index + 1} of ${shape[axis]}${side}`;
    this.slider.setAttribute("aria-label", `${planes[axis]} slice`);
    this.canvas.setAttribute("aria-label", `${name}, ${planes[axis]} slice ${index + 1} of ${shape[axis]}`);
  }

  outline(context, rows, columns, at) {
    const { viewer } = this;
    const [high, wide] = [this.canvas.height / rows, this.canvas.width / columns];
    const value = (row, column) => {
      if (row < 0 || column < 0 || row >= rows || column >= columns) return 0;
      const label = viewer.truth[at(row, column)];
      return viewer.shown.has(label) ? label : 0;
    };
    const paths = new Map();
    const add = (label, x1, y1, x2, y2) => {
      if (!paths.has(label)) paths.set(label, new Path2D());
      paths.get(label).moveTo(x1 * wide, y1 * high);
      paths.get(label).lineTo(x2 * wide, y2 * high);
    };
    for (let row = 0; row <= rows; row++) {
      for (let column = 0; column <= columns; column++) {
        const here = value(row, column), left = value(row, column - 1), above = value(row - 1, column);
        if (here !== left) add(here || left, column, row, column, row + 1);
        if (here !== above) add(here || above, column, row, column + 1, row);
      }
    }
    context.lineCap = "square";
    for (const [label, path] of paths) {
      context.strokeStyle = "rgba(0, 0, 0, 0.75)";
      context.lineWidth = 4 * this.scale;
      context.stroke(path);
      context.strokeStyle = viewer.labels[label - 1].colour;
      context.lineWidth = 2 * this.scale;
      context.stroke(path);
    }
  }

  cross(context, rows, columns) {
    const { position } = this.viewer;
    const row = this.flipped ? rows - 1 - position[this.rowAxis] : position[this.rowAxis];
    const y = Math.round(((row + 0.5) / rows) * this.canvas.height);
    const x = Math.round(((position[this.columnAxis] + 0.5) / columns) * this.canvas.width);
    context.strokeStyle = "rgba(255, 255, 255, 0.45)";
    context.lineWidth = this.scale;
    context.beginPath();
    context.moveTo(0, y);
    context.lineTo(this.canvas.width, y);
    context.moveTo(x, 0);
    context.lineTo(x, this.canvas.height);
    context.stroke();
    const { corners } = this.viewer.about;
    const letters = [corners[this.rowAxis], corners[this.columnAxis]];
    if (!letters[0][0]) return;
    const [top, bottom] = this.flipped ? [letters[0][1], letters[0][0]] : letters[0];
    context.font = `${11 * this.scale}px sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    const inset = 9 * this.scale, { width, height } = this.canvas;
    for (const [letter, left, up] of [[top, width / 2, inset], [bottom, width / 2, height - inset], [letters[1][0], inset, height / 2], [letters[1][1], width - inset, height / 2]]) {
      context.lineWidth = 3 * this.scale;
      context.strokeStyle = "#000";
      context.strokeText(letter, left, up);
      context.fillStyle = "#fff";
      context.fillText(letter, left, up);
    }
  }
}

class Viewer {
  constructor(root) {
    this.root = root;
    const about = JSON.parse(root.querySelector("script.about").textContent);
    this.cases = about.cases;
    this.labels = about.labels.map((label) => ({ ...label, rgb: channels(label.colour) }));
    this.channelNames = about.channels;
    this.volumes = root.querySelectorAll("script.volume");
    this.shown = new Set(this.labels.map((_, index) => index + 1));
    this.modes = [...this.find("mode").options].map((option) => option.value);
    this.mode = this.modes[0];
    this.index = -1;
    this.channel = 0;
    this.planes = [0, 1, 2].map((axis) => new Plane(this, axis));
    this.find("planes").append(...this.planes.map((plane) => plane.figure));
    this.buttons = [...root.querySelectorAll("button.case")];
    this.buttons.forEach((button, index) => button.addEventListener("click", () => this.open(index)));
    this.build();
    this.readSliders();
    let pending = 0;
    new ResizeObserver(() => {
      cancelAnimationFrame(pending);
      pending = requestAnimationFrame(() => this.redraw());
    }).observe(this.find("planes"));
    window.addEventListener("beforeprint", () => this.redraw());
  }

  find(name) { return this.root.querySelector(`.${name}`); }

  build() {
    this.boxes = this.labels.map((label, index) => {
      const box = element("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => this.toggle(index + 1, box.checked));
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = label.colour;
      this.find("labels").append(element("label", {}, box, swatch, label.name));
      return box;
    });
    const channel = this.root.querySelector(".channel select");
    channel.append(...this.channelNames.map((name) => element("option", { textContent: name })));
    this.find("channel").hidden = this.channelNames.length < 2;
    channel.addEventListener("change", () => {
      this.channel = channel.selectedIndex;
      this.chooseImage();
      this.draw();
    });
    this.find("mode").addEventListener("change", (event) => this.overlay(event.target.value));
    for (const name of ["opacity", "brightness", "contrast"])
      this.find(name).addEventListener("input", () => {
        this.readSliders();
        this.draw();
      });
  }

  readSliders() {
    this.opacity = Number(this.find("opacity").value) / 100;
    const shift = Number(this.find("brightness").value) * 1.5;
    const slope = 4 ** (Number(this.find("contrast").value) / 100);
    this.greys = Array.from({ length: 256 }, (_, grey) => clamp((grey - 128) * slope + 128 + shift, 0, 255));
  }

  async open(index) {
    this.index = index;
    this.buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(place === index)));
    const about = this.cases[index];
    const caption = this.find("caption");
    let bytes;
    try {
      bytes = await unpack(this.volumes[index].textContent);
    } catch (error) {
      this.find("screen").hidden = false;
      caption.textContent = `This browser cannot decompress the volume (${error.message}); use a newer one. The pictures above show one slice per case.`;
      return;
    }
    if (this.index !== index) return;
    this.about = about;
    this.bytes = bytes;
    const size = about.shape[0] * about.shape[1] * about.shape[2];
    this.truth = bytes.subarray(about.channels * size, (about.channels + 1) * size);
    this.predicted = bytes.subarray((about.channels + 1) * size);
    this.chooseImage();
    this.position = [...about.start];
    caption.textContent = about.caption;
    this.find("screen").hidden = false;
    const isFlat = Math.min(...about.shape) === 1;
    this.planes.forEach((plane) => {
      plane.figure.hidden = isFlat && about.shape[plane.axis] !== 1;
      plane.slider.hidden = isFlat;
    });
    this.find("planes").classList.toggle("single", isFlat);
    this.redraw();
  }

  chooseImage() {
    if (!this.about) return;
    const size = this.truth.length;
    const channel = Math.min(this.channel, this.about.channels - 1);
    this.image = this.bytes.subarray(channel * size, (channel + 1) * size);
  }

  tint(truth, predicted) {
    if (this.mode === "both" || this.mode === "prediction")
      return this.shown.has(predicted) ? this.labels[predicted - 1].rgb : null;
    if (this.mode !== "differences" || truth === predicted) return null;
    const wanted = this.shown.has(truth), given = this.shown.has(predicted);
    if (wanted && given) return SWAPPED;
    return wanted ? MISSED : given ? EXTRA : null;
  }

  go(axis, index) {
    this.position[axis] = clamp(index, 0, this.about.shape[axis] - 1);
    this.draw();
  }

  toggle(label, on) {
    if (on) this.shown.add(label);
    else this.shown.delete(label);
    this.boxes[label - 1].checked = on;
    this.draw();
  }

  overlay(mode) {
    this.mode = mode;
    this.find("mode").value = mode;
    this.find("differences-key").hidden = mode !== "differences";
    this.draw();
  }

  key(event, axis) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const here = this.position[axis], last = this.about.shape[axis] - 1;
    const slices = { ArrowUp: here + 1, ArrowRight: here + 1, ArrowDown: here - 1, ArrowLeft: here - 1, PageUp: here + 5, PageDown: here - 5, Home: 0, End: last };
    const pressed = event.key.toLowerCase();
    if (event.key in slices) this.go(axis, slices[event.key]);
    else if (pressed >= "1" && pressed <= "9" && Number(pressed) <= this.labels.length) this.toggle(Number(pressed), !this.shown.has(Number(pressed)));
    else if (pressed === "[" || pressed === "]") {
      const slider = this.find("opacity");
      slider.value = Number(slider.value) + (pressed === "]" ? 10 : -10);
      this.readSliders();
      this.draw();
    } else if (pressed === "o") this.overlay(this.modes[(this.modes.indexOf(this.mode) + 1) % this.modes.length]);
    else if (pressed === "n" || pressed === "b") this.open((this.index + (pressed === "n" ? 1 : this.cases.length - 1)) % this.cases.length);
    else return;
    event.preventDefault();
  }

  redraw() {
    if (!this.about) return;
    this.planes.forEach((plane) => plane.figure.hidden || plane.resize());
    this.draw();
  }

  draw() {
    if (this.about) this.planes.forEach((plane) => plane.figure.hidden || plane.draw());
  }
}
