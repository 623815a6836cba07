// Renders DiceBear avatars: a plan in, pictures out.
//
// stdin:  one JSON object a line, {"style": "avataaars", "seed": "12", "options": {...}}; the options must hold
//         `backgroundColor`, since the pictures are opaque.
// stdout: for each line, in order, size * size * 3 bytes of RGB; or, with --png DIR, nothing: DIR/{line}.png are written.
//
// usage: node render.mjs SIZE [--png DIR] < plan.jsonl

import { createInterface } from "node:readline";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { createAvatar } from "@dicebear/core";
import * as collection from "@dicebear/collection";
import { Resvg } from "@resvg/resvg-js";

const FLUSH_BYTES = 1 << 20;

/** Draws one line of the plan as a resvg picture with `pixels` (RGBA) and `asPng()`. */
function draw({ style, seed, options }, size) {
  if (!(style in collection)) throw new Error(`unknown style: ${style}`);
  if (!options.backgroundColor) throw new Error("backgroundColor is missing");
  const svg = createAvatar(collection[style], { ...options, seed, backgroundColor: [] }).toString();
  const renderer = new Resvg(svg, {
    fitTo: { mode: "width", value: size },
    background: `#${options.backgroundColor[0]}`,
    font: { loadSystemFonts: false }, // no style draws text; looking for fonts costs more than the drawing
  });
  return renderer.render();
}

/** Drops the alpha byte of every pixel; the background made all of them opaque. */
function toRgb(rgba) {
  const rgb = Buffer.allocUnsafe((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return rgb;
}

function write(chunks) {
  const more = process.stdout.write(Buffer.concat(chunks));
  return more ? Promise.resolve() : new Promise((done) => process.stdout.once("drain", done));
}

const size = Number(process.argv[2]);
const folder = process.argv[3] === "--png" ? process.argv[4] : null;
if (!Number.isInteger(size) || size < 8) {
  console.error("usage: node render.mjs SIZE [--png DIR] < plan.jsonl");
  process.exit(2);
}
// A reader that went away ends the work; without this Node prints a stack trace.
process.stdout.on("error", () => process.exit(1));

let index = 0;
let chunks = [];
let waiting = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const picture = draw(JSON.parse(line), size);
  if (folder) {
    writeFileSync(join(folder, `${index}.png`), picture.asPng());
  } else {
    const rgb = toRgb(picture.pixels);
    chunks.push(rgb);
    waiting += rgb.length;
    if (waiting >= FLUSH_BYTES) {
      await write(chunks);
      chunks = [];
      waiting = 0;
    }
  }
  index += 1;
}
if (chunks.length) await write(chunks);
