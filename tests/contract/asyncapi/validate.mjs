// Reads AsyncAPI documents from the files named, and tells what the official parser finds in them; 1 for any error.
import { readFile } from "node:fs/promises";
import { Parser } from "@asyncapi/parser";

for (const file of process.argv.slice(2)) {
  const { document, diagnostics } = await new Parser().parse(await readFile(file, "utf8"));
  for (const { severity, code, path, message } of diagnostics) {
    console.error(`${file}: ${["error", "warning", "info", "hint"][severity]} ${code} ${path.join("/")}: ${message}`);
  }
  if (!document || diagnostics.some(({ severity }) => severity === 0)) process.exitCode = 1;
  else console.log(`${file}: ${document.channels().all().length} channels, ${document.messages().all().length} messages`);
}
