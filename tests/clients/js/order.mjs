// What each script does: read an order from stdin, carry it out, print the outcome as JSON.
import { readFileSync } from "node:fs";

export async function carryOut(client) {
  const order = JSON.parse(readFileSync(0, "utf8"));
  try {
    const outcome = await client(order.server, order)[order.action]();
    process.stdout.write(JSON.stringify(outcome));
  } catch (error) {
    process.stderr.write(`${error.name} ${error.statusCode ?? error.status ?? ""} ${error.message} ${error.responseBody ?? ""}`);
    process.exitCode = 1;
  }
}
