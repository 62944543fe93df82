"""The sampling engine: N latent trajectories and their answers for each question of a batch.

Whatever the samples of a question share is computed once and kept once: with noise, or with
``dropout_prompt=False``, its prompt. Rows are (question, sample) pairs; a question's rows are
adjacent.

A backbone offers ``embed``, ``prefill``, ``extend``, ``to_thought``, ``lm_head`` and ``new_cache``
(src/models). One with ``stops_itself`` decides when to stop thinking, by its end token, at the
latest after ``latent_length`` thoughts; the row then waits, unread, for the rest of its batch.
Q questions, N samples, R = Q * N rows, G prompts in the cache (Q or R), T thoughts, D model width.
"""

from dataclasses import dataclass

import torch

from src.sampling import rng
from src.sampling.memory import tokens_within
from src.sampling.samplers import add_noise, dropout_hook
from src.sampling.trajectories import Trajectories, pad_right

COMPACT_BELOW = 0.75  # Finished rows are dropped when the share of unfinished ones is below this.


@dataclass
class State:
    """Rows between two forward passes. Prompt and earlier thoughts are in the caches.

    thought (R, D): the next input, or None when all thoughts have been read. rng_keys (R,): the
    rows' random keys. prompt_lengths (R,). num_thoughts (R,): thoughts so far. prefix: PrefixCache
    of G prompts, which is never changed. suffix: SuffixCache of the R rows.
    """

    thought: torch.Tensor | None
    rng_keys: torch.Tensor
    prompt_lengths: torch.Tensor
    num_thoughts: torch.Tensor
    prefix: object
    suffix: object

    def __len__(self):
        return len(self.rng_keys)

    @property
    def all_rows(self):
        return torch.arange(len(self), device=self.rng_keys.device)

    def write_suffix(self, rows, part):
        """Copies the suffix of ``part``, a copy of the given rows that went on, to these rows."""
        if part is not self:
            self.suffix.write(rows, part.suffix)

    def select(self, rows, length=None, extra=None):
        """A copy of the given rows, an index tensor; rows may repeat.

        length, extra: crop the suffix and make room in it, as in SuffixCache.select.
        """
        return State(
            thought=None if self.thought is None else self.thought[rows],
            rng_keys=self.rng_keys[rows],
            prompt_lengths=self.prompt_lengths[rows],
            num_thoughts=self.num_thoughts[rows],
            prefix=self.prefix.select(self.prefix.groups_of(len(self))[rows]),
            suffix=self.suffix.select(rows, length, extra),
        )


@torch.inference_mode()
def sample(model, request):
    """Samples ``n_samples`` trajectories for each prompt and decodes their answers greedily.

    Sample n of question q under seed s is the same whatever else is in the request.
    Raises ValueError when the sequence would not fit the model's positions.
    """
    state, thoughts = think(model, request)
    return decode(model, request, state, thoughts)


def think(model, request):
    """The latent phase: the State before the answer, and the thoughts (R, T, D), 0 if missing."""
    request.check(model.config.max_position_embeddings)
    state = start(model, request)
    first = state.thought
    thoughts = continue_thinking(model, request, state, 1)
    return state, torch.stack([first, *thoughts], dim=1)


def decode(model, request, state, thoughts):
    """The Trajectories of what ``think`` returned. The state stays as it is."""
    shape = (len(request.prompts), request.n_samples)
    tokens, finished = decode_answers(model, request, state)
    return Trajectories(
        thoughts.unflatten(0, shape),
        state.num_thoughts.cpu().view(shape),
        _by_question(tokens, shape),
        _by_question(finished, shape),
    )


def _by_question(rows, shape):
    return [rows[q * shape[1] : (q + 1) * shape[1]] for q in range(shape[0])]


def start(model, request):
    """The State of all R rows at their first thought."""
    rng_keys = _row_keys(request, model.device)
    hidden, prefix, prompt_lengths = _read_prompts(model, request, rng_keys)
    # The end-of-thinking token is read, the last answer token is not.
    positions = request.latent_length + request.max_new_tokens
    suffix = model.new_cache(len(rng_keys), positions)
    thought = add_noise(request.sampling, model.to_thought(hidden), rng_keys, 1)  # (R, D)
    num_thoughts = torch.ones_like(prompt_lengths)
    return State(thought, rng_keys, prompt_lengths, num_thoughts, prefix, suffix)


def _row_keys(request, device):
    questions = torch.tensor(request.question_ids).repeat_interleave(request.n_samples)
    samples = torch.arange(request.n_samples).repeat(len(request.question_ids))
    return rng.row_keys(request.seed, questions, request.first_sample + samples, device)


def _read_prompts(model, request, rng_keys):
    """Final hidden state (R, D) at each prompt's end, PrefixCache, and prompt lengths (R,)."""
    ids, lengths = (x.to(rng_keys.device) for x in pad_right(request.prompts, 0))  # (Q, L), (Q,)
    row_lengths = lengths.repeat_interleave(request.n_samples)
    if request.sampling.resample_prompt:
        return *_read_prompts_by_row(model, request, rng_keys, ids, row_lengths), row_lengths
    hidden, prefix = model.prefill(model.embed(ids), lengths)
    return hidden.repeat_interleave(request.n_samples, dim=0), prefix, row_lengths


def _read_prompts_by_row(model, request, rng_keys, ids, row_lengths):
    """Every row reads its prompt under masks of its own: (R, D), PrefixCache of R groups.

    What the rows of a question share, up to their first mask, is computed once. They are read in
    chunks, so that memory is bounded.
    """
    questions = torch.arange(len(ids), device=ids.device).repeat_interleave(request.n_samples)
    longest = ids.shape[1]
    positions = torch.arange(longest, device=ids.device)  # (L,)
    sampling, embeddings = request.sampling, model.embed(ids)  # (Q, L, D)
    masked_early = sampling.dropout_embedding or sampling.dropout_attention
    shares_start = not masked_early and len(model.blocks) > 1
    shared = model.start_prompts(embeddings) if shares_start else embeddings
    keys = longest if sampling.dropout_attention else 0
    chunk = max(1, tokens_within(model, keys) // longest)
    states, prefix, first = [], None, 0
    for rows in torch.arange(len(rng_keys), device=ids.device).split(chunk):
        of_rows = questions[rows]
        x = shared.select(of_rows) if shares_start else shared[of_rows]  # (r, L, D)
        steps = positions - (row_lengths[rows, None] - 1)  # (r, L)
        dropout = dropout_hook(sampling, rng_keys[rows], steps)
        hidden, part = model.prefill(x, row_lengths[rows], dropout)
        prefix = prefix or part.allocate(part, row_lengths)
        prefix.write(first, part)
        states.append(hidden)
        first += len(rows)
    return torch.cat(states), prefix


def continue_thinking(model, request, state, first):
    """Advances ``state`` from thought number ``first``, which is its next input, to the answer.

    Returns the thoughts after the first, (R, D) each.
    """
    if model.stops_itself:
        return _think_until_stop(model, request, state, first)
    thoughts = []
    for step in range(first, request.latent_length):
        hidden = read_thought(model, request.sampling, state, step)  # (R, D)
        thought = model.to_thought(hidden)
        state.thought = add_noise(request.sampling, thought, state.rng_keys, step + 1)  # (R, D)
        thoughts.append(state.thought)
    state.num_thoughts = torch.full_like(state.num_thoughts, request.latent_length)
    return thoughts


def _think_until_stop(model, request, state, first):
    """``continue_thinking`` of a backbone that stops itself; it reads all thoughts, the last too.

    ``active`` holds the rows ``rows`` of the state; finished ones are dropped once they are many.
    """
    active, rows, thoughts, step = state, state.all_rows, [], first
    alive = torch.ones_like(rows, dtype=torch.bool)
    num_thoughts = torch.zeros_like(state.num_thoughts)
    for step in range(first, request.latent_length + 1):
        num_thoughts[rows[alive]] = step
        hidden = read_thought(model, request.sampling, active, step)  # (R', D)
        alive = alive & ~ends_thinking(model, hidden)
        if step == request.latent_length or not bool(alive.any()):
            break
        thought = add_noise(request.sampling, model.to_thought(hidden), active.rng_keys, step + 1)
        every = thought.new_zeros(len(num_thoughts), thought.shape[1])  # (R, D)
        thoughts.append(every.index_copy(0, rows[alive], thought[alive]))
        active.thought = thought
        kept = _unfinished(alive)
        if kept is not None:
            state.write_suffix(rows, active)
            active, rows, alive = active.select(kept), rows[kept], alive[kept]
    state.write_suffix(rows, active)
    state.suffix.set_lengths(num_thoughts)
    state.thought, state.num_thoughts = None, num_thoughts
    return thoughts


def ends_thinking(model, hidden):
    """Whether the model ends its latent phase at hidden states (R, D)."""
    return model.lm_head(hidden).argmax(-1) == model.config.end_latent_token_id


def read_thought(model, sampling, state, step):
    """The final hidden state (R, D) at the state's thought, which is number ``step``."""
    positions = state.prompt_lengths[:, None] + (step - 1)  # (R, 1)
    dropout = dropout_hook(sampling, state.rng_keys, torch.full_like(positions, step))
    x = state.thought[:, None]  # (R, 1, D)
    return model.extend(x, positions, state.prefix, state.suffix, dropout)[:, 0]


def decode_answers(model, request, state):
    """Greedy decoding after the forced end-of-thinking token; finished rows are dropped.

    Returns R lists of token ids, and whether each came to its end-of-text. The state stays as it
    is: what the answer adds to its suffix cache is forgotten in the end.
    """
    active, rows, mark = state, state.all_rows, state.suffix.mark
    x, positions = answer_start(model, active)  # (R, S, D), (R, S)
    written = rows.new_zeros(len(rows), request.max_new_tokens)
    count = torch.zeros_like(rows)
    alive = torch.ones_like(rows, dtype=torch.bool)
    for step in range(request.max_new_tokens):
        hidden = read_answer(model, request.sampling, active, x, positions)[:, -1]  # (R', D)
        token = model.lm_head(hidden).argmax(-1)  # (R',)
        alive = alive & (token != model.config.eos_token_id)
        written[rows[alive], step] = token[alive]
        count[rows[alive]] += 1
        if not bool(alive.any()):
            break
        kept = _unfinished(alive)
        if kept is not None:
            active = active.select(kept)
            rows, token, positions, alive = (x[kept] for x in (rows, token, positions, alive))
        x, positions = model.embed(token)[:, None], positions[:, -1:] + 1
    state.suffix.restore(mark)
    unfinished = set(rows[alive].tolist())
    tokens = [ids[:n].tolist() for ids, n in zip(written.cpu(), count.tolist(), strict=True)]
    return tokens, [r not in unfinished for r in range(len(tokens))]


def answer_start(model, state):
    """Inputs (R, S, D) and positions (R, S) with which the answer starts.

    These are the last thought, where it has not been read, and the forced end-of-thinking token.
    """
    end = torch.full_like(state.prompt_lengths, model.config.end_latent_token_id)
    position = state.prompt_lengths + state.num_thoughts  # (R,) of that token
    if state.thought is None:
        return model.embed(end)[:, None], position[:, None]
    x = torch.stack((state.thought, model.embed(end)), dim=1)  # (R, 2, D)
    return x, torch.stack((position - 1, position), dim=1)


def read_answer(model, sampling, state, x, positions):
    """Hidden states (R, S, D) at inputs x (R, S, D) of the answer, at positions (R, S)."""
    steps = positions - (state.prompt_lengths[:, None] - 1)
    dropout = dropout_hook(sampling, state.rng_keys, steps, active=sampling.dropout_answer)
    return model.extend(x, positions, state.prefix, state.suffix, dropout)


def _unfinished(alive):
    """The unfinished rows, an index tensor, or None while finished ones are few."""
    rows = alive.nonzero()[:, 0]
    return rows if len(rows) <= COMPACT_BELOW * len(alive) else None
