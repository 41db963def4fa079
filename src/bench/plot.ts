/** A line chart as SVG, drawn by hand: what a benchmark's `--plot` writes. */

export interface Plot {
  title: string;
  xLabel: string;
  yLabel: string;
  /** "log2": each doubling is as wide as another, and x does not begin at 0. */
  xScale?: "log2";
  series: { name: string; points: readonly (readonly [x: number, y: number])[] }[];
}

const WIDTH = 720;
const HEIGHT = 400;
const MARGIN = { left: 80, right: 20, top: 56, bottom: 50 };
/** A series of at most so many points shows each of them. */
const MARKED_POINTS = 32;
const COLORS = ["#1f6feb", "#d1242f", "#1a7f37", "#9a6700"];

/** The charts as one picture, two side by side where there are several. */
export function plotsSvg(plots: readonly Plot[]): string {
  if (plots.length === 1) return plotSvg(plots[0]);
  const size = `width="${2 * WIDTH}" height="${Math.ceil(plots.length / 2) * HEIGHT}"`;
  const parts = plots.map((plot, index) => {
    return plotSvg(plot).replace("<svg", `<svg x="${(index % 2) * WIDTH}" y="${Math.floor(index / 2) * HEIGHT}"`);
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size}>\n${parts.join("")}</svg>\n`;
}

/** Both axes begin at 0, but for a logarithmic one. What was not measured is left out. */
export function plotSvg({ title, xLabel, yLabel, xScale, ...plot }: Plot): string {
  const series = plot.series.map(({ name, points }) => ({
    name,
    points: points.filter((point) => point.every(Number.isFinite)),
  }));
  const points = series.flatMap((line) => line.points);
  const xs = points.map(([x]) => x);
  const xTicks = xScale === "log2" ? doublings(xs) : ticks(Math.max(...xs));
  const yTicks = ticks(Math.max(...points.map(([, y]) => y)));
  const width = WIDTH - MARGIN.left - MARGIN.right;
  const height = HEIGHT - MARGIN.top - MARGIN.bottom;
  const scale = xScale === "log2" ? Math.log2 : (value: number) => value;
  const [left, right] = [xTicks[0] as number, xTicks.at(-1) as number].map(scale);
  const x = (value: number) => MARGIN.left + ((scale(value) - left) / (right - left)) * width;
  const y = (value: number) => MARGIN.top + height - (value / (yTicks.at(-1) as number)) * height;
  const parts = [
    ...xTicks.map((tick) => text(x(tick), MARGIN.top + height + 18, format(tick), "middle")),
    ...yTicks.map((tick) => text(MARGIN.left - 8, y(tick) + 4, format(tick), "end")),
    ...yTicks.map((tick) => `<path d="M${MARGIN.left} ${round(y(tick))}h${width}" stroke="#d0d7de"/>`),
    text(WIDTH / 2, 22, title, "middle"),
    text(MARGIN.left + width / 2, HEIGHT - 10, xLabel, "middle"),
    `<g transform="rotate(-90 16 ${HEIGHT / 2})">${text(16, HEIGHT / 2, yLabel, "middle")}</g>`,
    ...series.map((line, index) => {
      const places = line.points.map(([px, py]) => [round(x(px)), round(y(py))] as const);
      const color = colorOf(index);
      const marks = places.length > MARKED_POINTS ? [] : places;
      const circles = marks.map(([cx, cy]) => `<circle cx="${cx}" cy="${cy}" r="3" fill="${color}"/>`);
      return `<polyline points="${places.join(" ")}" fill="none" stroke="${color}" stroke-width="1.5"/>${circles.join("")}`;
    }),
    // Above the area, where no line runs.
    `<text x="${WIDTH - MARGIN.right}" y="${MARGIN.top - 12}" text-anchor="end">${series
      .map(({ name }, index) => `<tspan dx="${index > 0 ? 12 : 0}" fill="${colorOf(index)}">${escapeXml(name)}</tspan>`)
      .join("")}</text>`,
  ];
  const size = `width="${WIDTH}" height="${HEIGHT}" viewBox="0 0 ${WIDTH} ${HEIGHT}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size} font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
${parts.join("\n")}
</svg>
`;
}

function text(x: number, y: number, content: string, anchor: string): string {
  return `<text x="${round(x)}" y="${round(y)}" text-anchor="${anchor}" fill="#1f2328">${escapeXml(content)}</text>`;
}

const escapeXml = (content: string) => content.replace(/[&<>]/g, (sign) => `&#${sign.charCodeAt(0)};`);
const colorOf = (index: number) => COLORS[index % COLORS.length] as string;

/** The powers of two around values above 0, at least two. */
function doublings(values: readonly number[]): number[] {
  const first = Math.floor(Math.log2(values.length === 0 ? 1 : Math.min(...values)));
  const last = Math.max(first + 1, Math.ceil(Math.log2(Math.max(1, ...values))));
  return Array.from({ length: last - first + 1 }, (_, index) => 2 ** (first + index));
}

/** About five round values from 0 on, of which the last is at least `largest`. */
function ticks(largest: number): number[] {
  const rough = (largest > 0 && Number.isFinite(largest) ? largest : 1) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * (1 - 1e-9)) as number);
  return Array.from({ length: Math.max(1, Math.ceil(largest / step - 1e-9)) + 1 }, (_, index) => index * step);
}

const round = (value: number) => Math.round(value * 10) / 10;
const format = (value: number) => value.toLocaleString("en-US", { maximumSignificantDigits: 4 });
