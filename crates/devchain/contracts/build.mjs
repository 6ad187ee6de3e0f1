// Compiles the contracts beside this file into creation bytecode (hex, one file per contract in
// bytecode/). See README.md for how to run it; it needs the `solc` package and nothing else.
import { createRequire } from "node:module";
import { readFileSync, writeFileSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const solc = createRequire(join(process.cwd(), "package.json"))("solc");
const names = ["PlainToken", "DollarToken", "Payouts", "ContractWallet", "Impostor"];

const input = {
  language: "Solidity",
  sources: Object.fromEntries(
    names.map((name) => [`${name}.sol`, { content: readFileSync(join(here, `${name}.sol`), "utf8") }]),
  ),
  settings: {
    optimizer: { enabled: true, runs: 200 },
    evmVersion: "cancun",
    // No metadata trailer: the bytes then depend on the source and the compiler alone.
    metadata: { bytecodeHash: "none", appendCBOR: false },
    outputSelection: { "*": { "*": ["evm.bytecode.object", "evm.methodIdentifiers"] } },
  },
};

const output = JSON.parse(solc.compile(JSON.stringify(input)));
for (const problem of output.errors ?? []) console.error(problem.formattedMessage);
if ((output.errors ?? []).some((problem) => problem.severity === "error")) process.exit(1);

mkdirSync(join(here, "bytecode"), { recursive: true });
for (const name of names) {
  const contract = output.contracts[`${name}.sol`][name];
  writeFileSync(join(here, "bytecode", `${name}.hex`), `${contract.evm.bytecode.object}\n`);
  console.log(name, contract.evm.bytecode.object.length / 2, "bytes");
  for (const [signature, selector] of Object.entries(contract.evm.methodIdentifiers)) {
    console.log("  ", selector, signature);
  }
}
