// Coverage of src/ by test/unit alone, held to its floors: every line, 95% of the branches.
//
// The contracts need the compiler's IR pipeline, which maps a block of inline assembly to no line of its own. So the
// lines of a block count as often as what comes before it: a statement, or the head of its function. Branches inside
// assembly are not seen; tests of test/unit name them (a quorum with too many members, a claim too high, excess bits).
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { executable } from "./foundry.mjs";

const FLOORS = { lines: 100, branches: 95 };
const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const folder = mkdtempSync(join(tmpdir(), "ncn-coverage-"));
const report = join(folder, "lcov.info");

try {
  const run = spawnSync(
    executable("forge"),
    [
      "coverage", "--ir-minimum", "--no-match-coverage", "(test|script)/",
      "--report", "lcov", "--report-file", report, ...process.argv.slice(2),
    ],
    { cwd: root, env: { ...process.env, FOUNDRY_TEST: "test/unit" }, encoding: "utf8", maxBuffer: 1 << 28 },
  );
  if (run.status !== 0) {
    console.error(run.stdout + run.stderr);
    process.exit(run.status ?? 1);
  }
  process.exitCode = judge(parse(readFileSync(report, "utf8"))) ? 0 : 1;
} finally {
  rmSync(folder, { recursive: true });
}

/** Files of a report: path, hits by line, and the branches. */
function parse(text) {
  const files = [];
  for (const line of text.split("\n")) {
    const [key, value] = line.split(/:(.*)/);
    if (key === "SF") files.push({ path: value, lines: new Map(), branches: [] });
    const file = files.at(-1);
    if (key === "DA") file.lines.set(...value.split(",").map(Number));
    if (key === "BRDA") {
      const [number, , , hits] = value.split(",");
      file.branches.push({ line: Number(number), hits: hits === "-" ? 0 : Number(hits) });
    }
  }
  return files;
}

/** Lines (from 1) of each block of inline assembly: its first, and the one after its last. */
function assemblyBlocks(source) {
  const blocks = [];
  source.forEach((text, i) => {
    const indent = /^( *)assembly \(/.exec(text)?.[1];
    if (indent === undefined) return;
    const end = source.findIndex((other, j) => j > i && other === `${indent}}`);
    blocks.push([i + 1, end + 2]);
  });
  return blocks;
}

function judge(files) {
  let sound = true;
  const sum = { lines: [0, 0], branches: [0, 0] };
  for (const file of files) {
    const blocks = assemblyBlocks(readFileSync(join(root, file.path), "utf8").split("\n"));
    const seen = [...file.lines.entries()].filter(([n]) => !blocks.some(([a, b]) => a <= n && n < b));
    for (const [first, next] of blocks) {
      const before = seen.findLast(([n]) => n < first)?.[1] ?? 0;
      for (let n = first; n < next; ++n) if (file.lines.has(n)) file.lines.set(n, before);
    }
    const branches = file.branches.filter(({ line }) => !blocks.some(([a, b]) => a <= line && line < b));
    const missed = [...file.lines].filter(([, hits]) => hits === 0).map(([n]) => n);
    const untaken = branches.filter(({ hits }) => hits === 0).map(({ line }) => line);
    const [lines, hit] = [file.lines.size, file.lines.size - missed.length];
    sum.lines = [sum.lines[0] + hit, sum.lines[1] + lines];
    sum.branches = [sum.branches[0] + branches.length - untaken.length, sum.branches[1] + branches.length];
    const rest = missed.length + untaken.length ? `  lines ${missed} branches at ${untaken}` : "";
    const taken = `${branches.length - untaken.length}/${branches.length}`;
    console.log(`${file.path.padEnd(36)} lines ${hit}/${lines} branches ${taken}${rest}`);
  }
  for (const [kind, [hit, all]] of Object.entries(sum)) {
    const percent = (100 * hit) / all;
    const enough = percent >= FLOORS[kind];
    console.log(`${kind}: ${percent.toFixed(2)}% (floor ${FLOORS[kind]}%)${enough ? "" : "  TOO LOW"}`);
    sound &&= enough;
  }
  return sound;
}
