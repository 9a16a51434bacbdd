// Bring your tensor: an op's inputs and outputs in a file, judged in the page. Nothing is sent anywhere.
import { el, power, row, strong, voice } from "./kit.js";
import { readFile, Refusal } from "./tensor-files.js";
import { casesOf, judgeAll, OPS } from "./tensor-ops.js";

const TYPES = { F64: "float64", F32: "float32", F16: "float16", BF16: "bfloat16" };
const SAMPLES = { "A right one": "right.safetensors", "A wrong one": "wrong.npz" };

/** Files as bytes, [{ name, bytes }], to the report, or one sentence: { refused }. */
export async function verdict(files, op) {
  try {
    const read = [];
    for (const { name, bytes } of files) read.push(await readFile(bytes, name));
    return judgeAll(casesOf(read, (sentence) => { throw new Refusal(sentence); }, op));
  } catch (error) {
    if (error instanceof Refusal) return { refused: error.message };
    throw error;
  }
}

/** What is first read: same, or where it first differs. */
export function headline({ ok, rows, first }) {
  const compared = rows.filter((row) => row.verdict !== "missing"), of = (row) => (row.label ? `${row.part} of ${row.label}` : row.part);
  if (ok) return `Same: ${compared.length} of ${rows.length} ${rows.length === 1 ? "answer" : "answers"} compared, all within what is allowed.`;
  return `Different: ${of(first)}${first.where ? `, first at ${first.where}` : ""}.`;
}

export function mount(place) {
  const result = voice(), table = el("div", { class: "report" }), mistake = el("p", { class: "mistake" });
  const chooser = el("input", { type: "file", multiple: "", accept: ".safetensors,.npz,.json", "aria-label": "Files to judge: safetensors or npz" });
  const ops = el("select", {}, el("option", { value: "" }, "by its names"), ...Object.keys(OPS).map((op) => el("option", { value: op }, op)));
  let last = null;

  async function judge(files) {
    last = files;
    table.replaceChildren();
    mistake.replaceChildren();
    result.say("Computing …");
    await new Promise((done) => setTimeout(done, 20)); // let that be seen
    const told = await verdict(files, ops.value);
    if (told.refused) {
      result.say(told.refused);
      return;
    }
    result.say(strong(headline(told)));
    table.replaceChildren(el("table", { class: "figures" },
      el("caption", {}, `${told.op}, from ${files.map((file) => file.name).join(" and ")}`),
      el("thead", {}, el("tr", {}, ...["answer", "shape", "type", "error", "allowed", ""].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...told.rows.map((line) => el("tr", { class: line.verdict },
        el("th", { scope: "row" }, line.label ? `${line.part} · ${line.label}` : line.part), el("td", {}, line.shape.join(" × ")),
        el("td", {}, line.type ? TYPES[line.type] ?? line.type : "–"), el("td", {}, line.error === null ? "–" : power(line.error)),
        el("td", {}, line.allowed === null ? "–" : power(line.allowed)), el("td", {}, line.verdict))))));
    const notes = [...new Set(told.rows.filter((line) => line.note).map((line) => `${line.part}: ${line.note}.`))];
    if (told.looksLike) mistake.append("Looks like: ", strong(told.looksLike[0]), `. ${told.looksLike[1]} `);
    mistake.append(notes.join(" "), told.unknown.length ? ` Not compared, for there is no such answer: ${told.unknown.join(", ")}.` : "");
  }

  const bytesOf = async (file) => ({ name: file.name, bytes: new Uint8Array(await file.arrayBuffer()) });
  const take = async (files) => { if (files.length) await judge(await Promise.all([...files].map(bytesOf))); };
  async function sample(file) {
    try {
      const answer = await fetch(new URL(`../tensors/${file}`, import.meta.url));
      if (!answer.ok) throw new Error(answer.status);
      await judge([{ name: file, bytes: new Uint8Array(await answer.arrayBuffer()) }]);
    } catch (error) {
      result.say(`${file} did not arrive (${error.message}); load it down below and choose it here.`);
    }
  }
  chooser.addEventListener("change", () => take(chooser.files));
  ops.addEventListener("change", () => { if (last) judge(last); });
  const zone = el("div", { class: "drop" }, el("p", {}, "Drop a .safetensors or .npz file here, or choose one:"), chooser);
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => { event.preventDefault(); zone.classList.remove("over"); take(event.dataTransfer.files); });

  place.replaceChildren(
    zone,
    row(...Object.entries(SAMPLES).map(([name, file]) => el("button", { type: "button", onclick: () => sample(file) }, name)),
      el("label", { class: "choice" }, "The op: ", ops)),
    result, mistake, table,
  );
  result.say("Nothing is sent anywhere: the file is read and judged on this page.");
}
