/**
 * A trie of all stop strings with the links of Aho and Corasick (https://doi.org/10.1145/360825.360855): about one step
 * a character, however many and long they are. Node 0 is the root; typed arrays keep a node small, since stop strings
 * come with requests.
 */
class StopAutomaton {
  /** Characters on the way from the root: the longest beginning of a stop string that the text ends with. */
  readonly depth: Int32Array;
  readonly #parent: Int32Array;
  /** The character that leads to a node. */
  readonly #code: Uint16Array;
  /** The node of the longest proper end that begins a stop string too. */
  readonly #link: Int32Array;
  /** Index of the longest stop string that ends at a node, or -1. */
  readonly #match: Int32Array;
  /** Children by parent * 65536 + code. A child that was made right after its parent stands there without an entry. */
  readonly #children = new Map<number, number>();
  #size = 1;
  /** 1 where a stop string begins with a character of this low byte: most characters need no further look. */
  readonly #begins = new Uint8Array(256);

  constructor(readonly stops: readonly string[]) {
    const most = stops.reduce((sum, stop) => sum + stop.length, 1);
    this.depth = new Int32Array(most);
    this.#parent = new Int32Array(most).fill(-1);
    this.#code = new Uint16Array(most);
    this.#link = new Int32Array(most);
    this.#match = new Int32Array(most).fill(-1);
    for (let i = 0; i < stops.length; i++) this.#insert(i);
    // Links lead to nodes of smaller depth, so nodes are taken in the order of depth.
    const order = Array.from({ length: this.#size }, (_, node) => node).sort((a, b) => this.depth[a] - this.depth[b]);
    for (const node of order) {
      if (this.depth[node] > 1) this.#link[node] = this.step(this.#link[this.#parent[node]], this.#code[node]);
      if (this.#match[node] < 0) this.#match[node] = this.#match[this.#link[node]];
    }
  }

  #insert(index: number): void {
    const stop = this.stops[index];
    this.#begins[stop.charCodeAt(0) & 255] = 1;
    let node = 0;
    for (let i = 0; i < stop.length; i++) {
      const code = stop.charCodeAt(i);
      let child = this.#child(node, code);
      if (child < 0) {
        child = this.#size++;
        this.#parent[child] = node;
        this.#code[child] = code;
        this.depth[child] = i + 1;
        if (child !== node + 1) this.#children.set(node * 65536 + code, child);
      }
      node = child;
    }
    this.#match[node] = index;
  }

  #child(node: number, code: number): number {
    const next = node + 1;
    if (this.#parent[next] === node && this.#code[next] === code) return next;
    return this.#children.get(node * 65536 + code) ?? -1;
  }

  step(from: number, code: number): number {
    if (from === 0 && this.#begins[code & 255] === 0) return 0;
    for (let node = from; ; node = this.#link[node]) {
      const child = this.#child(node, code);
      if (child >= 0) return child;
      if (node === 0) return 0;
    }
  }

  /** The longest stop string that ends here. */
  match(node: number): string | null {
    return this.#match[node] < 0 ? null : this.stops[this.#match[node]];
  }
}

/**
 * Watches a text for stop strings as it comes in pieces. What could be the beginning of a stop string is held back;
 * everything else is given on at once. The first stop string to be complete ends the text; of those that end at the
 * same character, the longest.
 */
export class StopMatcher {
  readonly #automaton: StopAutomaton | null;
  #node = 0;
  #held = "";
  #stopped: string | null = null;

  /** @param stops empty strings are ignored */
  constructor(stops: readonly string[]) {
    const used = stops.filter((stop) => stop !== "");
    this.#automaton = used.length === 0 ? null : new StopAutomaton(used);
  }

  /** Takes the next piece. @returns the text that is certain now, and the stop string that ended it, if one did */
  push(piece: string): { text: string; stopped: string | null } {
    if (this.#stopped !== null) return { text: "", stopped: this.#stopped };
    if (this.#automaton === null) return { text: piece, stopped: null };
    const automaton = this.#automaton;
    for (let i = 0; i < piece.length; i++) {
      this.#node = automaton.step(this.#node, piece.charCodeAt(i));
      const match = automaton.match(this.#node);
      if (match === null) continue;
      const text = this.#held + piece.slice(0, i + 1);
      this.#held = "";
      this.#stopped = match;
      return { text: text.slice(0, text.length - match.length), stopped: match };
    }
    const text = this.#held + piece;
    const certain = text.length - automaton.depth[this.#node];
    this.#held = text.slice(certain);
    return { text: text.slice(0, certain), stopped: null };
  }

  /** The text ended by itself. @returns what was held back */
  flush(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }
}
