// The deployment against a real node: from nothing, once more, and after a part of it only.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readFileSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { executable } from "./foundry.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
// The first account of anvil's development mnemonic.
const ACCOUNT = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
const KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
const CHAIN = 1234567; // nobody's: the file of a chain in use stays as it is
const file = join(root, "deployments", `${CHAIN}.json`);

let node;
let url;

before(async () => {
  const args = ["--port", "0", "--hardfork", "cancun", "--chain-id", String(CHAIN)];
  node = spawn(executable("anvil"), args, { stdio: ["ignore", "pipe", "inherit"] });
  for await (const line of createInterface({ input: node.stdout })) {
    const port = /Listening on 127\.0\.0\.1:(\d+)/.exec(line)?.[1];
    if (port) {
      url = `http://127.0.0.1:${port}`;
      break;
    }
  }
  node.stdout.resume();
  assert.ok(url, "anvil did not start");
});

after(async () => {
  node.kill();
  await once(node, "exit");
  rmSync(file, { force: true });
});

async function rpc(method, ...params) {
  const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
  const response = await fetch(url, { method: "POST", headers: { "content-type": "application/json" }, body });
  const answer = await response.json();
  assert.equal(answer.error, undefined, `${method}: ${JSON.stringify(answer.error)}`);
  return answer.result;
}

function deploy(extra = {}) {
  const env = { ...process.env, PRIVATE_KEY: KEY, RPC_URL: url, PROPOSERS: ACCOUNT, ...extra };
  return spawnSync("node", [join(root, "script", "deploy.mjs")], { env, encoding: "utf8" });
}

function addresses() {
  return JSON.parse(readFileSync(file, "utf8"));
}

const count = () => rpc("eth_getTransactionCount", ACCOUNT, "latest").then(Number);

test("deploys, then does nothing twice, and resumes what was broken off", async () => {
  rmSync(file, { force: true });
  const empty = await rpc("evm_snapshot");

  const first = deploy();
  assert.equal(first.status, 0, first.stdout + first.stderr);
  const deployed = addresses();
  assert.deepEqual(Object.keys(deployed).sort(), [
    "block", "chain_id", "disputes", "payment", "registry", "timelock", "token",
  ]);
  assert.equal(deployed.chain_id, CHAIN);
  for (const name of ["token", "registry", "payment", "disputes", "timelock"]) {
    assert.notEqual(await rpc("eth_getCode", deployed[name], "latest"), "0x", name);
  }
  assert.equal(await count(), 8); // five contracts, two grants, one renunciation
  const broadcast = JSON.parse(
    readFileSync(join(root, "broadcast", "Deploy.s.sol", String(CHAIN), "run-latest.json"), "utf8"),
  );

  const second = deploy();
  assert.equal(second.status, 0, second.stdout + second.stderr);
  assert.equal(await count(), 8);
  assert.deepEqual(addresses(), deployed);

  // Broken off after three of the contracts, and again after the first grant.
  assert.equal(await rpc("evm_revert", empty), true);
  for (const sent of [3, 6]) {
    const clean = await rpc("evm_snapshot");
    for (const { transaction } of broadcast.transactions.slice(0, sent)) {
      const { from, to, input } = transaction;
      const receipt = await rpc("eth_sendTransactionSync", { from, to, data: input, gas: "0xe4e1c0" });
      assert.equal(receipt.status, "0x1");
    }
    rmSync(file, { force: true });
    const resumed = deploy();
    assert.equal(resumed.status, 0, resumed.stdout + resumed.stderr);
    assert.equal(await count(), 8);
    assert.deepEqual({ ...addresses(), block: 0 }, { ...deployed, block: 0 });
    assert.equal(await rpc("evm_revert", clean), true);
  }
});

test("says what is missing", () => {
  const without = deploy({ PRIVATE_KEY: "" });
  assert.equal(without.status, 2);
  assert.match(without.stderr, /PRIVATE_KEY is not set/);
  const nobody = deploy({ PROPOSERS: "" });
  assert.equal(nobody.status, 1);
  assert.match(nobody.stderr, /Deploy__NoProposers\(1234567/);
  const contradiction = deploy({ UNBONDING_PERIOD: "1" });
  assert.equal(contradiction.status, 1, contradiction.stdout + contradiction.stderr);
  assert.match(contradiction.stderr, /Deploy__WrongAddress\("ValidatorRegistry"/);
});
