// The recipe of docs/web/eventsource.js in Node.js, with the EventSource of the npm package `eventsource`.
// Arguments: the folder of the npm packages, the recipe, the address of the server, the run. Prints the positions seen.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [packages, recipe, base, run] = process.argv.slice(2);
const { EventSource: Real } = createRequire(packages + "/")("eventsource");
const absolute = (path) => new URL(path, base).href;
class EventSource extends Real {
  constructor(path) { super(absolute(path)); }
}
const code = readFileSync(recipe, "utf8");
const watch = new Function("EventSource", "fetch", code + "; return watch;")(EventSource, (path) => fetch(absolute(path)));
const seen = [];
watch(run, (event) => seen.push(event.run_seq), (status) => {
  console.log(JSON.stringify({ status, seen }));
  process.exit(0);
});
