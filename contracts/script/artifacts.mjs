// Writes the ABI and creation bytecode of each contract to where the Python package ships them; `--check` compares.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const CONTRACTS = ["NCNToken", "ValidatorRegistry", "InferencePayment", "DisputeManager", "TimelockController"];
const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const target = join(root, "..", "plugins", "ncn_payments", "src", "ncn_payments", "artifacts");
const check = process.argv.includes("--check");

mkdirSync(target, { recursive: true });
const stale = [];
for (const name of CONTRACTS) {
  const built = JSON.parse(readFileSync(join(root, "out", `${name}.sol`, `${name}.json`), "utf8"));
  const text = JSON.stringify({ abi: built.abi, bytecode: built.bytecode.object }, null, 1) + "\n";
  const file = join(target, `${name}.json`);
  if (!check) {
    writeFileSync(file, text);
    continue;
  }
  let shipped = "";
  try {
    shipped = readFileSync(file, "utf8");
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
  if (shipped !== text) stale.push(file);
}
if (stale.length > 0) {
  console.error(`not what contracts/src builds; run "npm run artifacts":\n${stale.join("\n")}`);
  process.exit(1);
}
console.log(check ? "artifacts: as built" : `artifacts: ${CONTRACTS.length} written`);
