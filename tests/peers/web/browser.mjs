// Chromium, driven by lines of JSON: {"do": "open", "url": …}, {"do": "run", "code": …}, {"do": "end"}.
// Each answer is a line: {"value": …, "faults": […]} or {"error": …}. `faults`: what the console complained of.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(process.argv[2] + "/");
const { chromium } = require("playwright-core");
const browser = await chromium.launch({ executablePath: process.argv[3], args: ["--no-sandbox", "--disable-gpu"] });
const page = await browser.newPage();
const faults = [];
page.on("pageerror", (error) => faults.push(String(error)));
page.on("console", (message) => {
  if (message.type() === "error" && !message.text().includes("net::ERR_")) faults.push(message.text());
});
page.on("dialog", (dialog) => { faults.push("a dialog: " + dialog.message()); dialog.dismiss(); });

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  let answer;
  try {
    let value = null;
    if (command.do === "open") await page.goto(command.url);
    else if (command.do === "run") value = await page.evaluate(command.code);
    else break;
    answer = { value: value ?? null, faults: faults.splice(0) };
  } catch (error) {
    answer = { error: String(error) };
  }
  console.log(JSON.stringify(answer));
}
await browser.close();
