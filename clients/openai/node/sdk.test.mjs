// OpenAI's SDK for Node against mmserve, as its users call it. BASE_URL names a server, BUSY_URL one with a single place; IMAGE is a file.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { test } from 'node:test'
import OpenAI, { BadRequestError, NotFoundError, RateLimitError } from 'openai'
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod'
import { z } from 'zod'

const apiKey = process.env.API_KEY ?? 'none'
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey })
const model = (await client.models.list()).data[0].id
const image = `data:image/png;base64,${(await readFile(process.env.IMAGE)).toString('base64')}`
const describe = [{
  role: 'user',
  content: [{ type: 'text', text: 'describe' }, { type: 'image_url', image_url: { url: image, detail: 'low' } }],
}]

test('a chat with an image', async () => {
  const { data, response } = await client.chat.completions.create({ model, messages: describe, temperature: 0 }).withResponse()
  assert.ok(response.headers.get('x-request-id'))
  assert.equal(data.object, 'chat.completion')
  assert.ok(data.id && data.system_fingerprint && data.created > 1e9)
  assert.equal(data.choices[0].message.role, 'assistant')
  assert.ok(data.choices[0].message.content.length > 0)
  assert.equal(data.choices[0].finish_reason, 'stop')
  assert.ok(data.usage.prompt_tokens_details.image_tokens > 0)
  assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens)
})

test('a stream says what the whole answer says, and its usage if asked', async () => {
  const whole = await client.chat.completions.create({ model, messages: describe, temperature: 0 })
  let text = '', usage, reason, ids = new Set(), afterUsage = 0
  for await (const chunk of await client.chat.completions.create({
    model, messages: describe, temperature: 0, stream: true, stream_options: { include_usage: true },
  })) {
    ids.add(chunk.id)
    if (usage) afterUsage++
    text += chunk.choices[0]?.delta.content ?? ''
    reason ??= chunk.choices[0]?.finish_reason ?? undefined
    if (chunk.usage) {
      usage = chunk.usage
      assert.deepEqual(chunk.choices, [])
    }
  }
  assert.equal(text, whole.choices[0].message.content)
  assert.equal(reason, whole.choices[0].finish_reason)
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens)
  assert.deepEqual([ids.size, afterUsage], [1, 0])

  for await (const chunk of await client.chat.completions.create({ model, messages: describe, stream: true })) {
    assert.equal(chunk.usage ?? null, null)
    assert.equal(chunk.choices.length, 1)
  }
})

test('the helper that accumulates a stream', async () => {
  const stream = client.chat.completions.stream({ model, messages: describe, temperature: 0 })
  let deltas = ''
  stream.on('content', (delta) => { deltas += delta })
  const completion = await stream.finalChatCompletion()
  assert.equal(deltas, completion.choices[0].message.content)
})

test('parse() gives what the schema says', async () => {
  const Sight = z.object({ color: z.enum(['red', 'green', 'blue']), count: z.number().int().min(0).max(9) })
  const completion = await client.chat.completions.parse({
    model, messages: describe, max_completion_tokens: 100, response_format: zodResponseFormat(Sight, 'sight'),
  })
  assert.ok(Sight.safeParse(completion.choices[0].message.parsed).success)
})

test('log-probabilities, choices and seeds', async () => {
  const ask = () => client.chat.completions.create({
    model, messages: describe, temperature: 1, seed: 7, n: 2, max_tokens: 5, logprobs: true, top_logprobs: 2,
  })
  const [a, b] = [await ask(), await ask()]
  assert.equal(a.choices.length, 2)
  assert.deepEqual(a.choices.map((c) => c.message.content), b.choices.map((c) => c.message.content))
  for (const place of a.choices[0].logprobs.content) {
    assert.ok(place.logprob <= 0 && place.top_logprobs.length === 2)
    assert.deepEqual(new TextDecoder().decode(new Uint8Array(place.bytes)), place.token)
  }
})

test('a completion of a prompt', async () => {
  const completion = await client.completions.create({ model, prompt: 'a red', max_tokens: 4, temperature: 0 })
  assert.equal(completion.object, 'text_completion')
  assert.equal(typeof completion.choices[0].text, 'string')
})

test('a response, whole and as a stream', async () => {
  const input = [{
    role: 'user', content: [{ type: 'input_text', text: 'describe' }, { type: 'input_image', image_url: image, detail: 'low' }],
  }]
  const whole = await client.responses.create({ model, input, temperature: 0, store: false })
  assert.equal(whole.status, 'completed')
  assert.ok(whole.output_text.length > 0)
  let text = '', last
  for await (const event of await client.responses.create({ model, input, temperature: 0, store: false, stream: true })) {
    if (event.type === 'response.output_text.delta') text += event.delta
    last = event
  }
  assert.equal(last.type, 'response.completed')
  assert.equal(text, whole.output_text)
})

test('the helpers for responses: a stream that accumulates, parse(), log-probabilities', async () => {
  const params = { model, input: 'describe', instructions: 'Be brief.', temperature: 0 }
  const stream = client.responses.stream(params)
  let deltas = ''
  stream.on('response.output_text.delta', (event) => { deltas += event.delta })
  const final = await stream.finalResponse()
  assert.equal(final.output_text, deltas)
  assert.deepEqual([final.store, final.instructions, final.status], [false, 'Be brief.', 'completed'])

  const Sight = z.object({ color: z.enum(['red', 'green', 'blue']) })
  const parsed = await client.responses.parse({ ...params, text: { format: zodTextFormat(Sight, 'sight') } })
  assert.ok(Sight.safeParse(parsed.output_parsed).success)

  const told = await client.responses.create({
    ...params, max_output_tokens: 2, include: ['message.output_text.logprobs'], top_logprobs: 2,
  })
  assert.deepEqual([told.status, told.incomplete_details.reason], ['incomplete', 'max_output_tokens'])
  assert.equal(told.output[0].content[0].logprobs.length, 2)
  assert.equal(told.output[0].content[0].logprobs[0].top_logprobs.length, 2)

  const again = await client.responses.create({ ...params, input: [{ role: 'user', content: 'describe' }, ...final.output, { role: 'user', content: 'and?' }] })
  assert.ok(again.output_text.length > 0)

  for (const more of [{ previous_response_id: 'resp_1' }, { store: true }, { background: true }, { tools: [{ type: 'web_search' }] }]) {
    await assert.rejects(client.responses.create({ ...params, ...more }), (e) => {
      assert.ok(e instanceof BadRequestError)
      assert.deepEqual([e.code, e.param], ['unsupported_parameter', Object.keys(more)[0]])
      return true
    })
  }
})

test('errors have the class, the parameter and the code', async () => {
  await assert.rejects(client.chat.completions.create({ model, messages: describe, temperature: 9 }), (e) => {
    assert.ok(e instanceof BadRequestError)
    assert.equal(e.param, 'temperature')
    assert.ok(e.requestID)
    return true
  })
  await assert.rejects(client.chat.completions.create({ model: 'another', messages: describe }), (e) => {
    assert.ok(e instanceof NotFoundError)
    assert.equal(e.code, 'model_not_found')
    return true
  })
  const tools = [{ type: 'function', function: { name: 'f', parameters: {} } }]
  await assert.rejects(client.chat.completions.create({ model, messages: describe, tools }), (e) => {
    assert.ok(e instanceof BadRequestError)
    assert.equal(e.code, 'unsupported_parameter')
    assert.equal(e.param, 'tools')
    return true
  })
  await assert.rejects(client.embeddings.create({ model, input: 'x' }), NotFoundError)
})

test('an abort frees the place, and a busy server is asked again', async () => {
  const busy = new OpenAI({ baseURL: process.env.BUSY_URL, apiKey })
  const messages = [{ role: 'user', content: 'red' }]
  const endless = { model, messages, max_tokens: 400, ignore_eos: true }
  const controller = new AbortController()
  const stream = await busy.chat.completions.create({ ...endless, stream: true }, { signal: controller.signal })
  let chunks = 0
  for await (const _ of stream) {
    if (++chunks > 1) break // the place is taken, and stays so: leaving the loop aborts, so the next is asked meanwhile
    await assert.rejects(busy.chat.completions.create(endless, { maxRetries: 0 }), (e) => {
      assert.ok(e instanceof RateLimitError)
      assert.ok(Number(e.headers.get('retry-after-ms')) > 0)
      return true
    })
    setTimeout(() => controller.abort(), 100)
    const completion = await busy.chat.completions.create({ model, messages, max_tokens: 3 }, { maxRetries: 8 })
    assert.ok(completion.usage.completion_tokens > 0)
    break
  }
})
