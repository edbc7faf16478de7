"""Random models of the pretrained architectures, small enough to make in a test."""

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TEXTS = [
    "The deep model learns 12 patterns in 345 steps.\n\nIt's stable; café, naïve, 日本語 🤖.",
    "Neural networks are layers of weights.  Each layer   transforms its input: y = W x + b.",
    "She said: \u201cwords, words, words\u201d \u2014 and\tleft.\r\n",
]


def byte_level_bpe(vocabulary=320, specials=("<|endoftext|>",), digits=False):
    """A byte-level BPE of the GPT-2 kind; `digits` cuts every digit off first."""
    backend = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = [pre_tokenizers.Digits(individual_digits=True), level]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts) if digits else level
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return backend


def gpt2_tokenizer(vocabulary=320):
    backend = byte_level_bpe(vocabulary)
    vocabulary = {token: number for token, number in backend.get_vocab().items()}
    merges = [tuple(pair) for pair in _merges(backend)]
    return GPT2Tokenizer(vocab=vocabulary, merges=merges)


def _merges(backend):
    import json

    return json.loads(backend.to_str())["model"]["merges"]


def byte_fallback_tokenizer():
    """The SentencePiece kind with bytes for what the pieces lack, and no prefix space."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    signs = sorted({sign for text in TEXTS[1:2] for sign in text.replace(" ", "\u2581")})
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *signs, "\u2581a", "er"])}
    merges = [("\u2581", "a"), ("e", "r")]
    backend = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def randomized(model, std=0.6):
    """The model with weights wide enough that its choices differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=std, generator=generator)
        inputs = getattr(model, "get_input_embeddings", lambda: None)()
        if inputs is not None and getattr(model.config, "tie_word_embeddings", False):
            inputs.weight.mul_(0.2)  # or each token would be followed by itself
    return model.eval()


def gpt2(layers=2, context=32, vocabulary=320):
    tokenizer = gpt2_tokenizer(vocabulary)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_layer=layers,
        n_embd=16,
        n_head=2,
        n_positions=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return randomized(GPT2LMHeadModel(config)), tokenizer


def gpt_neo(context=32):
    tokenizer = gpt2_tokenizer()
    config = GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return randomized(GPTNeoForCausalLM(config)), tokenizer


def albert():
    """ALBERT with a Unigram tokenizer of the SentencePiece kind."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([text.lower() for text in TEXTS[1:]] * 3, trainer)
    import json

    tokenizer = AlbertTokenizer(
        vocab=[tuple(p) for p in json.loads(backend.to_str())["model"]["vocab"]]
    )
    config = AlbertConfig(
        vocab_size=len(tokenizer),
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    return randomized(AlbertForMaskedLM(config)), tokenizer


def llama():
    """A small Llama with the tokenizer of SmolLM2's kind."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = byte_level_bpe(400, specials, digits=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    return randomized(LlamaForCausalLM(config)), tokenizer


def write_gguf(file, model, tokenizer, pre_tokenizer="smollm"):
    """The model in a GGUF file, its query and key rows ordered as llama.cpp wants them."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    control = set(tokenizer.all_special_tokens) | {"<|endoftext|>"}
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if t in control else kinds.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in _merges(tokenizer.backend_tokenizer)])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = weight.numpy().astype(np.float32)
        for part, heads in (
            ("q_proj", config.num_attention_heads),
            ("k_proj", config.num_key_value_heads),
        ):
            if part in name:
                halves = array.reshape(heads, 2, array.shape[0] // heads // 2, array.shape[1])
                array = halves.swapaxes(1, 2).reshape(array.shape)
        stem, _, suffix = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_hub_cache(cache, repository, model, tokenizer):
    """Saves a model where huggingface_hub keeps what it has fetched; gives the folder."""
    place = cache / f"models--{repository.replace('/', '--')}"
    folder = place / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
