// A subject of the SigLIP conformance kit for node, without packages (spec/PROTOCOL.md).
//   node responder.js [float32|float64]   the live protocol on the standard streams
//   node responder.js DIR                 answers DIR/prompt.json in files
// It reads and writes float32 or float64 and computes in double.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");

const SUBJECT = "responder.js 1";
const WIDTHS = { F64: 8, F32: 4 };
const TAGS = { float64: "F64", float32: "F32" };

class Ending extends Error {} // its message is the status of the case

const rejected = (why) => new Ending(`rejected: ${why}`);

// ---- safetensors ---------------------------------------------------------------------------

function readTensors(file) {
  const bytes = fs.readFileSync(file);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const tensors = new Map();
  const header = JSON.parse(bytes.subarray(8, start).toString());
  for (const [key, { dtype, shape, data_offsets }] of Object.entries(header)) {
    tensors.set(key, { dtype, shape, bytes: bytes.subarray(start + data_offsets[0], start + data_offsets[1]) });
  }
  return tensors;
}

function numbers({ dtype, shape, bytes }) {
  if (!(dtype in WIDTHS)) throw new Ending(`unsupported: arrays of ${dtype}`);
  const read = dtype === "F64" ? bytes.readDoubleLE : bytes.readFloatLE;
  const data = Float64Array.from({ length: bytes.length / WIDTHS[dtype] }, (_, i) =>
    read.call(bytes, i * WIDTHS[dtype]),
  );
  return { shape, data };
}

function writeTensors(file, tensors, dtype) {
  const header = {};
  const chunks = [];
  let position = 0;
  for (const [key, { shape, data }] of tensors) {
    const stored = dtype === "F64" ? Float64Array.from(data) : Float32Array.from(data);
    const end = position + stored.byteLength;
    header[key] = { dtype, shape, data_offsets: [position, end] };
    chunks.push(Buffer.from(stored.buffer));
    position = end;
  }
  let text = JSON.stringify(header);
  text += " ".repeat((8 - (Buffer.byteLength(text) % 8)) % 8);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(Buffer.byteLength(text)));
  fs.writeFileSync(file, Buffer.concat([length, Buffer.from(text), ...chunks]));
}

// ---- the operations: ({inputs}, attrs, cotangent of the output or undefined) -> named arrays ----

const zeros = (shape) => ({ shape, data: new Float64Array(shape.reduce((a, b) => a * b, 1)) });
const last = (array) => array[array.length - 1];
const sigmoid = (x) => (x < 0 ? Math.exp(x) / (1 + Math.exp(x)) : 1 / (1 + Math.exp(-x)));
const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const ROOT = 2 * Math.sqrt(2 / Math.PI);
const geluArgument = (x) => ROOT * (x + 0.044715 * x ** 3);

function axes(name, array, count) {
  if (array.shape.length !== count) throw rejected(`${name} must have ${count} axes, got ${array.shape.length}`);
}

function shaped(name, array, shape) {
  if (String(array.shape) !== String(shape)) throw rejected(`${name} must have the shape [${shape}], got [${array.shape}]`);
}

function pairwiseSigmoidLoss({ zimg, ztxt, t_prime, b, labels, weights }, _, dloss) {
  axes("zimg", zimg, 2), axes("ztxt", ztxt, 2), axes("t_prime", t_prime, 0), axes("b", b, 0);
  const [[n, d], [m, e]] = [zimg.shape, ztxt.shape];
  if (d !== e) throw rejected(`rows of ${d} and ${e} numbers`);
  if (n === 0 || m === 0) throw rejected("an empty batch");
  if (labels) shaped("labels", labels, [n, m]), shaped("weights", weights, [n, m]);
  else if (n !== m) throw rejected(`${n} images and ${m} texts`);
  const loss = zeros([]);
  const [dzimg, dztxt, dt_prime, db] = [zimg, ztxt, t_prime, b].map(({ shape }) => zeros(shape));
  const seed = dloss ? dloss.data[0] : 0;
  const t = Math.exp(t_prime.data[0]);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < m; j++) {
      const label = labels ? labels.data[i * m + j] : i === j ? 1 : -1;
      const weight = (weights ? weights.data[i * m + j] : 1) / n;
      if (!(Math.abs(label) <= 1)) throw rejected(`labels must be in [-1, 1], got ${label}`);
      if (!(weight >= 0)) throw rejected("weights must be at least 0");
      let cosine = 0;
      for (let k = 0; k < d; k++) cosine += zimg.data[i * d + k] * ztxt.data[j * d + k];
      const logit = t * cosine + b.data[0];
      const size = Math.abs(logit);
      loss.data[0] += weight * (Math.log1p(Math.exp(-size)) + (size - label * logit) / 2);
      const mismatch = ((1 - label) / 2) * sigmoid(logit);
      const dlogit = seed * weight * (mismatch - ((1 + label) / 2) * sigmoid(-logit));
      dt_prime.data[0] += dlogit * t * cosine;
      db.data[0] += dlogit;
      for (let k = 0; k < d; k++) {
        dzimg.data[i * d + k] += t * dlogit * ztxt.data[j * d + k];
        dztxt.data[j * d + k] += t * dlogit * zimg.data[i * d + k];
      }
    }
  }
  return { "out/loss": loss, "grad/dzimg": dzimg, "grad/dztxt": dztxt, "grad/dt_prime": dt_prime, "grad/db": db };
}

function elementwise(value, slope) {
  return ({ x }, _, dout) => ({
    "out/out": { shape: x.shape, data: x.data.map(value) },
    "grad/dx": { shape: x.shape, data: x.data.map((at, i) => slope(at) * (dout ? dout.data[i] : 0)) },
  });
}

function dense({ x, kernel, bias }, _, dout) {
  axes("kernel", kernel, 2);
  const [dIn, dOut] = kernel.shape;
  if (last(x.shape) !== dIn) throw rejected(`x must end in ${dIn}, got [${x.shape}]`);
  shaped("bias", bias, [dOut]);
  const out = zeros([...x.shape.slice(0, -1), dOut]);
  const [dx, dkernel, dbias] = [x, kernel, bias].map(({ shape }) => zeros(shape));
  for (let r = 0; r < x.data.length / dIn; r++) {
    for (let o = 0; o < dOut; o++) {
      const seed = dout ? dout.data[r * dOut + o] : 0;
      let sum = bias.data[o];
      dbias.data[o] += seed;
      for (let i = 0; i < dIn; i++) {
        sum += x.data[r * dIn + i] * kernel.data[i * dOut + o];
        dx.data[r * dIn + i] += seed * kernel.data[i * dOut + o];
        dkernel.data[i * dOut + o] += x.data[r * dIn + i] * seed;
      }
      out.data[r * dOut + o] = sum;
    }
  }
  return { "out/out": out, "grad/dx": dx, "grad/dkernel": dkernel, "grad/dbias": dbias };
}

// dx = (dout - x <x, dout> / (|x| (|x| + eps))) / (|x| + eps)
function l2Normalize({ x }, { eps }, dout) {
  if (!x.shape.length) throw rejected("x must have an axis");
  const d = last(x.shape);
  const [out, dx] = [zeros(x.shape), zeros(x.shape)];
  for (let start = 0; start < x.data.length; start += d) {
    let [square, inner] = [0, 0];
    for (let i = start; i < start + d; i++) {
      square += x.data[i] ** 2;
      inner += x.data[i] * (dout ? dout.data[i] : 0);
    }
    const norm = Math.sqrt(square);
    const radial = norm > 0 ? inner / (norm * (norm + eps)) : 0;
    for (let i = start; i < start + d; i++) {
      out.data[i] = x.data[i] / (norm + eps);
      dx.data[i] = ((dout ? dout.data[i] : 0) - x.data[i] * radial) / (norm + eps);
    }
  }
  return { "out/out": out, "grad/dx": dx };
}

const OPERATIONS = {
  sigmoid_loss: pairwiseSigmoidLoss,
  pairwise_sigmoid_loss: pairwiseSigmoidLoss,
  softplus: elementwise(softplus, sigmoid),
  log_sigmoid: elementwise((x) => -softplus(-x), (x) => sigmoid(-x)),
  gelu_tanh: elementwise(
    (x) => x * sigmoid(geluArgument(x)),
    (x) => {
      const s = sigmoid(geluArgument(x));
      return s + x * s * sigmoid(-geluArgument(x)) * ROOT * (1 + 3 * 0.044715 * x * x);
    },
  ),
  dense,
  l2_normalize: l2Normalize,
};

// ---- the two forms of the protocol ---------------------------------------------------------

// [status, named arrays by key]
function answer(question, tensors) {
  const { id, operation, attrs, inputs, cotangents, outputs, gradients } = question;
  if (!(operation in OPERATIONS)) return [`unsupported: ${operation}`, []];
  try {
    const named = (name) => numbers(tensors.get(`${id}#${name}`));
    const given = Object.fromEntries(inputs.map((name) => [name.slice("in/".length), named(name)]));
    const cotangent = cotangents.length ? named(cotangents[0]) : undefined;
    const results = OPERATIONS[operation](given, attrs, cotangent);
    return ["ok", [...outputs, ...gradients].map((name) => [`${id}#${name}`, results[name]])];
  } catch (error) {
    return [error instanceof Ending ? error.message : `error: ${error}`, []];
  }
}

function declaration(dtype) {
  const operations = Object.keys(OPERATIONS);
  return { protocol: 1, subject: SUBJECT, dtype, operations, gradients: operations };
}

function answerFiles(directory) {
  const prompt = JSON.parse(fs.readFileSync(path.join(directory, "prompt.json")));
  const tensors = readTensors(path.join(directory, "prompt.safetensors"));
  const cases = {};
  const results = [];
  for (const question of prompt.cases) {
    const [status, arrays] = answer(question, tensors);
    cases[question.id] = status;
    results.push(...arrays);
  }
  writeTensors(path.join(directory, "response.safetensors"), results, TAGS[prompt.dtype]);
  const response = { ...declaration(prompt.dtype), cases };
  fs.writeFileSync(path.join(directory, "response.json"), JSON.stringify(response, null, 1));
}

async function answerLines(dtype) {
  console.log(JSON.stringify(declaration(dtype)));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const question = JSON.parse(line);
    const [status, arrays] = answer(question, readTensors(question.prompt));
    if (status === "ok") writeTensors(question.response, arrays, TAGS[dtype]);
    console.log(JSON.stringify({ id: question.id, status }));
  }
}

const argument = process.argv[2] ?? "float32";
if (argument in TAGS) answerLines(argument);
else answerFiles(argument);
