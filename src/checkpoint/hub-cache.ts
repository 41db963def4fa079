import { existsSync, readdirSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { readText } from "./read.ts";

/**
 * Looks a repository up in the local Hugging Face cache, laid out as
 * models--ORGANISATION--NAME/{refs/main, snapshots/REVISION}. A repository fetched by its revision has no refs/main;
 * its only snapshot is meant.
 * @param repository e.g. "Qwen/Qwen3-0.6B"
 * @returns the snapshot's folder, or null; and the places that were looked at
 */
export function findInHubCache(repository: string): { folder: string | null; searched: string[] } {
  const name = `models--${repository.replaceAll("/", "--")}`;
  const searched: string[] = [];
  for (const root of cacheRoots()) {
    const folder = join(root, name);
    searched.push(folder);
    const revision = readText(join(folder, "refs", "main"))?.trim() ?? onlyEntry(join(folder, "snapshots"));
    if (revision === undefined || !/^[\w.-]+$/.test(revision)) continue;
    const snapshot = join(folder, "snapshots", revision);
    if (existsSync(snapshot)) return { folder: snapshot, searched };
  }
  return { folder: null, searched };
}

function onlyEntry(folder: string): string | undefined {
  const entries = existsSync(folder) ? readdirSync(folder) : [];
  return entries.length === 1 ? entries[0] : undefined;
}

function cacheRoots(): string[] {
  const { HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME } = process.env;
  const cache = XDG_CACHE_HOME || join(homedir(), ".cache");
  const roots = [
    HF_HUB_CACHE,
    HUGGINGFACE_HUB_CACHE,
    HF_HOME && join(HF_HOME, "hub"),
    join(cache, "huggingface", "hub"),
  ];
  return [...new Set(roots.filter((root): root is string => Boolean(root)))];
}
