/** The executable's entry point. */
import { main } from "./cli/main.ts";
import { spawn } from "./spawn.ts";

await main(process.argv.slice(2), spawn);
