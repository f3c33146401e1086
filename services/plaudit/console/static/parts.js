// One input per modality. Each has an `element` and a `content()`: the content to send, or null where it is left out.

import * as api from "./api.js";
import { h } from "./dom.js";
import { Recorder } from "./sound.js";

export function partFor(name, modality, samples, model) {
  const kinds = { image: ImagePart, audio: AudioPart, text: TextPart, tensor: TensorPart };
  return new kinds[modality.kind](name, modality, samples, model);
}

class Part {
  constructor(name, modality, samples, model) {
    Object.assign(this, { name, modality, samples, model });
    this.state = h("small");
    this.problem = h("p", { class: "problem", role: "alert", hidden: true });
    this.element = h("fieldset", { id: `part-${name}` }, h("legend", {}, name, " ", this.state), this.build(), this.problem);
    this.say();
  }

  say() {
    const needed = this.modality.required ? "required" : "left out";
    this.state.textContent = this.given ? "" : `– ${needed}`;
  }

  fail(error) {
    this.problem.textContent = error.message;
    this.problem.hidden = false;
  }

  // A button for a file, one that clears, and a list of samples where there are some.
  tools(accept, ...others) {
    const file = h("input", { type: "file", accept, onchange: () => file.files[0] && this.take(file.files[0]) });
    const clear = h("button", { type: "button", onclick: () => this.clear() }, "Leave out");
    return h("div", { class: "row" }, ...others, h("label", { class: "file" }, file, h("span", {}, "File …")), this.examples(), clear);
  }

  examples() {
    if (!this.samples.length) return null;
    const select = h(
      "select",
      { "aria-label": `Examples for ${this.name}` },
      h("option", { value: "" }, "Examples"),
      this.samples.map((sample) => h("option", { value: sample }, sample)),
    );
    select.onchange = async () => {
      const wanted = select.value;
      select.value = "";
      if (wanted) await this.pick(wanted);
    };
    return select;
  }

  async pick(sample) {
    try {
      this.take(await api.sample(this.model, this.name, sample));
    } catch (error) {
      this.fail(error);
    }
  }
}

const SIDE = 280; // of the canvas, in its own pixels
const STROKE = 22;

class ImagePart extends Part {
  build() {
    this.dark = this.modality.channels === 1;
    this.blob = null;
    this.drawn = false;
    this.canvas = h("canvas", { width: SIDE, height: SIDE, "aria-label": `Draw ${this.name} here`, role: "img" });
    this.pen = this.canvas.getContext("2d", { willReadFrequently: true });
    this.canvas.onpointerdown = (event) => this.begin(event);
    this.canvas.onpointermove = (event) => this.draw(event);
    this.canvas.onpointerup = this.canvas.onpointercancel = () => (this.last = null);
    const invert = h("input", { type: "checkbox", checked: this.dark, onchange: () => { this.dark = invert.checked; this.clear(); } });
    this.wipe();
    return h(
      "div",
      { class: "drawing" },
      this.canvas,
      h("div", {}, this.tools("image/*"), h("label", { class: "check" }, invert, "light on dark")),
    );
  }

  get given() {
    return this.drawn || this.blob !== null;
  }

  wipe() {
    this.pen.fillStyle = this.dark ? "#000" : "#fff";
    this.pen.fillRect(0, 0, SIDE, SIDE);
  }

  clear() {
    this.blob = null;
    this.drawn = false;
    this.problem.hidden = true;
    this.wipe();
    this.say();
  }

  begin(event) {
    if (this.blob) this.clear();
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.at(event);
    this.draw(event);
  }

  draw(event) {
    if (!this.last) return;
    const next = this.at(event);
    Object.assign(this.pen, { lineWidth: STROKE, lineCap: "round", lineJoin: "round", strokeStyle: this.dark ? "#fff" : "#000" });
    this.pen.beginPath();
    this.pen.moveTo(...this.last);
    this.pen.lineTo(...next);
    this.pen.stroke();
    this.last = next;
    this.drawn = true;
    this.say();
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
  }

  async take(blob) {
    this.clear();
    try {
      const picture = await createImageBitmap(blob);
      const scale = SIDE / Math.max(picture.width, picture.height);
      const [width, height] = [picture.width * scale, picture.height * scale];
      this.pen.drawImage(picture, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
      this.blob = blob;
      this.say();
    } catch {
      this.fail(new Error("the browser cannot read this image"));
    }
  }

  async content() {
    if (this.blob) return { image: await base64(this.blob) };
    if (!this.drawn) return null;
    return { image: await base64(await this.export()) };
  }

  // The drawing fills the image, as in data sets, at the size of the model's input.
  export() {
    const { width, height } = this.modality;
    const box = this.inkBox();
    const side = Math.max(box.width, (box.height * width) / height);
    const [wide, high] = [side, (side * height) / width];
    let source = h("canvas", { width: SIDE, height: Math.round((SIDE * height) / width) });
    const whole = source.getContext("2d");
    whole.fillStyle = this.dark ? "#000" : "#fff";
    whole.fillRect(0, 0, source.width, source.height);
    whole.drawImage(
      this.canvas,
      box.x - (wide - box.width) / 2, box.y - (high - box.height) / 2, wide, high,
      0, 0, source.width, source.height,
    );
    while (source.width > 2 * width) source = scaled(source, source.width / 2, source.height / 2); // halving averages
    return new Promise((done) => scaled(source, width, height).toBlob(done, "image/png"));
  }

  inkBox() {
    const { data } = this.pen.getImageData(0, 0, SIDE, SIDE);
    const ground = this.dark ? 0 : 255;
    let [left, top, right, bottom] = [SIDE, SIDE, 0, 0];
    for (let y = 0; y < SIDE; y++) {
      for (let x = 0; x < SIDE; x++) {
        if (data[4 * (y * SIDE + x)] === ground) continue;
        [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
      }
    }
    return { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
  }
}

function scaled(source, width, height) {
  const canvas = h("canvas", { width: Math.round(width), height: Math.round(height) });
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

class AudioPart extends Part {
  build() {
    this.blob = null;
    this.player = h("audio", { controls: true, hidden: true, "aria-label": `Play ${this.name}` });
    this.button = h("button", { type: "button", onclick: () => this.record() }, "Record");
    return h("div", {}, this.tools("audio/*", this.button), this.player);
  }

  get given() {
    return this.blob !== null;
  }

  async record() {
    if (this.recorder) return this.recorder.stop();
    this.problem.hidden = true;
    try {
      this.recorder = await Recorder.start(this.modality, (sound) => {
        this.recorder = null;
        this.button.textContent = "Record";
        this.take(sound);
      });
      this.button.textContent = "Stop";
    } catch {
      this.fail(new Error("the browser does not let this page use a microphone"));
    }
  }

  take(blob) {
    this.clear();
    this.blob = blob;
    this.player.src = URL.createObjectURL(blob);
    this.player.hidden = false;
    this.say();
  }

  clear() {
    if (this.player.src) URL.revokeObjectURL(this.player.src);
    this.player.removeAttribute("src");
    this.player.hidden = true;
    this.blob = null;
    this.problem.hidden = true;
    this.say();
  }

  async content() {
    return this.blob ? { audio: await base64(this.blob) } : null;
  }
}

class TextPart extends Part {
  build() {
    this.input = h("input", { type: "text", class: "wide", autocomplete: "off", "aria-label": this.name, oninput: () => this.say() });
    return h("div", {}, this.input, h("div", { class: "row" }, this.examples()));
  }

  get given() {
    return this.input?.value !== "";
  }

  async pick(sample) {
    this.input.value = sample;
    this.say();
  }

  async content() {
    return this.given ? { text: this.input.value } : null;
  }
}

class TensorPart extends Part {
  build() {
    const shape = this.modality.shape.map((size) => (size === -1 ? 1 : size));
    this.input = h("textarea", { rows: 2, spellcheck: false, "aria-label": `${this.name}, as JSON`, oninput: () => this.say() });
    this.input.placeholder = `numbers of shape [${this.modality.shape.join(", ")}], such as [0.1, 2]`;
    const zeros = h("button", { type: "button", onclick: () => this.pick(JSON.stringify(filled(shape))) }, "Zeros");
    const clear = h("button", { type: "button", onclick: () => this.pick("") }, "Leave out");
    return h("div", {}, this.input, h("div", { class: "row" }, zeros, clear));
  }

  get given() {
    return this.input?.value.trim() !== "";
  }

  async pick(text) {
    this.input.value = text;
    this.say();
  }

  async content() {
    if (!this.given) return null;
    try {
      return { tensor: JSON.parse(this.input.value), dtype: this.modality.dtype ?? "float32" }; // JSON does not distinguish 1 from 1.0
    } catch {
      throw new Error(`${this.name}: this is not JSON; write numbers as [1, 2.5]`);
    }
  }
}

const filled = ([size, ...rest]) => (size === undefined ? 0 : Array.from({ length: size }, () => filled(rest)));

async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}
