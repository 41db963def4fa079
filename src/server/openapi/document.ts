/**
 * The OpenAPI description of this server: requests from the schemas that check them, answers from those that the tests
 * hold them against. https://spec.openapis.org/oas/v3.2.0
 */
import { z } from "zod";
import type { ServerContext } from "../context.ts";
import { keyWanted } from "../middleware/api-key.ts";
import { version } from "../routes/health.ts";
import { descriptions, formsAccepted } from "./fields.ts";
import { type ErrorStatus, errors, type Operation, operations, requestSchemas, responseSchemas } from "./operations.ts";

export type JsonSchema = z.core.JSONSchema.JSONSchema;

const reference = (schema: string) => ({ $ref: `#/components/schemas/${schema}` });

/** @returns the document as it is sent */
export function openApiDocument({ options }: Pick<ServerContext, "options">): object {
  const keys = options.apiKeys.length > 0;
  const adminKeys = options.adminKeys.length > 0;
  const security = ({ path }: Operation): object[] => {
    const wanted = keyWanted(path, options.protectMetrics);
    if (wanted === "admin" && adminKeys) return [{ AdminKey: [] }];
    return wanted !== null && keys ? [{ ApiKey: [] }] : [];
  };
  const bearer = (description: string) => ({ type: "http", scheme: "bearer", description });
  return {
    openapi: "3.2.0",
    info: {
      title: "minisgl",
      version,
      description:
        "The OpenAI API, and what operators and routers ask for. Unknown fields are ignored; a null counts as left out.",
    },
    servers: [{ url: "/" }],
    paths: Object.fromEntries(
      operations.map((operation) => [operation.path, pathItem(operation, security(operation))]),
    ),
    components: {
      schemas: { ...requestComponents(), ...responseComponents() },
      responses: Object.fromEntries(
        Object.entries(errors).map(([status, text]) => [status, errorResponse(status, text)]),
      ),
      securitySchemes: {
        ...(keys && { ApiKey: bearer("One of the keys of --api-key") }),
        ...(adminKeys && { AdminKey: bearer("One of the keys of --admin-api-key") }),
      },
    },
  };
}

function pathItem(operation: Operation, security: object[]): object {
  const { path, methods, tag, summary, request, example } = operation;
  const statuses: ErrorStatus[] = [...operation.errors, ...(security.length > 0 ? [401 as const] : [])];
  const body = request && { required: true, content: { "application/json": { schema: reference(request), example } } };
  const parameters = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => ({
    name,
    in: "path",
    required: true,
    schema: { type: "string", minLength: 1 },
  }));
  const shared = {
    tags: [tag],
    summary,
    security,
    ...(parameters.length > 0 && { parameters }),
    ...(body && { requestBody: body }),
    responses: {
      200: success(operation),
      ...Object.fromEntries(statuses.map((status) => [status, { $ref: `#/components/responses/${status}` }])),
    },
  };
  const name = path.replace(/\W+/g, "_").replace(/^_|_$/g, "") || "root";
  return Object.fromEntries(methods.map((method) => [method, { operationId: `${method}_${name}`, ...shared }]));
}

function success({ answers, events }: Operation): object {
  const content = Object.entries(answers).map(([type, schema]) => [type, mediaType(type, schema, events)]);
  return { description: "The answer", headers: requestIdHeader, content: Object.fromEntries(content) };
}

function mediaType(type: string, schema: string | null, events: string | undefined): object {
  if (events !== undefined && type === "text/event-stream") return { itemSchema: eventSchema(events) };
  if (schema !== null) return { schema: reference(schema) };
  return { schema: { type: type === "application/json" ? "object" : "string" } };
}

/** An event of a stream, as the specification has it: an object of strings, whose `data` is JSON. */
function eventSchema(schema: string): object {
  const json = (name: string) => ({ contentMediaType: "application/json", contentSchema: reference(name) });
  const data = { type: "string", anyOf: [{ const: "[DONE]" }, json(schema), json("Error")] };
  return { type: "object", required: ["data"], properties: { data } };
}

const requestIdHeader = {
  "x-request-id": { description: "The request's own, or a new one", schema: { type: "string" } },
};

const errorHeaders: Record<string, object> = {
  401: { "www-authenticate": { schema: { type: "string" } } },
  429: { "retry-after": { description: "Seconds", schema: { type: "string" } } },
};

function errorResponse(status: string, description: string): object {
  const headers = { ...requestIdHeader, ...errorHeaders[status] };
  return { description, headers, content: { "application/json": { schema: reference("Error") } } };
}

/** Schemas as JSON Schema, by name; a schema inside of another is a reference where it has a name. */
function components(schemas: Record<string, z.ZodType>): Record<string, JsonSchema> {
  const registry = z.registry<{ id: string }>();
  for (const [id, schema] of Object.entries(schemas)) registry.add(schema, { id });
  const made = z.toJSONSchema(registry, {
    unrepresentable: "any",
    uri: (id) => reference(id).$ref,
  });
  return Object.fromEntries(
    Object.entries(made.schemas).map(([id, { $schema, $id, ...schema }]) => [id, schema as JsonSchema]),
  );
}

const responseComponents = (): Record<string, JsonSchema> => components(responseSchemas);

function requestComponents(): Record<string, JsonSchema> {
  const forms = Object.fromEntries(
    Object.entries(formsAccepted).map(([name, schema]) => {
      const { $schema, ...made } = z.toJSONSchema(schema, { io: "input" });
      return [name, made as JsonSchema];
    }),
  );
  const made = Object.entries(components(requestSchemas));
  return Object.fromEntries(made.map(([body, schema]) => [body, asAccepted(schema, body, forms)]));
}

/** A request's schema as the server means it: unknown fields and nulls pass, and what zod leaves open is told. */
function asAccepted(schema: JsonSchema, body: string, forms: Record<string, JsonSchema>): JsonSchema {
  if (schema.type === "array") return { ...schema, items: asAccepted(schema.items as JsonSchema, body, forms) };
  if (schema.properties === undefined) return schema;
  const { additionalProperties, properties, required = [], ...rest } = schema;
  const field = (name: string, given: JsonSchema): JsonSchema => {
    const accepted = asAccepted(forms[`${body}.${name}`] ?? forms[name] ?? given, body, forms);
    const description = descriptions[`${body}.${name}`] ?? descriptions[name];
    return { ...(required.includes(name) ? accepted : orNull(accepted)), description };
  };
  const entries = Object.entries(properties).map(([name, given]) => [name, field(name, given as JsonSchema)]);
  return { ...rest, properties: Object.fromEntries(entries), ...(required.length > 0 && { required }) };
}

function orNull(schema: JsonSchema): JsonSchema {
  if (schema.anyOf !== undefined) return { ...schema, anyOf: [...schema.anyOf, { type: "null" }] };
  const simple = typeof schema.type === "string" && schema.enum === undefined && schema.const === undefined;
  return simple ? ({ ...schema, type: [schema.type, "null"] } as JsonSchema) : { anyOf: [schema, { type: "null" }] };
}
