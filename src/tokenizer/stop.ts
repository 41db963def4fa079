/** A trie of all stop strings with the links of Aho and Corasick: one step a character, however many there are. */
class StopAutomaton {
  /** Node 0 is the root. */
  readonly #next: Map<number, number>[] = [new Map()];
  readonly #parentLink: number[] = [0];
  /** Characters on the way from the root: the longest beginning of a stop string that the text ends with. */
  readonly depth: number[] = [0];
  /** The longest stop string that ends at the node, or null. */
  readonly match: (string | null)[] = [null];

  constructor(stops: readonly string[]) {
    for (const stop of stops) this.#insert(stop);
    const queue = [...this.#next[0].values()];
    for (let head = 0; head < queue.length; head++) {
      const node = queue[head];
      for (const [code, child] of this.#next[node]) {
        const link = this.step(this.#parentLink[node], code);
        this.#parentLink[child] = link;
        this.match[child] ??= this.match[link];
        queue.push(child);
      }
    }
  }

  #insert(stop: string): void {
    let node = 0;
    for (let i = 0; i < stop.length; i++) {
      const code = stop.charCodeAt(i);
      let child = this.#next[node].get(code);
      if (child === undefined) {
        child = this.#next.length;
        this.#next.push(new Map());
        this.#parentLink.push(0);
        this.depth.push(i + 1);
        this.match.push(null);
        this.#next[node].set(code, child);
      }
      node = child;
    }
    this.match[node] = stop;
  }

  step(from: number, code: number): number {
    for (let node = from; ; node = this.#parentLink[node]) {
      const child = this.#next[node].get(code);
      if (child !== undefined) return child;
      if (node === 0) return 0;
    }
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
      const match = automaton.match[this.#node];
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
