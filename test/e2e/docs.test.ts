/** The executable's /docs in a real browser: it comes whole out of the executable, and tries requests out. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { Browser, findChromium } from "./browser.ts";
import { Installation } from "./support.ts";

setDefaultTimeout(120_000);
const chromium = findChromium();
if (chromium === null) console.warn("docs: skipped, there is no Chromium here (MINISGL_CHROMIUM=path)");
const installation = new Installation();
let browser: Browser | undefined;
afterAll(async () => {
  await browser?.close();
  await installation.remove();
});

test.skipIf(chromium === null)(
  "/docs shows the routes and sends a request, with nothing from another host",
  async () => {
    const server = await installation.serve("--device", "null");
    browser = await Browser.launch(chromium!);
    const page = await browser.open(`${server.url}/docs`);
    await page.until("document.querySelectorAll('.opblock').length > 15");
    const shown = await page.text(".opblock-summary-path");
    const { paths } = (await (await fetch(`${server.url}/openapi.json`)).json()) as { paths: object };
    for (const path of Object.keys(paths)) expect(shown.replaceAll("\u200b", "")).toContain(path);

    const block = "#operations-Health-get_version";
    await page.click(`${block} .opblock-summary-control`);
    await page.until(`document.querySelector('${block} .try-out__btn')`);
    await page.click(`${block} .try-out__btn`);
    await page.until(`document.querySelector('${block} .execute')`);
    await page.click(`${block} .execute`);
    await page.until(`document.querySelector('${block} .live-responses-table .response-col_status')`);
    expect(await page.text(`${block} .live-responses-table`)).toMatch(/200[\s\S]*"version"/);

    expect(page.complaints).toEqual([]);
    const elsewhere = page.requests.filter((url) => !url.startsWith(server.url) && !url.startsWith("data:"));
    expect(elsewhere).toEqual([]);
  },
);
