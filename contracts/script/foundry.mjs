// Foundry's tools as npm installed them: `node script/foundry.mjs forge test`. The launchers in node_modules/.bin end
// with 0 whatever the tool did, so that a failed test would pass; this one hands the tool's exit code on.
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { constants } from "node:os";
import { fileURLToPath } from "node:url";

const ARCHITECTURES = { x64: "amd64", arm64: "arm64" };

/** The path of a tool's executable. */
export function executable(tool) {
  const name = `@foundry-rs/${tool}-${process.platform}-${ARCHITECTURES[process.arch]}`;
  try {
    return createRequire(import.meta.url).resolve(`${name}/bin/${tool}${process.platform === "win32" ? ".exe" : ""}`);
  } catch (cause) {
    throw new Error(`${tool} is not installed for this machine (${name}): run "npm ci" in contracts/`, { cause });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [tool, ...args] = process.argv.slice(2);
  const child = spawn(executable(tool), args, { stdio: "inherit" });
  for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => child.kill(signal));
  child.on("exit", (code, signal) => process.exit(code ?? 128 + constants.signals[signal]));
}
