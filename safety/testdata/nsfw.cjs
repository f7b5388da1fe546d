// Prints what nsfwjs itself says of images: node nsfw.cjs WIDTH HEIGHT FILE..., where a file has the pixels as bytes, red,
// green, blue.
const fs = require('fs')
const tf = require('@tensorflow/tfjs')
const nsfwjs = require('nsfwjs')

async function main () {
  tf.enableProdMode()
  await tf.setBackend('cpu')
  const model = await nsfwjs.load('MobileNetV2')
  const out = []
  for (let i = 2; i + 2 < process.argv.length; i += 3) {
    const [w, h] = [Number(process.argv[i]), Number(process.argv[i + 1])]
    const pixels = tf.tensor3d(new Int32Array(fs.readFileSync(process.argv[i + 2])), [h, w, 3], 'int32')
    const answer = {}
    for (const c of await model.classify(pixels)) answer[c.className] = c.probability
    out.push(answer)
  }
  console.log('\n' + JSON.stringify(out))
}
main()
