import { type Environment, Interpreter } from "@huggingface/jinja";

/** A chat that the model's template refuses, or a template that cannot be rendered. Becomes a 400. */
export class TemplateError extends Error {}

// Templates come with the model and messages from anyone: what one rendering may cost.
const MAX_STEPS = 5_000_000;
const MAX_MILLISECONDS = 5_000;
const MAX_CHARACTERS = 64 << 20;
const MAX_LIST = 1 << 20;
const MAX_DEPTH = 1000;

type Statement = Parameters<Interpreter["evaluate"]>[0];
type Value = ReturnType<Interpreter["evaluate"]>;

/** The parts of the syntax tree that are looked at here. */
interface Node {
  type: string;
  value?: unknown;
  callee?: Node;
  args?: Node[];
  object?: Node;
  property?: Node;
  computed?: boolean;
  operator?: { value: string };
  left?: Node;
  right?: Node;
}

/**
 * Jinja as Python has it where the library would silently make another text, and with an end: Jinja has no endless
 * loop, but nested loops and strings that double come close.
 */
export class BoundedInterpreter extends Interpreter {
  #steps = 0;
  #depth = 0;
  readonly #deadline = performance.now() + MAX_MILLISECONDS;

  override evaluate(statement: Statement, environment: Environment): Value {
    this.#steps++;
    if (this.#steps > MAX_STEPS || ((this.#steps & 1023) === 0 && performance.now() > this.#deadline)) {
      throw new TemplateError("the model's chat template takes too long");
    }
    if (this.#depth >= MAX_DEPTH) throw new TemplateError("the model's chat template nests too deep");
    this.#depth++;
    try {
      return this.#bound(
        this.#strip(statement as Node, environment) ??
          this.#equal(statement as Node, environment) ??
          super.evaluate(statement, environment),
      );
    } finally {
      this.#depth--;
    }
  }

  #bound(result: Value): Value {
    const value: unknown = result.value;
    if (typeof value === "string" ? value.length > MAX_CHARACTERS : Array.isArray(value) && value.length > MAX_LIST) {
      throw new TemplateError("the model's chat template makes too much text");
    }
    return result;
  }

  /** strip, lstrip and rstrip with the characters to remove; the library removes white space whatever is asked for. */
  #strip(node: Node | undefined, environment: Environment): Value | null {
    const callee = node?.type === "CallExpression" ? node.callee : undefined;
    const name = callee?.type === "MemberExpression" && !callee.computed ? callee.property?.value : undefined;
    if (node?.args?.length !== 1 || (name !== "strip" && name !== "lstrip" && name !== "rstrip")) return null;
    const text: unknown = this.evaluate(callee?.object as Statement, environment).value;
    const characters: unknown = this.evaluate(node.args[0] as Statement, environment).value;
    if (typeof text !== "string" || typeof characters !== "string") return null;
    const set = new Set(characters);
    const all = [...text];
    let start = 0;
    let end = all.length;
    if (name !== "rstrip") while (start < end && set.has(all[start])) start++;
    if (name !== "lstrip") while (end > start && set.has(all[end - 1])) end--;
    return this.#value({ type: "StringLiteral", value: all.slice(start, end).join("") });
  }

  /** Equality between values of one kind only; the library takes "" for false and undefined for none. */
  #equal(node: Node | undefined, environment: Environment): Value | null {
    const operator = node?.type === "BinaryExpression" ? node.operator?.value : undefined;
    if (operator !== "==" && operator !== "!=") return null;
    const equal =
      comparable(this.evaluate(node?.left as Statement, environment)) ===
      comparable(this.evaluate(node?.right as Statement, environment));
    return this.#value({ type: "Identifier", value: String(equal === (operator === "==")) });
  }

  #value(node: Node): Value {
    return super.evaluate(node as Statement, this.global);
  }
}

/** A JavaScript value that is identical for values that Python calls equal; lists and objects equal themselves. */
function comparable({ type, value }: Value): unknown {
  if (type === "NullValue") return null;
  return typeof value === "boolean" ? Number(value) : value;
}
