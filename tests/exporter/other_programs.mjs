// Run beside node_modules: node other_programs.mjs CALLS.json ANSWERS.json
import { readFileSync, writeFileSync } from 'node:fs';
import { AutoModelForCausalLM, Tensor, env, pipeline } from '@huggingface/transformers';
import * as ort from 'onnxruntime-node';

const { models, texts, ids, entries, plain } = JSON.parse(readFileSync(process.argv[2]));
env.allowRemoteModels = false;
env.localModelPath = models.path;
const answers = { texts: {}, ids: {}, plain: {} };
for (const name of models.names) {
    const session_options = { logSeverityLevel: 4, extra: { session: entries[name] ?? {} } };
    const settings = { max_new_tokens: 24, do_sample: false };
    try {
        if (ids[name]) {
            const model = await AutoModelForCausalLM.from_pretrained(name, { session_options });
            const shape = [1, ids[name].length];
            const input_ids = new Tensor('int64', BigInt64Array.from(ids[name], BigInt), shape);
            const attention_mask = new Tensor('int64', new BigInt64Array(ids[name].length).fill(1n), shape);
            const written = await model.generate({ input_ids, attention_mask, ...settings, max_new_tokens: 8 });
            answers.ids[name] = Array.from(written.data, Number);
            continue;
        }
        const generator = await pipeline('text-generation', name, { session_options });
        answers.texts[name] = [];
        for (const text of texts) {
            const [answer] = await generator(text, { ...settings, return_full_text: false });
            answers.texts[name].push(answer.generated_text);
        }
        const chat = await generator([{ role: 'user', content: texts[0] }], settings);
        answers.texts[name].push(chat[0].generated_text.at(-1).content);
        await generator.dispose();
    } catch (error) {
        answers.texts[name] = String(error);
    }
}
for (const [path, prompt] of Object.entries(plain)) {
    const session = await ort.InferenceSession.create(path, { logSeverityLevel: 4 });
    const long = (values) => new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
    const feeds = {
        input_ids: long(prompt),
        attention_mask: long(prompt.map(() => 1)),
        position_ids: long(prompt.map((_, at) => at)),
    };
    for (const { name, shape } of session.inputMetadata)
        if (name.startsWith('past')) feeds[name] = new ort.Tensor('float32', [], [1, shape[1], 0, shape[3]]);
    const given = Object.fromEntries(session.inputNames.map((name) => [name, feeds[name]]));
    const { logits } = await session.run(given);
    const row = logits.data.slice(-logits.dims[2]);
    answers.plain[path] = row.indexOf(Math.max(...row));
}
writeFileSync(process.argv[3], JSON.stringify(answers));
