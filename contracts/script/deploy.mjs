// Deploys with forge as `.env` says; run again, it does only what is missing. Addresses: deployments/<chain id>.json.
import { spawnSync } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { executable } from "./foundry.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

// forge itself reads .env, but the URL is an argument: so read it here as well. What is set already wins.
try {
  process.loadEnvFile(join(root, ".env"));
} catch (error) {
  if (error.code !== "ENOENT") throw error;
}
for (const name of ["PRIVATE_KEY", "RPC_URL"]) {
  if (!process.env[name]) {
    console.error(`${name} is not set: copy contracts/.env.example to contracts/.env and fill it in`);
    process.exit(2);
  }
}
const { status, error } = spawnSync(
  executable("forge"),
  ["script", "script/Deploy.s.sol", "--rpc-url", process.env.RPC_URL, "--broadcast", "--slow"],
  { cwd: root, stdio: "inherit" },
);
if (error) throw error;
process.exit(status ?? 1);
