import { describe, expect, test } from "bun:test";
import { IncrementalDetokenizer, TokenTable } from "../../src/tokenizer/detokenizer.ts";
import type { VocabularyBytes } from "../../src/tokenizer/vocabulary.ts";

/** A vocabulary of the given byte strings; texts stand for their UTF-8. */
function tableOf(tokens: (string | number[])[], special: number[] = [], stripsFirstSpace = false): TokenTable {
  const pieces = tokens.map((token) =>
    typeof token === "string" ? new TextEncoder().encode(token) : Uint8Array.from(token),
  );
  const vocabulary: VocabularyBytes = {
    offsets: new Uint32Array(tokens.length + 1),
    bytes: Uint8Array.from(pieces.flatMap((piece) => [...piece])),
    special: Uint8Array.from(tokens, (_, id) => (special.includes(id) ? 1 : 0)),
    stripsFirstSpace,
  };
  pieces.forEach((piece, id) => {
    vocabulary.offsets[id + 1] = vocabulary.offsets[id] + piece.length;
  });
  return new TokenTable(vocabulary);
}

/** Every single byte is a token: id = byte. */
const bytes = tableOf(Array.from({ length: 256 }, (_, byte) => [byte]));
const push = (table: TokenTable, ids: number[], options = {}) => {
  const detokenizer = new IncrementalDetokenizer(table, options);
  return [...ids.map((id) => detokenizer.push(id)), detokenizer.flush()];
};

describe("streaming", () => {
  test("a character comes with its last byte", () => {
    expect(push(bytes, [...new TextEncoder().encode("é€😀a")])).toEqual([
      "",
      "é",
      "",
      "",
      "€",
      "",
      "",
      "",
      "😀",
      "a",
      "",
    ]);
  });

  test("tokens may begin and end within characters", () => {
    const table = tableOf(["a", [0xe2, 0x82], [0xac, 0x62, 0xf0], [0x9f, 0x98, 0x80], " the"]);
    expect(push(table, [0, 1, 2, 3, 4])).toEqual(["a", "", "€b", "😀", " the", ""]);
  });

  test("what never becomes a character is U+FFFD, at once where that is certain", () => {
    expect(push(bytes, [0x61, 0xe2, 0x82])).toEqual(["a", "", "", "\uFFFD"]);
    expect(push(bytes, [0xff, 0x61])).toEqual(["\uFFFD", "a", ""]);
    expect(push(bytes, [0xc3, 0x61])).toEqual(["", "\uFFFDa", ""]);
    expect(push(bytes, [0x80, 0x80])).toEqual(["\uFFFD", "\uFFFD", ""]);
  });

  test("U+FFFD and a byte order mark are ordinary characters", () => {
    const table = tableOf(["\uFFFD", "\uFEFF", "x"]);
    expect(push(table, [0, 1, 2, 1])).toEqual(["\uFFFD", "\uFEFF", "x", "\uFEFF", ""]);
  });

  test("equals decoding all bytes at once, whatever the bytes", () => {
    let state = 7;
    const random = (limit: number) => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      return (state >>> 8) % limit;
    };
    const characters = [..."aé€😀\uFEFF𐍈ß漢"];
    const tokens: number[][] = [];
    for (let i = 0; i < 300; i++) {
      const text = Array.from({ length: 1 + random(3) }, () => characters[random(characters.length)]).join("");
      const encoded = [...new TextEncoder().encode(text)];
      const start = random(encoded.length);
      tokens.push(
        i % 3 ? encoded.slice(start, start + 1 + random(4)) : Array.from({ length: random(4) }, () => random(256)),
      );
    }
    const table = tableOf(tokens);
    for (let round = 0; round < 2000; round++) {
      const ids = Array.from({ length: random(12) }, () => random(tokens.length));
      const whole = new TextDecoder("utf-8", { ignoreBOM: true }).decode(
        Uint8Array.from(ids.flatMap((id) => tokens[id])),
      );
      expect(push(table, ids).join("")).toBe(whole);
      expect(table.decode(ids)).toBe(whole);
    }
  });
});

describe("special tokens", () => {
  const table = tableOf(["a", "<s>", [0xc3], [0xa9]], [1]);

  test("are left out, or kept on request", () => {
    expect(table.decode([1, 0, 1, 0])).toBe("aa");
    expect(table.decode([1, 0, 1], { skipSpecialTokens: false })).toBe("<s>a<s>");
    expect(table.isSpecial(1)).toBe(true);
    expect(table.isSpecial(0)).toBe(false);
  });

  test("do not break a character", () => {
    expect(push(table, [2, 1, 3])).toEqual(["", "", "é", ""]);
  });
});

describe("SentencePiece", () => {
  const table = tableOf([" Hello", " ", "x", "<s>", [0x20]], [3], true);

  test("the first space of a text is not part of it", () => {
    expect(table.decode([0, 0])).toBe("Hello Hello");
    expect(table.decode([3, 0])).toBe("Hello");
    expect(table.decode([1, 1, 2])).toBe(" x");
    expect(table.decode([2, 0])).toBe("x Hello");
    expect(table.decode([])).toBe("");
  });

  test("unless the tokens go on from others", () => {
    expect(table.decode([0, 0], { continues: true })).toBe(" Hello Hello");
    expect(push(table, [0, 0], { continues: true })).toEqual([" Hello", " Hello", ""]);
  });
});

test("ids outside the vocabulary are no text", () => {
  const table = tableOf(["a", "b"]);
  expect(table.decode([0, 2, 1_000_000, -1, 1])).toBe("ab");
  expect(table.size).toBe(2);
});
