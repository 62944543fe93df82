"""What the backbones share: Hugging Face habits on top of the sampling engine."""

from dataclasses import asdict, dataclass, fields, replace
from typing import get_type_hints

import torch
from transformers import AutoTokenizer

from src.models.special_tokens import TOKENS, missing_tokens, set_token_ids
from src.sampling.engine import Request, sample
from src.sampling.samplers import DETERMINISTIC, Sampling
from utils.config import typed

# keywords of from_pretrained that say where the files are
_PLACE = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")


@dataclass
class LatentGenerateOutput:
    """sequences (B * N, length): prompt as given, latent ids, end-of-thinking, answer, padding.

    thoughts (B, N, T, D): the latent thoughts as they were fed back; lengths (B, N): how many there are.
    """

    sequences: torch.Tensor
    thoughts: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class GenerationDefaults:
    """What the sampling flags start from; the fields are keys of a checkpoint's generation_config.json.

    latent_length: thoughts of a trajectory, or the cap of a backbone that stops itself. max_new_tokens:
    answer tokens at most. The others: see src.sampling.samplers.Sampling.
    """

    latent_length: int = 6
    max_new_tokens: int = 64
    dropout_p: float = 0.2
    noise_std: float = 0.6
    dropout_prompt: bool = True
    dropout_answer: bool = False
    dropout_embedding: bool = True
    dropout_mask: str = "step"

    def __post_init__(self):
        if min(self.latent_length, self.max_new_tokens) < 1:
            raise ValueError("latent_length and max_new_tokens must be at least 1")
        Sampling("dropout", **self.sampling())

    def sampling(self):
        """The fields that are fields of Sampling too."""
        lengths = ("latent_length", "max_new_tokens")
        return {key: value for key, value in asdict(self).items() if key not in lengths}


class LatentReasoner:
    """Mixin before a HF causal language model and the reader of its architecture.

    A backbone (src/models/coconut.py is the shortest) gives format_prompt(question), format_answer(answer),
    the text that it learns to write, parse_answer(text), the number in it or None, and to_thought(hidden).
    What follows can be set otherwise: special_tokens; config_keys, which a config must have; stops_itself,
    whether the model ends its latent phase by its own end token (``latent_length`` is then the cap);
    paper_defaults, the paper's sampler strengths and lengths. A checkpoint's generation_config.json may
    hold other values for any of them (``generation_defaults``).
    """

    special_tokens = TOKENS
    config_keys = ()
    stops_itself = False
    paper_defaults = GenerationDefaults()

    @classmethod
    def generation_defaults(cls, values):
        """The GenerationDefaults of a checkpoint whose generation_config.json holds ``values``, a dict.

        Raises UserError or ValueError naming the key that can't be.
        """
        kinds = get_type_hints(GenerationDefaults)
        given = {
            field.name: typed(values[field.name], kinds[field.name], field.name)
            for field in fields(GenerationDefaults)
            if values.get(field.name) is not None
        }
        return replace(cls.paper_defaults, **given)

    @property
    def defaults(self):
        """The GenerationDefaults of this model."""
        return self.generation_defaults(self.generation_config.to_dict())

    @classmethod
    def encode(cls, tokenizer, questions):
        """The prompts of questions: a list of token ids each."""
        prompts = [cls.format_prompt(question) for question in questions]
        return tokenizer(prompts, add_special_tokens=False)["input_ids"]

    @classmethod
    def from_pretrained(cls, path, *args, **kwargs):
        """As in transformers; the special ids come from the tokenizer in the same place."""
        loaded = super().from_pretrained(path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        same_place = {key: kwargs[key] for key in _PLACE if key in kwargs}
        tokenizer = AutoTokenizer.from_pretrained(path, **same_place)
        if not missing_tokens(tokenizer, cls.special_tokens):
            set_token_ids(model, tokenizer)
        return loaded

    def generate(
        self,
        input_ids,
        attention_mask=None,
        *,
        num_return_sequences=1,
        do_sample=False,
        latent_length=None,
        max_new_tokens=None,
        sampling_by="dropout",
        dropout_p=None,
        noise_std=None,
        dropout_prompt=None,
        dropout_answer=None,
        dropout_mask=None,
        seed=0,
        question_ids=None,
        return_dict_in_generate=False,
    ):
        """N latent trajectories and greedy answers for each row of ``input_ids`` (B, L).

        Rows may be padded on either side under ``attention_mask``; padding never changes a number.
        ``question_ids`` (B ints, default 0 .. B - 1) and ``seed`` key the random numbers. What the
        sampling keywords mean stands at src.sampling.samplers.Sampling; they need ``do_sample``. None is
        the checkpoint's own default (generation_config.json), as it is for the lengths.
        Returns the sequences (B * N, length), or a LatentGenerateOutput. Raises ValueError on
        impossible settings, TypeError on unknown keywords.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pairs = zip(input_ids, mask, strict=True)
        given = {
            "dropout_p": dropout_p, "noise_std": noise_std, "dropout_prompt": dropout_prompt,
            "dropout_answer": dropout_answer, "dropout_mask": dropout_mask, "dropout_embedding": False,
        }  # fmt: skip
        given = {key: value for key, value in given.items() if value is not None}
        defaults = self.defaults
        sampling = Sampling(sampling_by, **(defaults.sampling() | given))
        question_ids = range(len(input_ids)) if question_ids is None else question_ids
        request = Request(
            prompts=[row[keep.bool()].tolist() for row, keep in pairs],
            questions=[int(question) for question in question_ids],
            n_samples=num_return_sequences,
            latent_length=defaults.latent_length if latent_length is None else latent_length,
            max_new_tokens=defaults.max_new_tokens if max_new_tokens is None else max_new_tokens,
            seed=seed,
            sampling=sampling if do_sample else DETERMINISTIC,
        )
        trajectories = sample(self, request)
        sequences = self._sequences(input_ids, trajectories)
        if return_dict_in_generate:
            return LatentGenerateOutput(sequences, trajectories.thoughts, trajectories.lengths)
        return sequences

    def _sequences(self, input_ids, trajectories):
        """Prompt as given, latent ids, end-of-thinking, answer, padding of each trajectory, (B * N, length)."""
        config, (questions, n_samples) = self.config, trajectories.lengths.shape
        answers = [
            torch.tensor(
                [config.latent_token_id] * int(trajectories.lengths[q, n])
                + [config.end_latent_token_id]
                + trajectories.tokens[q][n]
                + [config.eos_token_id] * trajectories.finished[q][n]
            )
            for q in range(questions)
            for n in range(n_samples)
        ]
        pad = (
            config.eos_token_id if config.pad_token_id is None else config.pad_token_id
        )  # GPT-2 has none
        answers = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=pad)
        prompts = input_ids.repeat_interleave(n_samples, dim=0)
        return torch.cat((prompts, answers.to(prompts.device)), dim=1)
