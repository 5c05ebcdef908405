"""Small random models of pretrained families, saved as `transformers` saves them."""

from pathlib import Path
from typing import Any

import torch
import transformers

HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
KIN: dict[str, Any] = HEADS | {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "init_std": 0.2,
    "dropout": 0.1,
}
T5: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "initializer_factor": 1.0,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("Bart", KIN | {"forced_bos_token_id": 0}),
    "mbart": ("MBart", KIN | {"scale_embedding": True, "activation_function": "relu"}),
    "plbart": ("PLBart", KIN | {"scale_embedding": True}),
    "blenderbot": ("Blenderbot", KIN),
    "blenderbot_small": ("BlenderbotSmall", KIN),
    "pegasus": ("Pegasus", KIN | {"scale_embedding": True, "activation_function": "relu"}),
    "marian": ("Marian", KIN | {"scale_embedding": True, "activation_function": "swish"}),
    "m2m_100": ("M2M100", KIN | {"scale_embedding": True, "activation_function": "relu"}),
    "led": ("LED", {**KIN, "attention_window": 96, "max_encoder_position_embeddings": 96}),
    "t5": ("T5", T5 | {"feed_forward_proj": "relu"}),
    "flan_t5": ("T5", T5 | GATED),
    "mt5": ("MT5", T5 | GATED),
    "umt5": ("UMT5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "longt5": ("LongT5", T5 | {"feed_forward_proj": "gated-gelu", "encoder_attention_type": "local"}),
}


def stock(name: str, tokenizer, folder: Path) -> Any:
    """A small random model of a family, saved as `transformers` saves it, with the corpus's tokenizer."""
    prefix, values = MODELS[name]
    torch.manual_seed(3)
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "pad", "eos")}
    begins_with_eos = prefix in ("Bart", "MBart", "M2M100")  # as their released weights do; others begin with padding
    start = {"decoder_start_token_id": tokenizer.eos_token_id if begins_with_eos else tokenizer.pad_token_id}
    config = getattr(transformers, f"{prefix}Config")(vocab_size=len(tokenizer) + 3, **values, **special, **start)
    model = getattr(transformers, f"{prefix}ForConditionalGeneration", None) or transformers.MarianMTModel
    made = model(config).eval()
    with torch.no_grad():
        for key, item in made.named_parameters():
            if item.dim() == 1:
                item.add_(torch.randn_like(item) * 0.1)  # no norm is the identity, no bias 0
            elif "relative_attention_bias" in key:
                item.normal_()
        if name in ("flan_t5", "mt5"):
            made.lm_head.weight = torch.nn.Parameter(torch.randn_like(made.shared.weight))
        if name == "marian":
            made.final_logits_bias.normal_()
    if "forced_bos_token_id" in values:  # only generation_config.json keeps it
        made.generation_config.forced_bos_token_id = values["forced_bos_token_id"]
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return made


def stock_causal(tokenizer, folder: Path) -> Any:
    """A small random Llama, saved as `transformers` saves it, with the corpus's tokenizer."""
    torch.manual_seed(3)
    sizes: Any = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "pad", "eos")}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes, **special)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
