// Checks the form of a JSON schema while it is typed. Whether the server can hold an answer to it, the server says.

const types = ["object", "array", "string", "number", "integer", "boolean", "null"];
const schemas = ["additionalProperties", "items", "additionalItems", "contains", "not", "if", "then", "else",
  "propertyNames", "unevaluatedItems", "unevaluatedProperties"];
const lists = ["allOf", "anyOf", "oneOf", "prefixItems"];
const maps = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];
const counts = ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"];
const deepest = 100;

const isObject = (v: unknown): v is Record<string, unknown> => typeof v === "object" && v !== null && !Array.isArray(v);

/** What is wrong with a text as a schema, with where; "" where nothing is. */
export function fault(text: string): string {
  let value: unknown;
  try { value = JSON.parse(text); } catch (e) { return (e as Error).message; }
  return faultOf(value, "#", 0);
}

function faultOf(v: unknown, at: string, depth: number): string {
  if (typeof v === "boolean") return "";
  if (!isObject(v)) return `${at}: want an object, true or false`;
  if (depth > deepest) return `${at}: nested too deeply`;
  const type = v["type"];
  for (const k of type === undefined ? [] : Array.isArray(type) ? type : [type]) {
    if (!types.includes(k)) return `${at}/type: ${JSON.stringify(k)}; want ${types.join(", ")}`;
  }
  if ("enum" in v && (!Array.isArray(v["enum"]) || v["enum"].length === 0)) return `${at}/enum: want a list of values`;
  const required = v["required"];
  if (required !== undefined && !(Array.isArray(required) && required.every((k) => typeof k === "string"))) {
    return `${at}/required: want a list of names`;
  }
  for (const k of counts) {
    if (k in v && !(Number.isInteger(v[k]) && (v[k] as number) >= 0)) return `${at}/${k}: want a whole number from 0`;
  }
  if (typeof v["pattern"] === "string") {
    try { new RegExp(v["pattern"], "u"); } catch (e) { return `${at}/pattern: ${(e as Error).message}`; }
  }
  return faultBelow(v, at, depth + 1);
}

function faultBelow(v: Record<string, unknown>, at: string, depth: number): string {
  const below: [string, unknown][] = [];
  for (const k of schemas) {
    if (!(k in v)) continue;
    if (k === "items" && Array.isArray(v[k])) v[k].forEach((s, i) => below.push([`${at}/items/${i}`, s]));
    else below.push([`${at}/${k}`, v[k]]);
  }
  for (const k of lists) {
    const list = v[k];
    if (list === undefined) continue;
    if (!Array.isArray(list) || list.length === 0) return `${at}/${k}: want a list of schemas`;
    list.forEach((s, i) => below.push([`${at}/${k}/${i}`, s]));
  }
  for (const k of maps) {
    const map = v[k];
    if (map === undefined) continue;
    if (!isObject(map)) return `${at}/${k}: want an object of schemas`;
    for (const [name, s] of Object.entries(map)) below.push([`${at}/${k}/${name}`, s]);
  }
  for (const [where, s] of below) {
    const f = faultOf(s, where, depth);
    if (f) return f;
  }
  return "";
}
