// Satisfaction, one curve per family of versions with its 95 % interval; changes of the rollout as lines.
// Drawn over the number of rated answers and labelled with their time, so that idle hours take no space.

import { h, percent, plural } from "./dom.js";

const COLOURS = 5;
const HEIGHT = 240;

export class Curve {
  constructor(box, legend) {
    Object.assign(this, { box, legend, plot: null, drawn: "", marks: [] });
    new ResizeObserver(() => this.plot?.setSize({ width: box.clientWidth, height: HEIGHT })).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.again());
  }

  draw(families, changes) {
    this.families = families;
    this.changes = changes;
    const text = JSON.stringify([families, changes.map((change) => [change.generation, change.place])]);
    if (text === this.drawn) return;
    this.drawn = text;
    this.again();
  }

  clear() {
    this.plot?.destroy();
    this.plot = null;
    this.drawn = "";
    this.box.replaceChildren();
    this.legend.replaceChildren();
  }

  again() {
    const drawn = this.drawn;
    this.clear();
    this.drawn = drawn;
    if (!this.families?.length) {
      this.box.append(h("p", { class: "soft" }, "No answer has been rated yet. Ask something, then press a thumb."));
      return;
    }
    this.marks = this.changes.map((change) => change.place);
    this.timed = this.families.flatMap(({ points }) => points).sort((a, b) => a.place - b.place);
    const tables = this.families.map(({ points }) => [
      points.map((p) => p.place), points.map((p) => p.mean), points.map((p) => p.high), points.map((p) => p.low),
    ]);
    this.plot = new uPlot(this.options(), uPlot.join(tables), this.box);
    this.label(null);
    const words = this.families.map((family, i) => `${this.name(family)}: ${percent(family.points.at(-1).mean)}`);
    this.box.setAttribute("aria-label", `Satisfaction over time. Now ${words.join("; ")}`);
  }

  name({ family, kind }) {
    return kind === "removed" ? `version ${family}` : `version ${family} and its refreshes`;
  }

  options() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const series = [{}], bands = [];
    this.families.forEach((_, i) => {
      const stroke = colour(`--family-${i % COLOURS}`);
      const edge = { spanGaps: true, stroke: "transparent", points: { show: false } };
      series.push({ spanGaps: true, stroke, width: 2, points: { size: 5, fill: stroke } }, edge, edge);
      bands.push({ series: [3 * i + 2, 3 * i + 3], fill: `${stroke}26` });
    });
    return {
      width: this.box.clientWidth,
      height: HEIGHT,
      series,
      bands,
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { time: false }, y: { range: [0, 1] } },
      axes: [{ ...axis, space: 90, values: (_, ticks) => this.times(ticks) }, { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => percent(tick)) }],
      hooks: {
        drawAxes: [(plot) => this.drawMarks(plot, colour("--soft"))],
        setCursor: [(plot) => this.label(plot.cursor.idx)],
      },
    };
  }

  // Time of the nearest point; the day where it changes.
  times(places) {
    let day = "";
    const span_s = this.timed.at(-1).time_s - this.timed[0].time_s;
    const style = { hour: "2-digit", minute: "2-digit", second: span_s < 1800 ? "2-digit" : undefined };
    return places.map((place) => {
      const nearest = this.timed.reduce((a, b) => (Math.abs(b.place - place) < Math.abs(a.place - place) ? b : a));
      const date = new Date(1000 * nearest.time_s);
      const today = date.toLocaleDateString([], { month: "short", day: "numeric" });
      const label = date.toLocaleTimeString([], style);
      if (today === day) return label;
      day = today;
      return `${label}\n${today}`;
    });
  }

  drawMarks(plot, stroke) {
    const { left, top, width, height } = plot.bbox;
    plot.ctx.save();
    plot.ctx.strokeStyle = stroke;
    plot.ctx.setLineDash([4, 4]);
    plot.ctx.beginPath();
    for (const place of this.marks) {
      const x = Math.round(plot.valToPos(place, "x", true));
      if (x < left || x > left + width) continue;
      plot.ctx.moveTo(x, top);
      plot.ctx.lineTo(x, top + height);
    }
    plot.ctx.stroke();
    plot.ctx.restore();
  }

  // Values under the pointer, or the latest of each family.
  label(index) {
    this.legend.replaceChildren(...this.families.map((family, i) => {
      const at = this.plot.data[0][index] ?? Infinity;
      const known = family.points.filter((point) => point.place <= at);
      const point = known.at(-1);
      const item = h("li", {}, `${this.name(family)}: `,
        point ? `${percent(point.mean)} (${percent(point.low)} – ${percent(point.high)} of ${plural(point.n, "answer")})` : "–");
      item.style.setProperty("--colour", `var(--family-${i % COLOURS})`);
      return item;
    }));
  }
}
