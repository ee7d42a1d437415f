// What the page says, in English and Chinese. Texts of models are never words.

const WORDS = {
  en: {
    skip: "Skip to the text field", history: "Conversations", theme: "Light or dark", settings: "Parameters",
    model: "Model", new: "New conversation", kept: "Kept in this browser only.", empty: "Nothing here yet.",
    conversation: "Conversation", close: "Close", kind: "What to do", blanks: "Fill blanks", chat: "Chat",
    mask: "blank", smask: "sentence", gmask: "to the end", message: "Your text", send: "Send", stop: "Stop",
    fill: "Fill", system: "System message", unset: "Empty fields are left to the server.",
    "ask-alternatives": "Show what else could have been written: point at a word, or go along the words with the "
      + "arrow keys",
    tools: "Tools, as a JSON list", cancel: "Cancel", save: "Save", "save-send": "Save and send",
    "hint-chat": "Enter sends, Shift+Enter breaks the line.",
    "hint-blanks": "Put a blank where words are missing; the model writes what fits.",
    you: "You", tool: "Tool", thought: "Thoughts", thinking: "Thinking…", call: "Calls {0}", result: "Its answer",
    edit: "Edit", retry: "Retry", copy: "Copy", copied: "Copied", earlier: "Earlier version", later: "Later version",
    version: "{0} of {1}", rename: "Rename “{0}”", delete: "Delete “{0}”", "rename-title": "Rename",
    "delete-title": "Delete this conversation?", "delete-accept": "Delete", untitled: "New conversation",
    "key-title": "The server wants a key", "key-text": "It is kept until this tab is closed.",
    "key-refused": "The server does not know this key.", "key-accept": "Use",
    first: "first token {0} ms", rate: "{0} tokens/s", tokens: "{0} tokens", seconds: "{0} s", cached: "{0} cached",
    reason_length: "cut at its length", reason_stopped: "stopped", reason_error: "broken off", reason_tool_calls: "",
    writing: "Writing", done: "Written: {0}", blank: "blank", filled: "filled", words: "Written words",
    alternatives: "Alternatives", failed: "The server answered {0}.", unreachable: "The server cannot be reached.",
    broken: "The answer broke off.", unreadable: "What the server sent cannot be read.", "no-key": "Without a key the server answers nothing.",
    "bad-tools": "The tools are no JSON list: {0}", "no-blank": "There is no blank in the text: put one, then fill it.",
    full: "The browser's storage is full: delete conversations to keep new ones.",
    "bad-value": "{0} is not a number the field takes.", busy: "Another answer is being written: stop it first.",
  },
  "zh-CN": {
    skip: "跳到输入框", history: "对话", theme: "浅色或深色", settings: "参数",
    model: "模型", new: "新对话", kept: "只保存在此浏览器中。", empty: "这里还没有内容。",
    conversation: "对话内容", close: "关闭", kind: "做什么", blanks: "填空", chat: "聊天",
    mask: "空白", smask: "句子", gmask: "直到结尾", message: "输入文字", send: "发送", stop: "停止",
    fill: "填空", system: "系统消息", unset: "留空的参数由服务器决定。",
    "ask-alternatives": "显示其他可能的词：指向一个词，或用方向键逐词移动",
    tools: "工具（JSON 列表）", cancel: "取消", save: "保存", "save-send": "保存并发送",
    "hint-chat": "回车发送，Shift+回车换行。",
    "hint-blanks": "在缺词处放一个空白，由模型填写。",
    you: "你", tool: "工具", thought: "思考过程", thinking: "思考中…", call: "调用 {0}", result: "它的结果",
    edit: "编辑", retry: "重试", copy: "复制", copied: "已复制", earlier: "上一版", later: "下一版",
    version: "第 {0} 版，共 {1} 版", rename: "重命名“{0}”", delete: "删除“{0}”", "rename-title": "重命名",
    "delete-title": "删除这个对话？", "delete-accept": "删除", untitled: "新对话",
    "key-title": "服务器需要密钥", "key-text": "密钥保留到此标签页关闭为止。",
    "key-refused": "服务器不认识这个密钥。", "key-accept": "使用",
    first: "首词 {0} 毫秒", rate: "{0} 词元/秒", tokens: "{0} 词元", seconds: "{0} 秒", cached: "缓存 {0}",
    reason_length: "到达长度上限", reason_stopped: "已停止", reason_error: "中断", reason_tool_calls: "",
    writing: "正在生成", done: "已生成：{0}", blank: "空白", filled: "已填", words: "生成的词",
    alternatives: "其他可能", failed: "服务器返回 {0}。", unreachable: "无法连接服务器。",
    broken: "回答中断了。", unreadable: "无法读取服务器返回的内容。", "no-key": "没有密钥，服务器不会回答。",
    "bad-tools": "工具不是 JSON 列表：{0}", "no-blank": "文字里没有空白：先放一个，再填空。",
    full: "浏览器存储已满：请删除一些对话。",
    "bad-value": "{0} 的值无效。", busy: "另一个回答正在生成：请先停止。",
  },
};

export const language = navigator.language.toLowerCase().startsWith("zh") ? "zh-CN" : "en";

/** A word by its name, with values in the place of {0}, {1}. */
export function word(name, ...values) {
  return WORDS[language][name].replace(/\{(\d)\}/g, (_, number) => String(values[number]));
}

/** Say a document in the reader's language. */
export function translate(root) {
  root.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", word(element.dataset.label));
    if (element.tagName === "BUTTON") element.title = word(element.dataset.label);
  }
}
