/** A line chart as SVG, drawn by hand: what a benchmark's `--plot` writes. */

export interface Plot {
  title: string;
  xLabel: string;
  yLabel: string;
  series: { name: string; points: readonly (readonly [x: number, y: number])[] }[];
}

const WIDTH = 720;
const HEIGHT = 400;
const MARGIN = { left: 80, right: 20, top: 40, bottom: 50 };
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

/** Both axes begin at 0. */
export function plotSvg({ title, xLabel, yLabel, series }: Plot): string {
  const points = series.flatMap((line) => line.points);
  const xTicks = ticks(Math.max(...points.map(([x]) => x)));
  const yTicks = ticks(Math.max(...points.map(([, y]) => y)));
  const width = WIDTH - MARGIN.left - MARGIN.right;
  const height = HEIGHT - MARGIN.top - MARGIN.bottom;
  const x = (value: number) => MARGIN.left + (value / (xTicks.at(-1) as number)) * width;
  const y = (value: number) => MARGIN.top + height - (value / (yTicks.at(-1) as number)) * height;
  const parts = [
    ...xTicks.map((tick) => text(x(tick), MARGIN.top + height + 18, format(tick), "middle")),
    ...yTicks.map((tick) => text(MARGIN.left - 8, y(tick) + 4, format(tick), "end")),
    ...yTicks.map((tick) => `<path d="M${MARGIN.left} ${round(y(tick))}h${width}" stroke="#d0d7de"/>`),
    text(WIDTH / 2, 22, title, "middle"),
    text(MARGIN.left + width / 2, HEIGHT - 10, xLabel, "middle"),
    `<g transform="rotate(-90 16 ${HEIGHT / 2})">${text(16, HEIGHT / 2, yLabel, "middle")}</g>`,
    ...series.map((line, index) => {
      const path = line.points.map(([px, py]) => `${round(x(px))},${round(y(py))}`).join(" ");
      const color = COLORS[index % COLORS.length] as string;
      const label = text(WIDTH - MARGIN.right, MARGIN.top + 14 * (index + 1), line.name, "end", color);
      return `<polyline points="${path}" fill="none" stroke="${color}" stroke-width="1.5"/>${label}`;
    }),
  ];
  const size = `width="${WIDTH}" height="${HEIGHT}" viewBox="0 0 ${WIDTH} ${HEIGHT}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size} font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
${parts.join("\n")}
</svg>
`;
}

function text(x: number, y: number, content: string, anchor: string, color = "#1f2328"): string {
  const escaped = content.replace(/[&<>]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  return `<text x="${round(x)}" y="${round(y)}" text-anchor="${anchor}" fill="${color}">${escaped}</text>`;
}

/** About five round values from 0 on, of which the last is at least `largest`. */
function ticks(largest: number): number[] {
  const rough = (largest > 0 && Number.isFinite(largest) ? largest : 1) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * (1 - 1e-9)) as number);
  return Array.from({ length: Math.ceil(largest / step - 1e-9) + 1 }, (_, index) => index * step);
}

const round = (value: number) => Math.round(value * 10) / 10;
const format = (value: number) => value.toLocaleString("en-US", { maximumSignificantDigits: 4 });
