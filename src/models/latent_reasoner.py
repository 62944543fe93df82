"""What the backbones share: Hugging Face's interface on top of the sampling engine."""

from dataclasses import asdict, dataclass, fields, replace
from typing import get_type_hints

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from src.models.architectures import combine
from src.models.tokenizers import START, TOKENS, missing_tokens, set_token_ids
from src.sampling.engine import sample
from src.sampling.samplers import DETERMINISTIC, STRENGTHS, Sampling
from src.sampling.trajectories import Request
from utils.config import typed

# Keywords of from_pretrained that say where the files are.
_LOCATION = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")

_SAMPLING_FIELDS = {f.name for f in fields(Sampling)} - {"method"}
# Of generation_config.json: transformers refuses to save its own keys beside a greedy model.
_OTHER_KEYS = {"temperature": "answer_temperature", "top_p": "answer_top_p"}
_FOR_VOTE = "_for_vote"


@dataclass
class LatentGenerateOutput:
    """sequences (B * N, length): prompt as given, latent ids, end-of-thinking, answer, padding.

    thoughts (B, N, T, D): the latent thoughts as they were fed back; num_thoughts (B, N): how many
    exist.
    """

    sequences: torch.Tensor
    thoughts: torch.Tensor
    num_thoughts: torch.Tensor


@dataclass(frozen=True)
class GenerationDefaults:
    """Defaults of the sampling flags. The fields are keys of a checkpoint's generation_config.json,
    but temperature and top_p: there they are answer_temperature and answer_top_p.

    latent_length: thoughts of a trajectory, or at most so many where the model decides when to stop
    thinking. max_new_tokens: answer tokens at most. Strengths were chosen for coverage, those that
    end in _for_vote for the majority vote (src.tune_sampler); None where nobody chose them. The
    others: see src.sampling.samplers; dropout_embedding is the default of annotation only.
    svp_alpha and weight_noise_std are those of SVP's authors for COCONUT. top_p 0.9 is CoLaR's own;
    it keeps out the rare tokens that spoil an answer of several tokens.
    """

    latent_length: int = 6
    max_new_tokens: int = 64
    dropout_p: float = 0.2
    noise_std: float = 0.6
    dropout_p_for_vote: float | None = None
    noise_std_for_vote: float | None = None
    dropout_prompt: bool = True
    dropout_answer: bool = False
    dropout_embedding: bool = True
    dropout_mask: str = "step"
    svp_alpha: float = 0.6
    svp_alpha_for_vote: float | None = None
    svp_target: str = "attn_v"
    svp_prompt: bool = True
    weight_noise_std: float = 0.06
    weight_noise_std_for_vote: float | None = None
    weight_noise_target: str = "attn_v"
    temperature: float = 1.0
    temperature_for_vote: float | None = None
    top_p: float = 0.9

    def __post_init__(self):
        if min(self.latent_length, self.max_new_tokens) < 1:
            raise ValueError("latent_length and max_new_tokens must be at least 1")
        for_vote = {name: self.strength(name, "vote") for name in STRENGTHS.values()}
        given = {key: value for key, value in for_vote.items() if value is not None}
        for values in (self.sampling(), self.sampling() | given):
            Sampling("dropout", **values)

    def sampling(self):
        """The fields that are fields of Sampling too."""
        return {key: value for key, value in asdict(self).items() if key in _SAMPLING_FIELDS}

    def strength(self, name, purpose):
        """A strength, such as ``noise_std``, for "coverage" or "vote"; None if unknown."""
        return getattr(self, name + _FOR_VOTE if purpose == "vote" else name)


def generation_key(name):
    """The key of a field of GenerationDefaults in generation_config.json."""
    base = name.removesuffix(_FOR_VOTE)
    return _OTHER_KEYS.get(base, base) + name[len(base) :]


class LatentReasoner:
    """Base of the backbones; src/models/architectures.py combines them with architectures.

    A backbone (src/models/coconut.py is the shortest) gives:
    format_prompt(question), the prompt; format_answer(answer), the text that it learns to write;
    parse_answer(text), the number in such a text or None; to_thought(hidden), from a hidden state
    (..., D) to the thought (..., D) that is fed back.

    It may also set: architectures, those that it exists for, the published one first;
    special_tokens; config_keys, which its config must have; stops_itself, whether the model decides
    when to stop thinking, by its end token; paper_defaults, the paper's sampler settings and
    lengths, which a checkpoint's generation_config.json may override.
    """

    architectures = ("gpt2", "llama")
    special_tokens = TOKENS
    config_keys = ()
    stops_itself = False
    paper_defaults = GenerationDefaults()

    @classmethod
    def generation_defaults(cls, values):
        """The GenerationDefaults of a checkpoint with ``values`` in its generation_config.json.

        Raises UserError or ValueError naming the impossible key.
        """
        kinds = get_type_hints(GenerationDefaults)
        keys = {field.name: generation_key(field.name) for field in fields(GenerationDefaults)}
        given = {
            name: typed(values[key], kinds[name], key)
            for name, key in keys.items()
            if values.get(key) is not None
        }
        return replace(cls.paper_defaults, **given)

    @property
    def defaults(self):
        """The GenerationDefaults of this model."""
        return self.generation_defaults(self.generation_config.to_dict())

    @classmethod
    def format_cot(cls, question, steps, answer):
        """Prompt and text of a chain of thought in words, without markers (src/models/cot.py)."""
        prompt = cls.format_prompt(question).removesuffix(START)
        return prompt, "\n".join([*steps, cls.format_answer(answer)])

    @property
    def prompt_prefix(self):
        """What prompts begin with, "" unless the config says it: official LLaMAs other than CoLaR
        learned to read a begin-of-text token there."""
        return getattr(self.config, "prompt_prefix", "")

    def encode(self, tokenizer, questions):
        """The prompts of questions: a list of token ids each."""
        prompts = [self.prompt_prefix + self.format_prompt(question) for question in questions]
        return tokenizer(prompts, add_special_tokens=False)["input_ids"]

    @classmethod
    def from_pretrained(cls, path, *args, **kwargs):
        """As in transformers; the ids of special tokens come from the checkpoint's tokenizer.

        Called on a backbone, it picks the architecture by the checkpoint's config.
        """
        location = {key: kwargs[key] for key in _LOCATION if key in kwargs}
        if not issubclass(cls, PreTrainedModel):
            config = AutoConfig.from_pretrained(path, **location)
            return combine(cls, config.model_type).from_pretrained(path, *args, **kwargs)
        loaded = super().from_pretrained(path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        tokenizer = AutoTokenizer.from_pretrained(path, **location)
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
        seed=0,
        question_ids=None,
        return_dict_in_generate=False,
        **sampling,
    ):
        """N latent trajectories and their answers for each row of ``input_ids`` (B, L).

        Rows may be padded on either side under ``attention_mask``; padding never changes a number.
        ``question_ids`` (B ints, default 0 .. B - 1) and ``seed`` key the random numbers.
        For do_sample: ``sampling_by``, the method of src.sampling.samplers.Sampling; ``sampling``,
        its other fields, such as dropout_p. None is the checkpoint's default; dropout_embedding and
        dropout_attention are off unless asked for. Returns the sequences (B * N, length), or a
        LatentGenerateOutput. Raises ValueError on impossible settings, TypeError on other keywords.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        question_ids = range(len(input_ids)) if question_ids is None else question_ids
        defaults, sampled = self.defaults, self._sampling(sampling_by, sampling)
        request = Request(
            prompts=[row[keep.bool()].tolist() for row, keep in zip(input_ids, mask, strict=True)],
            question_ids=[int(question) for question in question_ids],
            n_samples=num_return_sequences,
            latent_length=defaults.latent_length if latent_length is None else latent_length,
            max_new_tokens=defaults.max_new_tokens if max_new_tokens is None else max_new_tokens,
            seed=seed,
            sampling=sampled if do_sample else DETERMINISTIC,
        )
        trajectories = sample(self, request)
        sequences, thoughts = self._sequences(input_ids, trajectories), trajectories.thoughts
        output = LatentGenerateOutput(sequences, thoughts, trajectories.num_thoughts)
        return output if return_dict_in_generate else sequences

    def _sampling(self, method, given):
        """The Sampling of ``generate``: the checkpoint's defaults, and what is given."""
        unknown = given.keys() - _SAMPLING_FIELDS
        if unknown:
            raise TypeError(f"generate() got an unexpected keyword argument {min(unknown)!r}")
        values = self.defaults.sampling() | {"dropout_embedding": False}  # that is annotation's
        return Sampling(method, **values | {k: v for k, v in given.items() if v is not None})

    def _sequences(self, input_ids, trajectories):
        """LatentGenerateOutput.sequences, (B * N, length)."""
        config, num_thoughts = self.config, trajectories.num_thoughts  # (B, N)
        counts, texts = num_thoughts.flatten().tolist(), trajectories.texts(config.eos_token_id)
        answers = [
            torch.tensor([config.latent_token_id] * count + [config.end_latent_token_id, *ids])
            for count, ids in zip(counts, texts, strict=True)
        ]
        # GPT-2 has no padding token.
        pad = config.eos_token_id if config.pad_token_id is None else config.pad_token_id
        answers = pad_sequence(answers, batch_first=True, padding_value=pad)
        prompts = input_ids.repeat_interleave(num_thoughts.shape[1], dim=0)
        return torch.cat((prompts, answers.to(prompts.device)), dim=1)
