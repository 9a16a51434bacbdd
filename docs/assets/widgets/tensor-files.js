// Reads .safetensors and .npz in the page: names, types, shapes and numbers. Nothing is sent anywhere.

/** What a reader is told, in one sentence. */
export class Refusal extends Error {}

/** Bytes of a number of each type that is read. */
export const WIDTHS = { F64: 8, F32: 4, F16: 2, BF16: 2, I64: 8, I32: 4, I16: 2, I8: 1, U64: 8, U32: 4, U16: 2, U8: 1, BOOL: 1 };
const OF_NUMPY = { f8: "F64", f4: "F32", f2: "F16", V2: "BF16", i8: "I64", i4: "I32", i2: "I16", i1: "I8", u8: "U64", u4: "U32", u2: "U16", u1: "U8", b1: "BOOL" };
const MOST = 100_000_000; // numbers of a tensor: more than a page should hold

export const product = (shape) => shape.reduce((a, b) => a * b, 1);

/** The number whose 16 bits these are, in float16. */
export function fromFloat16(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 0x1f, fraction = bits & 0x3ff;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** Numbers of a type, from their bytes, in float64: exact, but for whole numbers beyond 2^53. */
export function numbersOf(bytes, type, little = true) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), width = WIDTHS[type];
  const wide = new Uint32Array(1), narrow = new Float32Array(wide.buffer);
  const read = {
    F64: (i) => view.getFloat64(i, little),
    F32: (i) => view.getFloat32(i, little),
    F16: (i) => fromFloat16(view.getUint16(i, little)),
    BF16: (i) => { wide[0] = view.getUint16(i, little) << 16; return narrow[0]; },
    I64: (i) => Number(view.getBigInt64(i, little)),
    I32: (i) => view.getInt32(i, little),
    I16: (i) => view.getInt16(i, little),
    I8: (i) => view.getInt8(i),
    U64: (i) => Number(view.getBigUint64(i, little)),
    U32: (i) => view.getUint32(i, little),
    U16: (i) => view.getUint16(i, little),
    U8: (i) => view.getUint8(i),
    BOOL: (i) => (view.getUint8(i) ? 1 : 0),
  }[type];
  const numbers = new Float64Array(bytes.byteLength / width);
  for (let i = 0; i < numbers.length; i++) numbers[i] = read(i * width);
  return numbers;
}

const latin = (bytes) => { let words = ""; for (const b of bytes) words += String.fromCharCode(b); return words; };
const thousands = (n) => n.toLocaleString("en");

function tooMany(file, name, shape) {
  if (product(shape) > MOST) throw new Refusal(`${file}: ${name} has ${thousands(product(shape))} numbers; this page takes a hundred million at most.`);
}

/** A safetensors file: { tensors: { name: { type, shape, data } }, story: its metadata }. */
export function readSafetensors(bytes, file = "The file") {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = bytes.length < 8 ? 0 : view.getUint32(0, true) + 2 ** 32 * view.getUint32(4, true);
  if (bytes.length < 9 || bytes[8] !== 0x7b || length > 1e8) throw new Refusal(`${file} is neither safetensors nor npz.`);
  if (8 + length > bytes.length) {
    throw new Refusal(`${file} is cut off: its header alone has ${thousands(length)} bytes, the file ${thousands(bytes.length)}.`);
  }
  let header;
  try {
    header = JSON.parse(decodeURIComponent(escape(latin(bytes.subarray(8, 8 + length)))));
  } catch {
    throw new Refusal(`${file} is damaged: its header cannot be read.`);
  }
  const tensors = {};
  for (const [name, told] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets: place } = told ?? {};
    const whole = (list) => Array.isArray(list) && list.every((n) => Number.isSafeInteger(n) && n >= 0);
    if (!whole(shape) || !whole(place) || place.length !== 2) throw new Refusal(`${file} is damaged: its header says no shape or place of ${name}.`);
    if (!WIDTHS[dtype]) throw new Refusal(`${file}: ${name} has the type ${dtype}, which this page does not read; store it as F32.`);
    tooMany(file, name, shape);
    const [begin, end] = place;
    if (end - begin !== product(shape) * WIDTHS[dtype]) {
      throw new Refusal(`${file} is damaged: ${name} should have ${thousands(product(shape) * WIDTHS[dtype])} bytes and has ${thousands(end - begin)}.`);
    }
    if (8 + length + end > bytes.length) {
      throw new Refusal(`${file} is cut off: ${name} ends at byte ${thousands(8 + length + end)}, the file at ${thousands(bytes.length)}.`);
    }
    tensors[name] = { type: dtype, shape, data: numbersOf(bytes.subarray(8 + length + begin, 8 + length + end), dtype) };
  }
  return { tensors, story: header.__metadata__ ?? {} };
}

/** What a zip file holds: [{ name, method, bytes }], its bytes still packed where method is 8. */
export function zipEntries(bytes, file = "The file") {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Refusal(`${file} is cut off: it begins as an npz file and its table of contents is missing.`);
  const entries = [];
  let at = view.getUint32(end + 16, true);
  for (let i = 0; i < view.getUint16(end + 10, true); i++) {
    if (at + 46 > bytes.length || view.getUint32(at, true) !== 0x02014b50) throw new Refusal(`${file} is damaged: its table of contents cannot be read.`);
    const method = view.getUint16(at + 10, true), size = view.getUint32(at + 20, true), names = view.getUint16(at + 28, true);
    const name = latin(bytes.subarray(at + 46, at + 46 + names)), local = view.getUint32(at + 42, true);
    if (view.getUint16(at + 8, true) & 1) throw new Refusal(`${file}: ${name} is encrypted.`);
    if (method !== 0 && method !== 8) throw new Refusal(`${file}: ${name} is packed in a way that this page does not know; write it with numpy.savez.`);
    if (local + 30 > bytes.length) throw new Refusal(`${file} is damaged: ${name} is not where its table of contents says.`);
    const begin = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    if (begin + size > bytes.length) throw new Refusal(`${file} is cut off: ${name} ends after the file does.`);
    entries.push({ name, method, bytes: bytes.subarray(begin, begin + size) });
    at += 46 + names + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return entries;
}

/** One array of an npz file, as numpy writes it; an array in Fortran's order is put into C's. */
export function readNpy(bytes, name, file = "The file") {
  if (latin(bytes.subarray(0, 6)) !== "\x93NUMPY") throw new Refusal(`${file}: ${name} is no array of NumPy's.`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), wide = bytes[6] > 1;
  const begin = wide ? 12 : 10, length = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const told = latin(bytes.subarray(begin, begin + length));
  const kind = told.match(/'descr': '([<>|=])(\w\d+)'/), order = told.match(/'fortran_order': (True|False)/), sizes = told.match(/'shape': \(([\d, ]*)\)/);
  const type = kind && OF_NUMPY[kind[2]];
  if (!type) {
    const what = told.match(/'descr': ('[^']*'|\[)/)?.[1].replace("[", "a record") ?? "no type";
    throw new Refusal(`${file}: ${name} has the type ${what}, which this page does not read; store it as float32.`);
  }
  if (!order || !sizes) throw new Refusal(`${file} is damaged: the header of ${name} cannot be read.`);
  const shape = sizes[1].split(",").filter((n) => n.trim()).map(Number), body = bytes.subarray(begin + length);
  tooMany(file, name, shape);
  if (body.length !== product(shape) * WIDTHS[type]) {
    throw new Refusal(`${file} is damaged: ${name} should have ${thousands(product(shape) * WIDTHS[type])} bytes and has ${thousands(body.length)}.`);
  }
  const data = numbersOf(body, type, kind[1] !== ">");
  return { type, shape, data: order[1] === "True" ? fromFortran(data, shape) : data };
}

/** The same numbers with the last axis running fastest, where the first one did. */
export function fromFortran(data, shape) {
  const turned = new Float64Array(data.length), index = shape.map(() => 0);
  for (let i = 0; i < data.length; i++) {
    let at = 0;
    for (let axis = 0; axis < shape.length; axis++) at = at * shape[axis] + index[axis];
    turned[at] = data[i];
    for (let axis = 0; axis < shape.length && ++index[axis] === shape[axis]; axis++) index[axis] = 0;
  }
  return turned;
}

async function inflated({ name, method, bytes }, file) {
  if (method === 0) return bytes;
  try {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    throw new Refusal(`${file} is damaged: ${name} cannot be unpacked.`);
  }
}

/** Any of the files that the page takes: { tensors, story }; a golden.json has a story only. */
export async function readFile(bytes, file = "The file") {
  if (bytes.length === 0) throw new Refusal(`${file} is empty.`);
  if (file.endsWith(".json")) {
    try {
      return { tensors: {}, story: JSON.parse(new TextDecoder().decode(bytes)) };
    } catch {
      throw new Refusal(`${file} is no JSON.`);
    }
  }
  if (latin(bytes.subarray(0, 2)) !== "PK") return readSafetensors(bytes, file);
  const tensors = {};
  for (const entry of zipEntries(bytes, file)) {
    if (!entry.name.endsWith(".npy")) throw new Refusal(`${file} is a zip of other things than arrays (${entry.name}); write it with numpy.savez or as safetensors.`);
    const name = entry.name.slice(0, -4);
    tensors[name] = readNpy(await inflated(entry, file), name, file);
  }
  return { tensors, story: {} };
}
