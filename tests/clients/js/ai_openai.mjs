import { createOpenAI } from "@ai-sdk/openai";
import { withModel } from "./ai.mjs";

await withModel((server) => createOpenAI({ baseURL: `${server.url}/v1`, apiKey: server.api_key })(server.model));
