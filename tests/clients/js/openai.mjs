import OpenAI from "openai";
import { carryOut } from "./order.mjs";

await carryOut((server, { messages, maxTokens, tool }) => {
  const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: server.api_key, maxRetries: 0 });
  const asked = { model: server.model, messages, max_tokens: maxTokens, temperature: 0 };
  const parameters = tool.schema;
  const tools = [{ type: "function", function: { name: tool.name, description: tool.description, parameters } }];
  return {
    async ask() {
      const answer = await client.chat.completions.create(asked);
      return answer.choices[0].message.content;
    },
    async stream() {
      const said = [];
      for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
        if (chunk.choices[0]?.delta.content) said.push(chunk.choices[0].delta.content);
      }
      return said;
    },
    async call() {
      const answer = await client.chat.completions.create({ ...asked, tools, tool_choice: "required" });
      const made = answer.choices[0].message.tool_calls[0].function;
      return { name: made.name, input: JSON.parse(made.arguments) };
    },
  };
});
