import { createAmazonBedrock } from "@ai-sdk/amazon-bedrock";
import { withModel } from "./ai.mjs";

await withModel((server) =>
  createAmazonBedrock({
    baseURL: server.url,
    region: "us-east-1",
    accessKeyId: server.access_key_id,
    secretAccessKey: server.secret_access_key,
  })(server.model),
);
