// Serves one checkpoint with transformers.js: a POST holds a static batch {texts, images (base64) or null, tokens}; the
// reply says how many tokens each row read and wrote. Arguments: port, folder of models, dtypes of decoder and tower, threads.
import http from 'node:http';
import { AutoModelForImageTextToText, AutoProcessor, RawImage, env } from '@huggingface/transformers';

const [port, models, decoder, tower, threads] = process.argv.slice(1);
env.allowRemoteModels = false;
env.localModelPath = models;
const processor = await AutoProcessor.from_pretrained('smol');
processor.tokenizer.padding_side = 'left';
const model = await AutoModelForImageTextToText.from_pretrained('smol', {
  dtype: { embed_tokens: 'fp32', vision_encoder: tower, decoder_model_merged: decoder },
  session_options: { intraOpNumThreads: Number(threads), interOpNumThreads: 1 },
});

async function generate({ texts, images: files, tokens }) {
  let inputs;
  if (files) {
    const images = await Promise.all(files.map(async p => [await RawImage.fromBlob(new Blob([Buffer.from(p, 'base64')]))]));
    inputs = await processor(texts.map(t => '<image>' + t), images, { padding: true });
  } else {
    inputs = processor.tokenizer(texts, { padding: true });
  }
  const out = await model.generate({ ...inputs, max_new_tokens: tokens, min_new_tokens: tokens, do_sample: false });
  const read = inputs.input_ids.dims[1];
  return { prompt: read, tokens: out.dims[1] - read };
}

http.createServer(async (request, reply) => {
  try {
    const body = [];
    for await (const chunk of request) body.push(chunk);
    const answer = body.length ? await generate(JSON.parse(Buffer.concat(body))) : {};
    reply.end(JSON.stringify(answer));
  } catch (error) {
    reply.writeHead(500).end(String(error.stack));
  }
}).listen(Number(port), '127.0.0.1');
