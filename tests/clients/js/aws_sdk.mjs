import { BedrockRuntimeClient, ConverseCommand, ConverseStreamCommand } from "@aws-sdk/client-bedrock-runtime";
import { carryOut } from "./order.mjs";

await carryOut((server, { messages, maxTokens, tool }) => {
  const client = new BedrockRuntimeClient({
    endpoint: server.url,
    region: "us-east-1",
    credentials: { accessKeyId: server.access_key_id, secretAccessKey: server.secret_access_key },
    maxAttempts: 1,
  });
  const asked = {
    modelId: server.model,
    messages: messages.map(({ role, content }) => ({ role, content: [{ text: content }] })),
    inferenceConfig: { maxTokens, temperature: 0 },
  };
  const toolSpec = { name: tool.name, description: tool.description, inputSchema: { json: tool.schema } };
  return {
    async ask() {
      const answer = await client.send(new ConverseCommand(asked));
      return answer.output.message.content[0].text;
    },
    async stream() {
      const answer = await client.send(new ConverseStreamCommand(asked));
      const said = [];
      let stopped = false;
      for await (const event of answer.stream) {
        if (event.contentBlockDelta) said.push(event.contentBlockDelta.delta.text);
        stopped ||= event.metadata !== undefined;
      }
      if (!stopped) throw new Error("the stream ended without its last event");
      return said;
    },
    async call() {
      const toolConfig = { tools: [{ toolSpec }], toolChoice: { tool: { name: tool.name } } };
      const answer = await client.send(new ConverseCommand({ ...asked, toolConfig }));
      return answer.output.message.content.find((block) => block.toolUse).toolUse;
    },
  };
});
